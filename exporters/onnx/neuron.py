"""Neurons, unrolled over the steps: per step a multiply-add, a compare and a select, one cast in all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from stdeploy.exporters.onnx.layout import Form, Layouts, Lowered
from stdeploy.graph.graph import Node
from stdeploy.graph.ops import Neuron
from stdeploy.graph.value import Domain
from stdeploy.graph.weight import Array


@dataclass(frozen=True)
class _Unit:
    """Neuron `u = decay * u + x`, spike where `u >= threshold`, then 0 (hard) or `u - threshold` (soft).

    The membrane is measured from v_reset and, where the input decays, in units of 1/tau:
    u = tau (v - v_reset) turns h = v + (x - (v - r)) / tau into u = (1 - 1/tau) u + x. So no weight is
    touched, and x costs no multiplication.
    """

    decay: Array
    threshold: Array
    hard: bool


def unit_form(op: Neuron) -> _Unit:
    """The neuron of `op` in the units of _Unit: its float32 parameters, combined in float64."""
    rest = np.float64(0) if op.v_reset is None else _float32(op.v_reset)
    threshold = _float32(op.v_threshold) - rest
    if op.tau is None:
        return _Unit(np.asarray(1.0), threshold, op.v_reset is not None)
    tau = _float32(op.tau)
    return _Unit(1 - 1 / tau, threshold * tau if op.decay_input else threshold, op.v_reset is not None)


def _float32(values: Array) -> Array:
    """What the float32 network holds, in float64."""
    return values.astype(np.float32).astype(np.float64)


def keeps_order(op: Neuron, drive: Domain) -> bool:
    """Whether the neuron must be evaluated in float32 in the stated order of its equation.

    A drive of integers (attention products) hits the threshold exactly again and again, so rounding
    elsewhere than the source does would flip spikes; where every factor is a power of two and
    v_reset is 0 nothing rounds, and the unit form is as exact.
    """
    if drive.maximum is None:
        return False
    resets = op.v_reset is not None and bool(np.any(op.v_reset != 0))
    return resets or not _power_of_two(op.tau) or not _power_of_two(np.asarray(drive.scale))


def _power_of_two(values: Array | None) -> bool:
    return values is None or bool(np.all(np.frexp(values)[0] == 0.5))


def emit_neuron(layouts: Layouts, node: Node, op: Neuron, x: Lowered) -> Lowered:
    """Spikes of `op` for all steps, in x's own form."""
    form: Form = x.native
    tensor = layouts.read(x, form, node.name)
    form = x.native
    static = x.value.time == "static"
    stepper = _Stepper(layouts, node.name, op, form, len(x.value.shape))
    if static:
        drives = [tensor] * layouts.steps
    else:
        drives = (
            layouts.emitter.split(tensor, layouts.steps, 0, f"{node.name}/drive")
            if layouts.steps > 1
            else [tensor]
        )
    if keeps_order(op, x.value.domain):
        spikes = stepper.in_order(drives)
    elif np.all(unit_form(op).decay == 0):
        spikes = stepper.memoryless(tensor, layouts.steps if static else 1)
    else:
        spikes = stepper.unit(drives)
    em = layouts.emitter
    fired = em.op("Concat", spikes, f"{node.name}/fired", axis=0) if len(spikes) > 1 else spikes[0]
    out = em.op("Cast", [fired], f"{node.name}/spikes", output=node.name, to=TensorProto.FLOAT)
    return Lowered(node.value, {form: out}, sizes=x.sizes)


class _Stepper:
    def __init__(self, layouts: Layouts, name: str, op: Neuron, form: Form, rank: int) -> None:
        self.em = layouts.emitter
        self.name = name
        self.op = op
        self.trailing = {"first": rank - 1, "last": 0, "maps": 2, "pairs": 2}[form]

    def parameter(self, values: Array, label: str) -> str:
        values = np.asarray(values)
        if values.ndim:
            same = bool(np.all(values == values.flat[0]))
            values = values.flat[0] if same else values.reshape(-1, *([1] * self.trailing))
        return self.em.constant(np.asarray(values), f"{self.name}/{label}")

    def do(self, kind: str, a: str, b: str, label: str, t: int) -> str:
        return self.em.op(kind, [a, b], f"{self.name}/{label}.t{t}")

    def fire(self, h: str, threshold: str, t: int) -> str:
        return self.do("GreaterOrEqual", h, threshold, "fire", t)

    def select(self, spike: str, fired: str, h: str, t: int) -> str:
        return self.em.op("Where", [spike, fired, h], f"{self.name}/reset.t{t}")

    def memoryless(self, x: str, repeats: int) -> list[str]:
        """tau = 1 forgets the membrane: all steps at once."""
        return [self.fire(x, self.parameter(unit_form(self.op).threshold, "threshold"), 0)] * repeats

    def unit(self, drives: list[str]) -> list[str]:
        form, last = unit_form(self.op), len(drives) - 1
        threshold, u, spikes = self.parameter(form.threshold, "threshold"), "", []
        for t, x in enumerate(drives):
            h = x
            if t:
                if np.any(form.decay != 1):
                    u = self.do("Mul", u, self.parameter(form.decay, "decay"), "leak", t)
                h = self.do("Add", u, x, "charge", t)
            spikes.append(self.fire(h, threshold, t))
            if t < last and form.hard:
                u = self.select(spikes[t], self.parameter(np.asarray(0.0), "zero"), h, t)
            elif t < last:
                u = self.select(spikes[t], self.do("Sub", h, threshold, "drop", t), h, t)
        return spikes

    def in_order(self, drives: list[str]) -> list[str]:
        """The equation of ops.Neuron, operation by operation, as the reference interpreter does it."""
        op, last = self.op, len(drives) - 1
        rest = "" if op.v_reset is None or not np.any(op.v_reset) else self.parameter(op.v_reset, "v_reset")
        threshold, v, spikes = self.parameter(op.v_threshold, "threshold"), rest, []
        for t, x in enumerate(drives):
            h = self.charge(v, x, rest, t)
            spikes.append(self.fire(h, threshold, t))
            if t < last and op.v_reset is not None:
                v = self.select(spikes[t], rest or self.parameter(np.asarray(0.0), "zero"), h, t)
            elif t < last:
                v = self.select(spikes[t], self.do("Sub", h, threshold, "drop", t), h, t)
        return spikes

    def charge(self, v: str, x: str, rest: str, t: int) -> str:
        """h at step t; at the first step v is v_reset, so that v - v_reset is exactly 0."""
        op = self.op
        if op.tau is None:
            return self.do("Add", v, x, "charge", t) if v else x
        tau = self.parameter(op.tau, "tau")
        away = "" if t == 0 else self.do("Sub", v, rest, "away", t) if rest else v
        if op.decay_input:
            pull = self.do("Sub", x, away, "pull", t) if away else x
            pull = self.do("Div", pull, tau, "pull_tau", t)
            return self.do("Add", v, pull, "charge", t) if v else pull
        if away:
            v = self.do("Sub", v, self.do("Div", away, tau, "leak", t), "left", t)
        return self.do("Add", v, x, "charge", t) if v else x
