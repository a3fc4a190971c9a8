"""Model neurons as nir.LIF, and the memoryless unit.

With u = v - v_reset every hard-reset LIF starts at u = 0, resets to u = 0 and charges
u + (x - u) / tau (decay_input), or u + (tau x - u) / tau (without). Integrate-and-fire is the latter with a tau
so long that nothing is forgotten. NIR's r = 1 form is the first; so the
input's factor tau and the threshold v_threshold - v_reset remain. What is the same for all channels goes into
the threshold and leaves the weights as they are; what differs goes into the rows that drive the neuron.
"""

from __future__ import annotations

import numpy as np

from stdeploy.exporters.nir.dialect import Rules
from stdeploy.exporters.nir.plan import UNIT_TAU, LifNode, Part, Role, Shape
from stdeploy.exporters.nir.signal import Lazy, Signal, Writer
from stdeploy.exporters.refusal import Refusal
from stdeploy.graph.graph import Node
from stdeploy.graph.ops import Neuron
from stdeploy.graph.weight import Array

IF_TAU = 2.0**30
"""tau of an integrate-and-fire neuron, in steps.

Readers disagree on nir.IF (a leak, or an input scale of their own). A LIF that forgets 2^-30 of its membrane in a
step forgets nothing in float32, and a power of two scales threshold and membrane without rounding.
"""

MOST_TAUS = 16
"""Distinct tau per layer that are lowered to one branch each."""


def unit(writer: Writer, name: str, sources: list[str], shape: Shape, threshold: float, role: Role) -> str:
    """A memoryless neuron that fires where the sum of its sources reaches `threshold`."""
    return writer.plan.add(name, LifNode(UNIT_TAU, threshold, shape, memoryless=True), sources, role)


def lower_neuron(writer: Writer, node: Node, signal: Signal) -> Signal:
    """One LIF node, or one for each distinct tau with its channels brought back in order."""
    op = node.op
    if not isinstance(op, Neuron):
        raise TypeError(f"{node.name} is no neuron")
    native = writer.rules.native_tau
    taus, threshold, factor = _parameters(op, signal.shape[0], writer.rules)
    if op.v_threshold.ndim == 0 and (op.v_reset is None or op.v_reset.ndim == 0):
        threshold = threshold[:1]
    if np.unique(threshold).size == 1 and np.unique(factor).size == 1:
        scale = signal.common_scale
        signal, gain = signal.divided(scale), None
        level = float(threshold[0]) / (scale * float(factor[0]))
    else:
        gain, level = factor / threshold, 1.0
    levels = np.unique(taus)
    if levels.size == 1 or native:
        sources = writer.edges(node.name, signal, gain)
        tau = float(levels[0]) if levels.size == 1 else taus
        lif = LifNode(tau, level, signal.shape, memoryless=bool(np.all(taus == 1)))
        name = writer.plan.add(node.name, lif, sources)
        writer.plan.neurons[node.name] = [Part(name)]
        return Signal(signal.shape, {name: 1.0})
    return _branches(writer, node, signal, gain, taus, level)


def _branches(
    writer: Writer, node: Node, signal: Signal, gain: Array | None, taus: Array, level: float
) -> Signal:
    """A LIF for each tau; one-hot convolutions put their channels back in the model's order."""
    channels, *space = signal.shape
    parts, places = [], []
    for i, tau in enumerate(np.unique(taus)):
        rows = np.flatnonzero(taus == tau)
        shape = (len(rows), space[0], space[1])
        name = f"{node.name}.tau{i}"
        sources = writer.edges(name, signal, gain, rows)
        lif = writer.plan.add(name, LifNode(float(tau), level, shape), sources)
        parts.append(Part(lif, rows))
        place = np.zeros((channels, len(rows), 1, 1))
        place[rows, np.arange(len(rows))] = 1.0
        back = Lazy(f"{name}.place", (lif,), place, np.zeros(channels), shape, signal.shape)
        places += writer.edges(name, Signal(signal.shape, convs={back: 1.0}))
    writer.plan.neurons[node.name] = parts
    return Signal(signal.shape, {writer.join(f"{node.name}.join", places, signal.shape): 1.0})


def _parameters(op: Neuron, channels: int, rules: Rules) -> tuple[Array, Array, Array]:
    """tau, v_threshold - v_reset and the input's factor by channel; Refusal where no reader has the dynamics."""
    if op.v_reset is None:
        raise Refusal("soft reset: NIR's neurons reset to a value", "train with a hard reset (v_reset)")
    tau = np.asarray(IF_TAU) if op.tau is None else op.tau
    wide = [np.broadcast_to(a, (channels,)).astype(np.float64) for a in (tau, op.v_threshold, op.v_reset)]
    taus, threshold = wide[0], wide[1] - wide[2]
    if np.any(taus <= 1) and not (np.all(taus == 1) and rules.threshold_node == "nir.Threshold"):
        raise Refusal(
            f"tau = {taus.min():g}: SpikingJelly's reader takes tau above one step only",
            "the dialect compact writes a layer of tau = 1 as a nir.Threshold",
        )
    if np.any(threshold <= 0):
        raise Refusal("v_threshold is not above v_reset, so it fires at rest")
    levels = np.unique(taus).size
    if levels > MOST_TAUS and not rules.native_tau:
        raise Refusal(
            f"{levels} distinct tau: readers want one for all neurons of a node, and {MOST_TAUS} branches are"
            " the limit",
            f"stdeploy compress --tau-levels {MOST_TAUS} writes fewer and measures what that changes; the dialect"
            " arrays takes them as they are",
        )
    return taus, threshold, np.ones(channels) if op.decay_input and op.tau is not None else taus
