"""Which neurons an event reached: a mask that follows the events from layer to layer, whatever their values.

A neuron is touched at a step where an event arrives at one of its nonzero synapses; a bias or a constant is no
event. Values are not needed for that, only where events are and which weights are zero.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from stdeploy.energy.signals import Signals
from stdeploy.energy.sums import per_sample
from stdeploy.energy.windows import conv_windows, pool_windows
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.weight import Array


class Reach:
    """Masks `[rows, B, *shape]` by node, on demand; the channel axis has size 1 where all channels share one."""

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self._masks: dict[str, Array] = {}
        self.constant = _constants(signals.graph)

    def count(self, node: Node) -> Array:
        """How many neurons of a neuron layer are touched, `[T, B]` int64."""
        mask = self.mask(node.inputs[0])
        shape = node.value.shape
        times = shape[0] if shape and mask.shape[2] == 1 else 1
        steps, batch = self.signals.graph.steps, self.signals.batch
        return np.broadcast_to(per_sample(mask) * times, (steps, batch))

    def mask(self, name: str) -> Array:
        """Where an event arrives at the value of node `name`."""
        if name not in self._masks:
            self._masks[name] = REACH[type(self.signals.graph[name].op)](self, self.signals.graph[name])
        return self._masks[name]

    def present(self, name: str) -> Array:
        """Where the value can differ from zero: by an event or, before any weight, by a constant."""
        if name not in self.constant:
            return self.full(name)
        return self.signals.nonzero(name)

    def full(self, name: str) -> Array:
        """The mask with all its channels."""
        mask = self.mask(name)
        return np.broadcast_to(mask, (*mask.shape[:2], *self.signals.graph[name].value.shape))

    def operands(self, node: Node) -> list[Array]:
        rows = self.signals.rows(node.name)
        return [self.signals.operand(n, rows, self.full(n)) for n in node.inputs]


def _constants(graph: Graph) -> frozenset[str]:
    """Values that a Constant of the graph, and not only events, makes differ from zero."""
    found: set[str] = set()
    for node in graph:
        if isinstance(node.op, ops.Constant):
            found.add(node.name)
        elif not isinstance(node.op, ops.Neuron | ops.Mul | ops.MatMul):
            found.update([node.name] if any(n in found for n in node.inputs) else [])
        elif not isinstance(node.op, ops.Neuron) and all(n in found for n in node.inputs):
            found.add(node.name)
    return frozenset(found)


def _event(reach: Reach, node: Node) -> Array:
    return reach.signals.nonzero(node.name)


def _none(reach: Reach, node: Node) -> Array:
    return np.zeros((1, reach.signals.batch, *node.value.shape), np.bool_)


def _same(reach: Reach, node: Node) -> Array:
    return reach.mask(node.inputs[0])


def _linear(reach: Reach, node: Node) -> Array:
    op = node.op
    if not isinstance(op, ops.Linear):
        raise TypeError(f"{node.name} is not a Linear")
    x = reach.full(node.inputs[0])
    nonzero = op.weight.array() != 0
    if nonzero.all():
        name = node.inputs[0]
        return np.asarray(reach.signals.once(("any", name), lambda: x.any(2, keepdims=True)))
    positions = np.moveaxis(x.reshape(*x.shape[:3], -1), 2, 3)
    touched = _reached(np.ascontiguousarray(positions).reshape(-1, x.shape[2]), nonzero)
    touched = touched.reshape(*positions.shape[:3], nonzero.shape[0])
    return np.moveaxis(touched, 3, 2).reshape(*x.shape[:2], nonzero.shape[0], *x.shape[3:])


def _reached(events: Array, nonzero: Array) -> Array:
    """`[n, out]` bool: which outputs have a nonzero weight `[out, in]` from any event `[n, in]`.

    Inputs are taken a quarter at a time, and after each only where an output is still waiting: mostly few are.
    """
    live = np.flatnonzero(nonzero.any(1))
    waiting = np.flatnonzero(events.any(1))
    touched = np.zeros((len(events), live.size), np.bool_)
    weights = nonzero[live].T.astype(np.float32)
    quarters = [i * nonzero.shape[1] // 4 for i in range(5)]
    for first, stop in pairwise(quarters):
        found = events[waiting, first:stop].astype(np.float32) @ weights[first:stop] > 0
        found |= touched[waiting]
        touched[waiting] = found
        waiting = waiting[~found.all(1)]
        if not waiting.size:
            break
    if live.size == nonzero.shape[0]:
        return touched
    out = np.zeros((len(events), nonzero.shape[0]), np.bool_)
    out[:, live] = touched
    return out


def _conv(reach: Reach, node: Node) -> Array:
    op = node.op
    if not isinstance(op, ops.Conv):
        raise TypeError(f"{node.name} is not a Conv")
    x = reach.full(node.inputs[0])
    windows = conv_windows(op, node, x.shape[3:])
    nonzero = op.weight.array() != 0
    if nonzero.all():
        groups = np.asarray(x.reshape(*x.shape[:2], op.groups, -1, *x.shape[3:]).any(3))
        mask = windows.combine(groups, np.logical_or)
        return mask if op.groups == 1 else mask.repeat(nonzero.shape[0] // op.groups, axis=2)
    y: Any = np.zeros((*x.shape[:2], *node.value.shape), np.float32)
    inputs = np.split(x.astype(np.float32), op.groups, axis=2)
    outputs = np.split(y, op.groups, axis=2)
    for part, out, weight in zip(inputs, outputs, np.split(nonzero, op.groups), strict=True):
        for tap in np.ndindex(*windows.kernel):
            seen = windows.at(part, tap)
            flat = seen.reshape(*seen.shape[:3], -1)
            out += (weight[(..., *tap)].astype(np.float32) @ flat).reshape(out.shape)
    return np.asarray(y > 0)


def _pool(reach: Reach, node: Node) -> Array:
    x = reach.mask(node.inputs[0])
    return pool_windows(node, x.shape[3:]).combine(x, np.logical_or)


def _either(reach: Reach, node: Node) -> Array:
    rows = reach.signals.rows(node.name)
    a, b = (reach.mask(n) for n in node.inputs)
    if a.shape[2] == b.shape[2] == 1 and a.shape[3:] == b.shape[3:]:
        return np.asarray(a | b)
    a, b = (reach.signals.operand(n, rows, reach.full(n)) for n in node.inputs)
    return np.asarray(a | b)


def _product(reach: Reach, node: Node) -> Array:
    """An event meets an event, or a constant that is not zero: a constant is a weight there."""
    if not reach.signals.is_real(node.name) and not all(n in reach.constant for n in node.inputs):
        return reach.signals.nonzero(node.name)
    rows = reach.signals.rows(node.name)
    a, b = reach.operands(node)
    there_a, there_b = (reach.signals.operand(n, rows, reach.present(n)) for n in node.inputs)
    if isinstance(node.op, ops.Mul):
        return np.asarray((a & there_b) | (there_a & b))
    first, second = (
        reach.signals.linear_map(node, pair, np.float32) for pair in ([a, there_b], [there_a, b])
    )
    return np.asarray(first + second > 0)


def _reduce(reach: Reach, node: Node) -> Array:
    op = node.op
    if not isinstance(op, ops.Reduce):
        raise TypeError(f"{node.name} is not a Reduce")
    x = reach.full(node.inputs[0])
    return np.asarray(x.any(axis=tuple(a + 2 for a in op.over), keepdims=op.keepdims))


def _flatten(reach: Reach, node: Node) -> Array:
    x = reach.full(node.inputs[0])
    return x.reshape(*x.shape[:2], *node.value.shape)


def _concat(reach: Reach, node: Node) -> Array:
    op = node.op
    if not isinstance(op, ops.Concat):
        raise TypeError(f"{node.name} is not a Concat")
    return np.concatenate(reach.operands(node), axis=op.axis + 2)


def _slice(reach: Reach, node: Node) -> Array:
    op = node.op
    if not isinstance(op, ops.Slice):
        raise TypeError(f"{node.name} is not a Slice")
    x = reach.full(node.inputs[0])
    return x[(slice(None),) * (op.axis + 2) + (slice(op.start, op.stop),)]


def _select(reach: Reach, node: Node) -> Array:
    return reach.signals.picked(node, reach.full(node.inputs[0]))


REACH: dict[type[ops.Op], Any] = {
    ops.Input: _event,
    ops.Constant: _none,
    ops.Neuron: _event,
    ops.Linear: _linear,
    ops.Conv: _conv,
    ops.Affine: _same,
    ops.Scale: _same,
    ops.MaxPool: _pool,
    ops.AvgPool: _pool,
    ops.Reduce: _reduce,
    ops.Add: _either,
    ops.Mul: _product,
    ops.MatMul: _product,
    ops.Flatten: _flatten,
    ops.Concat: _concat,
    ops.Slice: _slice,
    ops.Select: _select,
}
"""Where events arrive, by operator; after the last neuron nothing asks, so a Readout has no rule."""
