"""Every value between the neurons, recomputed from their spikes: exact integers wherever the graph knows units.

A value of domain `s * {0..m}` is held as its integers k = value / s, so that no float rounding can decide
whether an event is there. Only a real value that a counted layer reads (the input, or the middle of an
unfolded factor pair) is computed in floating point, in float64 by the interpreter's own functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np

from stdeploy.energy.windows import Windows, pool_windows
from stdeploy.errors import UserError
from stdeploy.graph import ops
from stdeploy.graph.execution import batch_size
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.interpreter import EVALUATE, steps_first
from stdeploy.graph.selection import pick, ranked, score_domain, select_of
from stdeploy.graph.value import REAL, Domain
from stdeploy.graph.weight import Array

LARGEST = 2.0**60
"""Bound of a real input, for its exact sums in fixed point."""


class Signals:
    """Values of one batch, `[rows, B, *shape]`; rows = T for a per-step value, else 1. Computed on demand, once.

    `selections` are the positions that an executor chose at each Select; those not given are chosen here.
    Raises UserError where the inputs or spikes do not fit the graph, are not finite, or not 0 and 1.
    """

    def __init__(
        self,
        graph: Graph,
        inputs: Array,
        spikes: Mapping[str, Array],
        selections: Mapping[str, Array] | None = None,
    ) -> None:
        self.graph = graph
        self._selections = dict(selections or {})
        (node,) = graph.inputs
        if not isinstance(node.op, ops.Input):
            raise TypeError(f"{node.name} is not an Input")
        data = np.asarray(inputs)
        self.batch = batch_size(data, node.op.layout, node.op.shape, graph.steps)
        if data.dtype.kind not in "biuf":
            raise UserError(f"the input holds {data.dtype}, not numbers")
        if not np.all(np.isfinite(data)):
            raise UserError("the input holds values that are not finite", hint="look for NaN in the data")
        if data.size and float(np.abs(data.astype(np.float64)).max()) >= LARGEST:
            raise UserError(
                f"the input holds values beyond {LARGEST:.0e}", hint="is it scaled as the model takes it?"
            )
        data = steps_first(node, data, graph.steps)
        self._units: dict[str, Array] = {}
        self._reals: dict[str, Array] = {}
        self._nonzero: dict[str, Array] = {}
        self._shared: dict[Hashable, Any] = {}
        self._take_input(node, data[None] if node.op.layout == "B" else data)
        for neuron in graph.neurons:
            self._units[neuron.name] = _checked(neuron, spikes, graph.steps, self.batch)

    def _take_input(self, node: Node, data: Array) -> None:
        domain = node.value.domain
        if domain.maximum is None:
            self._reals[node.name] = data.astype(np.float64, copy=False)
            return
        units = data / domain.scale
        if units.size and (
            units.min() < 0 or units.max() > domain.maximum or np.any(units != np.rint(units))
        ):
            raise UserError(
                f"the input holds other values than {domain}", hint="count it as a real-valued input"
            )
        self._units[node.name] = units.astype(_integer(domain.maximum))

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """`compute()`, remembered under `key`: what layers that read the same value share."""
        if key not in self._shared:
            self._shared[key] = compute()
        return self._shared[key]

    def rows(self, name: str) -> int:
        return self.graph.steps if self.graph[name].value.time == "step" else 1

    def is_real(self, name: str) -> bool:
        return self.graph[name].value.domain.maximum is None

    def nonzero(self, name: str) -> Array:
        """Where the value is not zero, bool."""
        if name not in self._nonzero:
            x = self.real(name) if self.is_real(name) else self.units(name)
            spike = x.dtype == np.uint8 and self.graph[name].value.domain.kind == "spike"
            self._nonzero[name] = x.view(np.bool_) if spike else x != 0
        return self._nonzero[name]

    def units(self, name: str) -> Array:
        """The integers k of a value of a known unit (not of a real one)."""
        if name not in self._units:
            node = self.graph[name]
            wanted = _integer(node.value.domain.maximum or 0)
            units = INTEGER[type(node.op)](self, node)
            self._units[name] = np.ascontiguousarray(units).astype(wanted, copy=False)
        return self._units[name]

    def real(self, name: str) -> Array:
        """The value itself in float64."""
        if name not in self._reals:
            node = self.graph[name]
            if node.value.domain.maximum is not None:
                self._reals[name] = self.units(name) * node.value.domain.scale
            else:
                self._reals[name] = self._evaluate(node)
        return self._reals[name]

    def operand(self, name: str, rows: int, values: Array) -> Array:
        """`values` of a node with as many rows and samples as its consumer has."""
        return np.broadcast_to(values, (rows, self.batch, *self.graph[name].value.shape))

    def picked(self, node: Node, values: Array) -> Array:
        """What a Select keeps of `values` of its first input."""
        op, rows = select_of(node), self.rows(node.name)
        name, scores = node.inputs
        if node.name not in self._selections:
            key = self.real(scores) if self.is_real(scores) else self.units(scores)
            unit = REAL if self.is_real(scores) else Domain(1.0, score_domain(self.graph, node).maximum)
            numbers = self.operand(scores, rows, key).reshape(rows, self.batch, -1).astype(np.float64)
            self._selections[node.name] = ranked(op, numbers, unit)
        chosen = np.broadcast_to(self._selections[node.name], (rows, self.batch, op.count))
        kept = pick(_merge(self.operand(name, rows, values)), _merge(chosen))
        return kept.reshape(rows, self.batch, *kept.shape[1:])

    def _evaluate(self, node: Node) -> Array:
        op = node.op
        if isinstance(op, ops.Select):
            return self.picked(node, self.real(node.inputs[0]))
        if isinstance(op, ops.Constant):
            return _constant(op)
        if isinstance(op, ops.Readout):
            x = self.real(node.inputs[0])
            if op.mode == "last":
                return x[-1:]
            return np.asarray(x.mean(0, keepdims=True)) if op.mode == "mean" else _over_steps(self, node, x)
        rows = self.rows(node.name)
        args = [self.operand(n, rows, self.real(n)) for n in node.inputs]
        biased = isinstance(op, ops.Linear | ops.Conv) and op.bias is not None and op.bias.ndim == 2
        groups = [slice(t, t + 1) for t in range(rows)] if biased else [slice(None)]
        parts = []
        for t, group in enumerate(groups):
            merged = [_merge(a[group]) for a in args]
            y = EVALUATE[type(op)](op, merged, np.dtype(np.float64), t)
            parts.append(y.reshape(-1, self.batch, *y.shape[1:]))
        return np.concatenate(parts) if len(parts) > 1 else parts[0]

    def linear_map(self, node: Node, args: list[Array], dtype: Any) -> Array:
        """A bilinear operator's own function on other operands (masks, integers), `[rows, B, *shape]`."""
        rows = self.rows(node.name)
        merged = [
            _merge(self.operand(n, rows, a)).astype(dtype) for n, a in zip(node.inputs, args, strict=True)
        ]
        y = EVALUATE[type(node.op)](node.op, merged, np.dtype(dtype), 0)
        return y.reshape(rows, self.batch, *y.shape[1:])


