"""Neurons, unrolled over the steps: per step a multiply-add, a compare and a select, one cast in all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stdeploy.exporters.onnx.layout import Form, Layouts, Lowered
from stdeploy.graph.graph import Node
from stdeploy.graph.ops import Neuron
from stdeploy.graph.value import Domain
from stdeploy.graph.weight import Array


@dataclass(frozen=True, eq=False)
class Unit:
    """Neuron `u = decay * u + x`, spike where `u >= threshold`, then 0 (hard) or `u - threshold` (soft).

    The membrane is measured from v_reset and, where the input decays, in units of 1/tau:
    u = tau (v - v_reset) turns h = v + (x - (v - r)) / tau into u = (1 - 1/tau) u + x. So no weight is
    scaled, and x costs no multiplication.
    """

    decay: Array
    threshold: Array
    hard: bool

    @property
    def mirrored(self) -> bool:
        """Whether -u is stepped instead: ThresholdedRelu keeps what is above -threshold and zeroes the rest.

        That is the hard reset in one pass, where a Where takes three; it takes one threshold for all.
        """
        return self.hard and bool(np.all(self.threshold == self.threshold.flat[0]))


def unit_form(op: Neuron) -> Unit:
    """The neuron of `op` in the units of Unit: its float32 parameters, combined in float64."""
    rest = np.float64(0) if op.v_reset is None else _float32(op.v_reset)
    threshold = np.asarray(_float32(op.v_threshold) - rest)
    if op.tau is None:
        return Unit(np.asarray(1.0), threshold, op.v_reset is not None)
    tau = _float32(op.tau)
    threshold = np.asarray(threshold * tau) if op.decay_input else threshold
    return Unit(np.asarray(1 - 1 / tau), threshold, op.v_reset is not None)


def unit_of(node: Node, drive: Domain) -> Unit | None:
    """The unit form of a neuron that keeps a membrane and may be evaluated in it; else None."""
    if not isinstance(node.op, Neuron) or keeps_order(node.op, drive):
        return None
    unit = unit_form(node.op)
    return None if np.all(unit.decay == 0) else unit


def joined(units: Sequence[Unit], channels: Sequence[int]) -> Unit:
    """One unit for neurons of one kind of reset that lie one after another along the channels."""

    def join(parameters: list[Array]) -> Array:
        parts = [np.broadcast_to(p, (n,)) for p, n in zip(parameters, channels, strict=True)]
        return np.concatenate(parts)

    return Unit(join([u.decay for u in units]), join([u.threshold for u in units]), units[0].hard)


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
    return resets or not is_power_of_two(op.tau) or not is_power_of_two(drive.scale)


def is_power_of_two(values: Array | float | None) -> bool:
    """Whether multiplying with every one of `values` is exact; None multiplies with nothing."""
    return values is None or bool(np.all(np.frexp(values)[0] == 0.5))


def emit_neuron(
    layouts: Layouts, node: Node, op: Neuron, x: Lowered, *, negated: bool, heads: tuple[int, int] | None
) -> Lowered:
    """Spikes of `op` for all steps: in x's own form, or split into the equal `heads` that products read."""
    layouts.read(x, x.native, node.name)
    unit = unit_of(node, x.value.domain)
    stepper = Stepper(layouts, node.name, x)
    if unit is not None:
        fired = stepper.run(unit, negated)
    elif keeps_order(op, x.value.domain):
        fired = stepper.in_order(op)
    else:
        fired = stepper.memoryless(unit_form(op).threshold)
    form = x.native
    if heads is not None and form in ("first", "last"):
        positions = math.prod(x.value.shape[1:])
        return to_heads(layouts, node, fired, form, (heads[0], positions, heads[1]))
    if form == "heads":
        fired, form = layouts.merge_heads(fired, x.value.shape[0], f"{node.name}/fired"), "last"
    return Lowered(node.value, {form: to_float(layouts, node, fired)}, sizes=x.sizes)


def to_heads(layouts: Layouts, node: Node, fired: str, form: Form, sizes: tuple[int, ...]) -> Lowered:
    """Boolean spikes as float [lead, H, N, d]."""
    fired = layouts.split_heads(fired, form, sizes, f"{node.name}/fired")
    return Lowered(node.value, {"heads": to_float(layouts, node, fired)}, sizes=sizes)


def to_float(layouts: Layouts, node: Node, fired: str) -> str:
    """Boolean spikes as real numbers, under the neuron's name."""
    return layouts.emitter.op(
        "Cast", [fired], f"{node.name}/spikes", output=node.name, to=layouts.emitter.real_type
    )


