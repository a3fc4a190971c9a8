"""Neurons, unrolled over the steps: per step a multiply-add, a compare and a select."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stdeploy.exporters.onnx.layout import Form, Layouts, Lowered
from stdeploy.exporters.onnx.ramp import Ramp, ramp
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
    layouts: Layouts,
    node: Node,
    op: Neuron,
    x: Lowered,
    *,
    negated: bool,
    heads: tuple[int, int] | None,
    real: bool,
) -> Lowered:
    """Spikes of `op` for all steps: in x's own form, or split into the equal `heads` that products read.

    `real`: see Stepper.
    """
    layouts.read(x, x.native, node.name)
    unit = unit_of(node, x.value.domain)
    stepper = Stepper(layouts, node.name, x, real=real)
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
        merged = layouts.merge_heads(fired.tensor, x.value.shape[0], f"{node.name}/fired")
        fired, form = replace(fired, tensor=merged), "last"
    return Lowered(node.value, {form: to_real(layouts, node, fired)}, sizes=x.sizes)


def to_heads(layouts: Layouts, node: Node, fired: Fired, form: Form, sizes: tuple[int, ...]) -> Lowered:
    """Spikes as real [lead, H, N, d]."""
    tensor = layouts.split_heads(fired.tensor, form, sizes, f"{node.name}/fired")
    return Lowered(node.value, {"heads": to_real(layouts, node, replace(fired, tensor=tensor))}, sizes=sizes)


def to_real(layouts: Layouts, node: Node, fired: Fired) -> str:
    """Spikes as real numbers, under the neuron's name."""
    em = layouts.emitter
    if not fired.real:
        return em.op("Cast", [fired.tensor], f"{node.name}/spikes", output=node.name, to=em.real_type)
    return em.name_last(fired.tensor, node.name)


@dataclass(frozen=True, slots=True)
class Fired:
    """A tensor of spikes: real numbers, or booleans."""

    tensor: str
    real: bool


class Stepper:
    """The steps of the neurons that `x` drives.

    `real`: spikes come as real numbers where one operator makes them so; else as booleans, for a reader
    that wants integers.
    """

    def __init__(self, layouts: Layouts, name: str, x: Lowered, *, real: bool) -> None:
        self.em, self.steps = layouts.emitter, layouts.steps
        self.name, self.real = name, real
        self.form: Form = x.native
        self.tensor = x.tensors[self.form]
        self.static = x.value.time == "static"
        self.x = x

    def drives(self) -> list[str]:
        if self.static or self.steps == 1:
            return [self.tensor] * self.steps
        return self.em.split(self.tensor, self.steps, 0, f"{self.name}/drive")

    def join(self, spikes: list[str], gate: Gate) -> Fired:
        joined = spikes[0]
        if len(spikes) > 1:
            joined = self.em.op("Concat", spikes, f"{self.name}/fired", axis=0)
        return Fired(joined, gate.real)

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

    def gate(self, threshold: Array, *, real: bool = True, rising: bool = True) -> Gate:
        """How the neurons fire; `real` False where a reset needs booleans."""
        found = None
        if self.real and real and np.all(threshold == threshold.flat[0]):
            found = ramp(float(threshold.flat[0]), self.em.real, rising=rising)
        return Gate(self, threshold, found, rising)

    def memoryless(self, threshold: Array) -> Fired:
        """tau = 1 forgets the membrane: all steps at once."""
        gate = self.gate(threshold)
        fired = gate.fire(self.tensor, 0)
        return self.join([fired] * (self.steps if self.static else 1), gate)

    def run(self, unit: Unit, negated: bool) -> Fired:
        """The unit's steps; `negated` says that the drive is -x."""
        if unit.mirrored and self.steps > 1:
            return self.mirrored(unit, negated)
        last, u, spikes = self.steps - 1, "", []
        gate = self.gate(unit.threshold, real=not unit.hard or last == 0)
        for t, x in enumerate(self.drives()):
            h = self.do("Add", self.leak(unit, u, t), x, "charge", t) if t else x
            spikes.append(gate.fire(h, t))
            if t < last:
                u = gate.reset(spikes[t], h, "", t) if unit.hard else gate.drop(spikes[t], h, t)
        return self.join(spikes, gate)

    def mirrored(self, unit: Unit, negated: bool) -> Fired:
        """The same on -u, which rounds alike: fire where -u <= -threshold."""
        level = -float(unit.threshold.flat[0].astype(self.em.real))
        gate, u, spikes = self.gate(np.asarray(level), rising=False), "", []
        for t, x in enumerate(self.drives()):
            if t:
                h = self.do("Add" if negated else "Sub", self.leak(unit, u, t), x, "charge", t)
            else:
                h = x if negated else self.em.op("Neg", [x], f"{self.name}/charge.t0")
            spikes.append(gate.fire(h, t))
            if t < self.steps - 1:
                u = self.em.op("ThresholdedRelu", [h], f"{self.name}/reset.t{t}", alpha=level)
        return self.join(spikes, gate)

    def leak(self, unit: Unit, u: str, t: int) -> str:
        return (
            self.do("Mul", u, self.parameter(unit.decay, "decay"), "leak", t)
            if np.any(unit.decay != 1)
            else u
        )

    def in_order(self, op: Neuron) -> Fired:
        """The equation of ops.Neuron, operation by operation, as the reference interpreter does it."""
        last, hard = self.steps - 1, op.v_reset is not None
        rest = "" if op.v_reset is None or not np.any(op.v_reset) else self.parameter(op.v_reset, "v_reset")
        gate, v, spikes = self.gate(np.asarray(op.v_threshold), real=not hard or last == 0), rest, []
        for t, x in enumerate(self.drives()):
            h = self.charge(op, v, x, rest, t)
            spikes.append(gate.fire(h, t))
            if t < last:
                v = gate.reset(spikes[t], h, rest, t) if hard else gate.drop(spikes[t], h, t)
        return self.join(spikes, gate)

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


@dataclass(frozen=True, eq=False)
class Gate:
    """Compares membranes with `threshold`, by a ramp where there is one: fire where h >= threshold (`rising`) or <=."""

    stepper: Stepper
    threshold: Array
    ramp: Ramp | None
    rising: bool

    @property
    def real(self) -> bool:
        return self.ramp is not None

    def level(self) -> str:
        return self.stepper.parameter(self.threshold, "threshold")

    def fire(self, h: str, t: int) -> str:
        """Spikes, real or boolean."""
        own = self.stepper
        if self.ramp is not None:
            name, found = f"{own.name}/fire.t{t}", self.ramp
            return own.em.op("HardSigmoid", [h], name, alpha=found.alpha, beta=found.beta)
        return own.do("GreaterOrEqual" if self.rising else "LessOrEqual", h, self.level(), "fire", t)

    def reset(self, spike: str, h: str, rest: str, t: int) -> str:
        """Hard: `rest` ("" for 0) where it fired; of boolean spikes."""
        own = self.stepper
        value = rest or own.parameter(np.asarray(0.0), "zero")
        return own.em.op("Where", [spike, value, h], f"{own.name}/reset.t{t}")

    def drop(self, spike: str, h: str, t: int) -> str:
        """Soft: h - threshold where it fired."""
        own = self.stepper
        if self.ramp is None:
            return own.em.op(
                "Where", [spike, own.do("Sub", h, self.level(), "drop", t), h], f"{own.name}/reset.t{t}"
            )
        if np.any(self.threshold != 1):
            spike = own.do("Mul", spike, self.level(), "drop", t)
        return own.do("Sub", h, spike, "reset", t)