def float_for(bound: int) -> Any:
    """The float type that holds every integer up to `bound` exactly; TypeError beyond 2**53."""
    if bound < 1 << 24:
        return np.float32
    if bound < 1 << 53:
        return np.float64
    raise TypeError(f"integers up to {bound} have no exact float form")


def _integer(maximum: int) -> Any:
    for kind in (np.uint8, np.uint16, np.int32):
        if maximum <= np.iinfo(kind).max:
            return kind
    return np.int64


def _checked(node: Node, spikes: Mapping[str, Array], steps: int, batch: int) -> Array:
    if node.name not in spikes:
        raise UserError(
            f"there are no spikes of {node.name}", hint="run the network with its spikes recorded"
        )
    array = np.asarray(spikes[node.name])
    wanted = (steps, batch, *node.value.shape)
    if array.shape != wanted:
        raise UserError(f"the spikes of {node.name} have shape {array.shape}, the graph's {wanted}")
    if array.dtype == np.bool_:
        return np.ascontiguousarray(array).view(np.uint8)
    if array.size and (array.max() > 1 or array.min() < 0 or (array.dtype.kind == "f" and np.any(array % 1))):
        raise UserError(f"the spikes of {node.name} are not 0 and 1")
    return np.ascontiguousarray(array, dtype=np.uint8)


def _merge(array: Array) -> Array:
    return array.reshape(-1, *array.shape[2:])


def _constant(op: ops.Constant) -> Array:
    value = np.asarray(op.value, np.float64)
    return value[:, None] if op.per_step else value[None, None]


def _over_steps(signals: Signals, node: Node, x: Array) -> Array:
    """Sum over the steps; a static value counts at every step."""
    repeats = signals.graph.steps if signals.graph[node.inputs[0]].value.time == "static" else 1
    return np.asarray(x.sum(0, keepdims=True) * repeats)


def _units_of_constant(signals: Signals, node: Node) -> Array:
    if not isinstance(node.op, ops.Constant):
        raise TypeError(f"{node.name} is not a Constant")
    return np.rint(_constant(node.op) / node.value.domain.scale)


def _units_of_sum(signals: Signals, node: Node) -> Array:
    rows = signals.rows(node.name)
    wanted = _integer(node.value.domain.maximum or 0)
    a, b = (signals.operand(n, rows, signals.units(n)) for n in node.inputs)
    return np.add(a, b, dtype=wanted)