class Stepper:
    """The steps of the neurons that `x` drives; what it returns is boolean, all steps joined again."""

    def __init__(self, layouts: Layouts, name: str, x: Lowered) -> None:
        self.em, self.steps = layouts.emitter, layouts.steps
        self.name = name
        self.form: Form = x.native
        self.tensor = x.tensors[self.form]
        self.static = x.value.time == "static"
        self.x = x

    def drives(self) -> list[str]:
        if self.static or self.steps == 1:
            return [self.tensor] * self.steps
        return self.em.split(self.tensor, self.steps, 0, f"{self.name}/drive")

    def join(self, spikes: list[str]) -> str:
        return self.em.op("Concat", spikes, f"{self.name}/fired", axis=0) if len(spikes) > 1 else spikes[0]

    def parameter(self, values: Array, label: str) -> str:
        values = np.asarray(values)
        if values.ndim:
            same = bool(np.all(values == values.flat[0]))
            values = values.flat[0] if same else values.reshape(self.spread(values.size))
        return self.em.constant(np.asarray(values), f"{self.name}/{label}")

    def spread(self, channels: int) -> tuple[int, ...]:
        """Shape in which one value per channel meets the tensor."""
        if self.form == "heads":
            return (self.x.sizes[0], 1, self.x.sizes[2])
        trailing = {"first": len(self.x.value.shape) - 1, "last": 0}.get(self.form, 2)
        return (channels, *([1] * trailing))

    def do(self, kind: str, a: str, b: str, label: str, t: int) -> str:
        return self.em.op(kind, [a, b], f"{self.name}/{label}.t{t}")

    def fire(self, h: str, threshold: str, t: int) -> str:
        return self.do("GreaterOrEqual", h, threshold, "fire", t)

    def select(self, spike: str, fired: str, h: str, t: int) -> str:
        return self.em.op("Where", [spike, fired, h], f"{self.name}/reset.t{t}")

    def memoryless(self, threshold: Array) -> str:
        """tau = 1 forgets the membrane: all steps at once."""
        fired = self.fire(self.tensor, self.parameter(threshold, "threshold"), 0)
        return self.join([fired] * (self.steps if self.static else 1))

    def run(self, unit: Unit, negated: bool) -> str:
        """The unit's steps; `negated` says that the drive is -x."""
        if unit.mirrored and self.steps > 1:
            return self.mirrored(unit, negated)
        drives, last = self.drives(), self.steps - 1
        threshold, u, spikes = self.parameter(unit.threshold, "threshold"), "", []
        for t, x in enumerate(drives):
            h = self.do("Add", self.leak(unit, u, t), x, "charge", t) if t else x
            spikes.append(self.fire(h, threshold, t))
            if t < last and unit.hard:
                u = self.select(spikes[t], self.parameter(np.asarray(0.0), "zero"), h, t)
            elif t < last:
                u = self.select(spikes[t], self.do("Sub", h, threshold, "drop", t), h, t)
        return self.join(spikes)

    def mirrored(self, unit: Unit, negated: bool) -> str:
        """The same on -u, which rounds alike: fire where -u <= -threshold."""
        level = -float(unit.threshold.flat[0].astype(self.em.real))
        threshold, u, spikes = self.parameter(np.asarray(level), "threshold"), "", []
        for t, x in enumerate(self.drives()):
            if t:
                h = self.do("Add" if negated else "Sub", self.leak(unit, u, t), x, "charge", t)
            else:
                h = x if negated else self.em.op("Neg", [x], f"{self.name}/charge.t0")
            spikes.append(self.do("LessOrEqual", h, threshold, "fire", t))
            if t < self.steps - 1:
                u = self.em.op("ThresholdedRelu", [h], f"{self.name}/reset.t{t}", alpha=level)
        return self.join(spikes)

    def leak(self, unit: Unit, u: str, t: int) -> str:
        return (
            self.do("Mul", u, self.parameter(unit.decay, "decay"), "leak", t)
            if np.any(unit.decay != 1)
            else u
        )

    def in_order(self, op: Neuron) -> str:
        """The equation of ops.Neuron, operation by operation, as the reference interpreter does it."""
        drives, last = self.drives(), self.steps - 1
        rest = "" if op.v_reset is None or not np.any(op.v_reset) else self.parameter(op.v_reset, "v_reset")
        threshold, v, spikes = self.parameter(op.v_threshold, "threshold"), rest, []
        for t, x in enumerate(drives):
            h = self.charge(op, v, x, rest, t)
            spikes.append(self.fire(h, threshold, t))
            if t < last and op.v_reset is not None:
                v = self.select(spikes[t], rest or self.parameter(np.asarray(0.0), "zero"), h, t)
            elif t < last:
                v = self.select(spikes[t], self.do("Sub", h, threshold, "drop", t), h, t)
        return self.join(spikes)

    def charge(self, op: Neuron, v: str, x: str, rest: str, t: int) -> str:
        """h at step t; at the first step v is v_reset, so that v - v_reset is exactly 0."""
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
