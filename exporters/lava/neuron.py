"""Model neurons as Lava populations, and the memoryless unit.

With u = v - v_reset a hard-reset LIF starts and resets at u = 0. Lava charges V = V (1 - leak) + a + bias:

    decay_input     h = u (1 - 1/tau) + x / tau     V = tau u, leak = 1/tau, a = x, threshold tau (theta - r)
    otherwise       h = u (1 - 1/tau) + x           V = u,     leak = 1/tau, a = x, threshold theta - r
    IF              h = u + x                       V = u,     leak = 0,     a = x, threshold theta - r

The weights stay the model's own where the threshold is one number; thresholds per channel divide the rows before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stdeploy.exporters.lava.linear_map import total
from stdeploy.exporters.lava.plan import Part, Population, Role, below
from stdeploy.exporters.lava.signal import Signal, Writer
from stdeploy.exporters.refusal import Refusal
from stdeploy.graph.graph import Node
from stdeploy.graph.ops import Neuron
from stdeploy.graph.weight import Array

MOST_TAUS = 16
"""Distinct tau per layer that become one population each."""


@dataclass(frozen=True, eq=False)
class Dynamics:
    """leak, threshold and input gain by channel, in V's units; `uniform`: one threshold, no gain."""

    leak: Array
    threshold: float
    gain: Array | None


def dynamics(op: Neuron, channels: int, scale: float) -> Dynamics:
    """What a population needs for an input that is `scale` times what its ports carry; Refusal for a soft reset."""
    if op.v_reset is None:
        raise Refusal("soft reset: Lava's LIF resets to zero", "train with a hard reset (v_reset)")
    wide = [np.broadcast_to(a, (channels,)).astype(np.float64) for a in (op.v_threshold, op.v_reset)]
    threshold = wide[0] - wide[1]
    if np.any(threshold <= 0):
        raise Refusal("v_threshold is not above v_reset, so it fires at rest")
    leak = np.zeros(channels)
    if op.tau is not None:
        tau = np.broadcast_to(op.tau, (channels,)).astype(np.float64)
        leak = 1.0 / tau
        threshold = threshold * tau if op.decay_input else threshold
    if np.unique(leak).size > MOST_TAUS:
        raise Refusal(
            f"{np.unique(leak).size} distinct tau: each is a population of its own, and {MOST_TAUS} are the limit",
            "stdeploy compress --tau-levels K writes fewer and measures what that changes",
        )
    if np.unique(threshold).size == 1:
        return Dynamics(leak, float(threshold[0]) / scale, None)
    return Dynamics(leak, 1.0, scale / threshold)


def lower_neuron(writer: Writer, node: Node, signal: Signal) -> Signal:
    """One population, or one for each distinct tau with its channels brought back in order."""
    op = node.op
    if not isinstance(op, Neuron):
        raise TypeError(f"{node.name} is no neuron")
    scale = signal.scale if signal.scale > 0 else 1.0
    rules = dynamics(op, signal.channels, scale)
    driven = signal.divided(scale)
    leaks = np.unique(rules.leak)
    if leaks.size == 1:
        name, valid = _population(writer, node.name, driven, rules, float(leaks[0]), None)
        writer.plan.neurons[node.name] = [Part(name, 0, signal.size)]
        return Signal(signal.shape, (name,), valid)
    parts, back = [], []
    for i, leak in enumerate(leaks):
        rows = np.flatnonzero(rules.leak == leak)
        name, valid = _population(writer, f"{node.name}.tau{i}", driven, rules, float(leak), rows)
        parts.append(Part(name, 0, rows.size * signal.positions, rows))
        here = Signal((rows.size, *signal.shape[1:]), (name,), valid)
        place = np.arange(signal.size).reshape(signal.channels, -1)[rows]
        back.append(writer.written(name, here.mapped(total(place, signal.size), signal.shape)))
    writer.plan.neurons[node.name] = parts
    together = writer.aligned(back)
    ports = tuple(port for branch in together for port in branch.ports)
    return Signal(signal.shape, ports, together[0].valid)


def _population(
    writer: Writer, name: str, signal: Signal, rules: Dynamics, leak: float, rows: Array | None
) -> tuple[str, int]:
    arrival = writer.arrivals(name, [signal], rules.gain, rows, weighed=writer.fixed)
    bias = signal.offset
    if bias is not None:
        gain = 1.0 if rules.gain is None else np.repeat(rules.gain, signal.positions)
        bias = (bias * gain).reshape(signal.channels, -1)
        bias = (bias if rows is None else bias[rows]).ravel()
    size = signal.size if rows is None else rows.size * signal.positions
    population = Population(size, leak, below(rules.threshold), bias)
    return writer.plan.add(name, population, {"a_in": arrival.ports}, arrival.valid), arrival.valid


def unit(writer: Writer, name: str, signals: list[Signal], threshold: float, role: Role) -> Signal:
    """A memoryless population that fires where the sum of `signals` exceeds `threshold` (between two integers)."""
    arrival = writer.arrivals(name, signals)
    offsets = [s.offset for s in signals if s.offset is not None]
    bias = np.sum(offsets, axis=0) if offsets else None
    population = Population(signals[0].size, 1.0, threshold, bias, role)
    name = writer.plan.add(name, population, {"a_in": arrival.ports}, arrival.valid)
    return Signal(signals[0].shape, (name,), arrival.valid)