def _units_of_product(signals: Signals, node: Node) -> Array:
    operands = [signals.units(n) for n in node.inputs]
    return signals.linear_map(node, operands, _float_of(signals, node, operands))


def _float_of(signals: Signals, node: Node, operands: list[Array]) -> Any:
    """The float type that holds a (multi)linear operator's sums of these integers; UserError where none does."""
    possible = math.prod(value.domain.maximum or 1 for value in signals.graph.values(node))
    terms = max(1, (node.value.domain.maximum or 0) // possible)
    largest = terms * math.prod(int(x.max(initial=0)) for x in operands)
    if largest >= 1 << 53:
        raise UserError(
            f"{node.name}: sums up to {largest} cannot be counted exactly", hint="are these event frames?"
        )
    return float_for(largest)


def _units_of_affine(signals: Signals, node: Node) -> Array:
    """Spikes that an Affine makes of spikes, as 1 - x does."""
    op = node.op
    if not isinstance(op, ops.Affine):
        raise TypeError(f"{node.name} is not an Affine")
    x = signals.real(node.inputs[0]).astype(np.float64)
    trailing = (-1, *([1] * (x.ndim - 3)))
    y = x * np.reshape(op.scale, trailing) + np.reshape(op.shift, trailing)
    return np.asarray(np.rint(y / node.value.domain.scale))


def _units_of_linear(signals: Signals, node: Node) -> Array:
    op = node.op
    if not isinstance(op, ops.Linear):
        raise TypeError(f"{node.name} is not a Linear")
    x = signals.units(node.inputs[0])
    kind = _float_of(signals, node, [x])
    flat = x.reshape(*x.shape[:3], -1).astype(kind)
    return np.asarray((op.weight.array() != 0).astype(kind) @ flat).reshape(*x.shape[:2], -1, *x.shape[3:])


def _units_of_readout(signals: Signals, node: Node) -> Array:
    op = node.op
    if not isinstance(op, ops.Readout):
        raise TypeError(f"{node.name} is not a Readout")
    x = signals.units(node.inputs[0])
    return x[-1:] if op.mode == "last" else _over_steps(signals, node, x.astype(np.int64))


def _units_of_reduce(signals: Signals, node: Node) -> Array:
    op = node.op
    if not isinstance(op, ops.Reduce):
        raise TypeError(f"{node.name} is not a Reduce")
    x = signals.units(node.inputs[0])
    kind = _integer(node.value.domain.maximum or 0)
    return np.asarray(x.sum(axis=tuple(a + 2 for a in op.over), keepdims=op.keepdims, dtype=kind))


def _units_of_pool(signals: Signals, node: Node) -> Array:
    x = signals.units(node.inputs[0])
    windows: Windows = pool_windows(node, x.shape[3:])
    if isinstance(node.op, ops.MaxPool):
        return windows.combine(x, np.maximum)
    return windows.combine(x.astype(_integer(node.value.domain.maximum or 0)), np.add)


def _units_same(signals: Signals, node: Node) -> Array:
    return signals.units(node.inputs[0])


def _units_of_flatten(signals: Signals, node: Node) -> Array:
    x = signals.units(node.inputs[0])
    return x.reshape(*x.shape[:2], *node.value.shape)


def _units_of_concat(signals: Signals, node: Node) -> Array:
    op = node.op
    if not isinstance(op, ops.Concat):
        raise TypeError(f"{node.name} is not a Concat")
    rows = signals.rows(node.name)
    return np.concatenate([signals.operand(n, rows, signals.units(n)) for n in node.inputs], axis=op.axis + 2)


def _units_of_slice(signals: Signals, node: Node) -> Array:
    op = node.op
    if not isinstance(op, ops.Slice):
        raise TypeError(f"{node.name} is not a Slice")
    x = signals.units(node.inputs[0])
    return x[(slice(None),) * (op.axis + 2) + (slice(op.start, op.stop),)]


def _units_of_select(signals: Signals, node: Node) -> Array:
    return signals.picked(node, signals.units(node.inputs[0]))


INTEGER: dict[type[ops.Op], Any] = {
    ops.Affine: _units_of_affine,
    ops.Constant: _units_of_constant,
    ops.Linear: _units_of_linear,
    ops.MaxPool: _units_of_pool,
    ops.AvgPool: _units_of_pool,
    ops.Reduce: _units_of_reduce,
    ops.Add: _units_of_sum,
    ops.Mul: _units_of_product,
    ops.Scale: _units_same,
    ops.MatMul: _units_of_product,
    ops.Flatten: _units_of_flatten,
    ops.Concat: _units_of_concat,
    ops.Slice: _units_of_slice,
    ops.Select: _units_of_select,
    ops.Readout: _units_of_readout,
    ops.Output: _units_same,
}
"""Integers of a value by operator, for those that can yield a known unit."""
