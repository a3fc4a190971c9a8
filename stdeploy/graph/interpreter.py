"""The reference interpreter: the definition of a graph's meaning, one step at a time, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stdeploy.errors import UserError
from stdeploy.graph import ops
from stdeploy.graph.execution import Execution, batch_size
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.selection import pick, ranked, score_domain
from stdeploy.graph.value import Value
from stdeploy.graph.weight import Array


class Interpreter:
    """Runs a graph in numpy in `dtype` (float64 or float32).

    With `membranes` every neuron's charged membrane h is returned too.
    """

    def __init__(self, graph: Graph, dtype: Any = np.float64, *, membranes: bool = False) -> None:
        self.graph = graph
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.membranes = membranes
        self.name = f"interpreter {self.dtype.name}"

    def run(self, inputs: Array, forced: Mapping[str, Array] | None = None) -> Execution:
        """Run a batch given in the Input's layout; UserError where its shape does not fit."""
        return _Run(self, np.asarray(inputs), forced or {}).execute()


def interpret(
    graph: Graph,
    inputs: Array,
    *,
    dtype: Any = np.float64,
    forced: Mapping[str, Array] | None = None,
    membranes: bool = False,
) -> Execution:
    """Run `graph` once on `inputs`; see Interpreter."""
    return Interpreter(graph, dtype, membranes=membranes).run(inputs, forced)


def steps_first(node: Node, inputs: Array, steps: int) -> Array:
    """The batch as `[B, *shape]` (static) or `[T, B, *shape]`, from the Input's layout.

    Raises UserError that names the expected shape where `inputs` do not have it.
    """
    op = node.op
    if not isinstance(op, ops.Input):
        raise TypeError(f"{node.name} is not an Input")
    batch_size(inputs, op.layout, op.shape, steps)
    return np.swapaxes(inputs, 0, 1) if op.layout == "BT" else inputs


def check_forced(graph: Graph, forced: Mapping[str, Array]) -> None:
    """UserError where `forced` names what is neither a neuron nor a Select of the graph."""
    known = {n.name for n in graph if isinstance(n.op, ops.Neuron | ops.Select)}
    unknown = sorted(set(forced) - known)
    if unknown:
        raise UserError(f"forced spikes name neurons that the graph does not have: {', '.join(unknown)}")


def forced_selection(node: Node, positions: Array) -> Array:
    """Forced positions `[T or 1, B, count]` as they are; UserError where a Select cannot keep them."""
    array = np.asarray(positions)
    op = node.op
    if not isinstance(op, ops.Select):
        raise TypeError(f"{node.name} is not a Select")
    if array.ndim != 3 or array.shape[2] != op.count:
        raise UserError(f"forced positions of {node.name} have shape {array.shape}, it keeps {op.count}")
    return array


@dataclass
class _Run:
    interpreter: Interpreter
    inputs: Array
    forced: Mapping[str, Array]
    static: dict[str, Array] = field(default_factory=dict)
    state: dict[str, Array] = field(default_factory=dict)
    sums: dict[str, Array] = field(default_factory=dict)
    spikes: dict[str, list[Array]] = field(default_factory=dict)
    membranes: dict[str, list[Array]] = field(default_factory=dict)
    outputs: dict[str, list[Array]] = field(default_factory=dict)
    selections: dict[str, list[Array]] = field(default_factory=dict)

    def execute(self) -> Execution:
        graph = self.interpreter.graph
        check_forced(graph, self.forced)
        self._evaluate("static", self.static, 0)
        for t in range(graph.steps):
            self._evaluate("step", dict(self.static), t)
        final = {**self.static, **self.sums}
        self._evaluate("final", final, 0)
        return Execution(
            outputs={label: self._stack_output(label, parts) for label, parts in self.outputs.items()},
            spikes={name: np.stack(parts) for name, parts in self.spikes.items()},
            membranes={name: np.stack(parts) for name, parts in self.membranes.items()},
            selections={name: np.stack(parts) for name, parts in self.selections.items()},
        )

    def _stack_output(self, label: str, parts: list[Array]) -> Array:
        op = next(
            n.op
            for n in self.interpreter.graph.outputs
            if isinstance(n.op, ops.Output) and n.op.label == label
        )
        if op.layout == "B":
            return op.returned(parts[0])
        return op.returned(np.stack(parts, axis=0 if op.layout == "TB" else 1))

    def _evaluate(self, time: str, values: dict[str, Array], t: int) -> None:
        graph = self.interpreter.graph
        for node in graph:
            if isinstance(node.op, ops.Readout):
                if graph[node.inputs[0]].value.time == time:
                    self._readout(node, values[node.inputs[0]], t)
            elif node.value.time == time:
                values[node.name] = self._apply(node, [values[n] for n in node.inputs], t)

    def _apply(self, node: Node, args: list[Array], t: int) -> Array:
        op, dtype = node.op, self.interpreter.dtype
        if isinstance(op, ops.Input):
            batch = steps_first(node, self.inputs, self.interpreter.graph.steps).astype(dtype)
            return batch if op.layout == "B" else batch[t]
        if isinstance(op, ops.Constant):
            value = op.value[t] if op.per_step else op.value
            return np.asarray(value, dtype=dtype)[None]
        if isinstance(op, ops.Neuron):
            return self._fire(node, op, args[0], t)
        if isinstance(op, ops.Select):
            return self._select(node, op, args[0], args[1], t)
        if isinstance(op, ops.Output):
            self.outputs.setdefault(op.label, []).append(args[0])
            return args[0]
        return EVALUATE[type(op)](op, args, dtype, t)

    def _select(self, node: Node, op: ops.Select, x: Array, scores: Array, t: int) -> Array:
        """The tokens that the scores choose; consumers get the forced ones where there are any."""
        batch = max(x.shape[0], scores.shape[0])
        domain = score_domain(self.interpreter.graph, node)
        own = ranked(op, scores.reshape(scores.shape[0], -1), domain)
        self.selections.setdefault(node.name, []).append(np.broadcast_to(own, (batch, op.count)))
        if node.name not in self.forced:
            return pick(x, own)
        return pick(x, forced_selection(node, self.forced[node.name])[t])

    def _readout(self, node: Node, x: Array, t: int) -> None:
        op, steps = node.op, self.interpreter.graph.steps
        if not isinstance(op, ops.Readout):
            raise TypeError(f"{node.name} is not a Readout")
        static = self.interpreter.graph[node.inputs[0]].value.time == "static"
        if op.mode == "last" or static:
            factor = steps if static and op.mode == "sum" else 1
            self.sums[node.name] = x * self.interpreter.dtype.type(factor)
            return
        total = self.sums[node.name] + x if t else x
        last = t == steps - 1 and op.mode == "mean"
        self.sums[node.name] = total / self.interpreter.dtype.type(steps) if last else total

    def _fire(self, node: Node, op: ops.Neuron, x: Array, t: int) -> Array:
        """Charge, fire, reset (ops.Neuron); consumers get the forced spikes where there are any."""
        dtype = self.interpreter.dtype
        threshold = _per_channel(op.v_threshold, x, dtype)
        rest = _per_channel(op.v_reset, x, dtype) if op.v_reset is not None else dtype.type(0)
        v = self.state[node.name] if t else np.broadcast_to(rest, x.shape)
        h = _charge(op, v, x, rest)
        spike = (h >= threshold).astype(dtype)
        self.state[node.name] = (
            (1 - spike) * h + spike * rest if op.v_reset is not None else h - spike * threshold
        )
        self.spikes.setdefault(node.name, []).append(spike.astype(np.uint8))
        if self.interpreter.membranes:
            self.membranes.setdefault(node.name, []).append(h)
        if node.name not in self.forced:
            return spike
        forced = np.asarray(self.forced[node.name])
        if forced.shape[2:] != spike.shape[1:] or forced.shape[0] != self.interpreter.graph.steps:
            raise UserError(
                f"forced spikes of {node.name} have shape {forced.shape}, the neuron {spike.shape}"
            )
        return np.asarray(forced[t], dtype=dtype)


def _charge(op: ops.Neuron, v: Array, x: Array, rest: Any) -> Array:
    if op.tau is None:
        return v + x
    tau = _per_channel(op.tau, x, x.dtype)
    if op.decay_input:
        return np.asarray(v + (x - (v - rest)) / tau)
    return np.asarray(v - (v - rest) / tau + x)


def _per_channel(parameter: Array, x: Array, dtype: Any) -> Array:
    """A scalar or `[C]` parameter, shaped to broadcast over `x [B, C, *spatial]`."""
    value = np.asarray(parameter, dtype=dtype)
    return value.reshape(-1, *([1] * (x.ndim - 2))) if value.ndim else value


def _bias(y: Array, bias: Array | None, dtype: Any, t: int) -> Array:
    if bias is None:
        return y
    return y + _per_channel(bias[t] if bias.ndim == 2 else bias, y, dtype)


def _linear(op: ops.Linear, args: list[Array], dtype: Any, t: int) -> Array:
    (x,) = args
    weight = op.weight.array().astype(dtype)
    y = weight @ x.reshape(x.shape[0], x.shape[1], -1)
    return _bias(y.reshape(x.shape[0], weight.shape[0], *x.shape[2:]), op.bias, dtype, t)


def _windows(x: Array, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Array:
    """`[B, C, *out, *kernel]` view of the windows of a padded `x`."""
    span = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    view = sliding_window_view(x, span, axis=tuple(range(2, 2 + len(kernel))))
    outer = tuple(slice(None, None, s) for s in stride)
    inner = tuple(slice(None, None, d) for d in dilation)
    return view[(slice(None), slice(None), *outer, *inner)]


def _pad(x: Array, padding: tuple[tuple[int, int], ...], value: float) -> Array:
    return np.pad(x, ((0, 0), (0, 0), *padding), constant_values=value)


def _conv(op: ops.Conv, args: list[Array], dtype: Any, t: int) -> Array:
    weight = op.weight.array().astype(dtype)
    x = _pad(args[0], tuple((p, p) for p in op.padding), 0)
    kernel = weight.shape[2:]
    k = len(kernel)
    windows = _windows(x, kernel, op.stride, op.dilation)
    parts = []
    for wg, xg in zip(np.split(weight, op.groups), np.split(windows, op.groups, axis=1), strict=True):
        summed = [1, *range(2 + k, 2 + 2 * k)]
        parts.append(np.tensordot(xg, wg, axes=(summed, list(range(1, 2 + k)))))
    y = np.moveaxis(np.concatenate(parts, axis=-1), -1, 1)
    return _bias(y, op.bias, dtype, t)


def _pool_padding(
    x: Array, op: ops.MaxPool | ops.AvgPool, out: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Left padding as given; right padding up to what the last window reaches (ceil mode)."""
    dilation = op.dilation if isinstance(op, ops.MaxPool) else (1,) * len(op.kernel)
    pads = []
    for n, m, k, s, p, d in zip(x.shape[2:], out, op.kernel, op.stride, op.padding, dilation, strict=True):
        pads.append((p, max(p, (m - 1) * s + d * (k - 1) + 1 - n - p)))
    return tuple(pads)


def _pool_shape(op: ops.MaxPool | ops.AvgPool, x: Array) -> tuple[int, ...]:
    axes = ("channel", *(f"s{i}" for i in range(x.ndim - 2)))
    value = Value(tuple(x.shape[1:]), axes, "static")
    return op.infer([value], 1).shape[1:]


def _crop(windows: Array, out: tuple[int, ...]) -> Array:
    return windows[(slice(None), slice(None), *(slice(0, n) for n in out))]


def _maxpool(op: ops.MaxPool, args: list[Array], dtype: Any, t: int) -> Array:
    (x,) = args
    out = _pool_shape(op, x)
    padded = _pad(x, _pool_padding(x, op, out), -np.inf)
    windows = _crop(_windows(padded, op.kernel, op.stride, op.dilation), out)
    return np.asarray(windows.max(axis=tuple(range(x.ndim, windows.ndim))))


def _avgpool(op: ops.AvgPool, args: list[Array], dtype: Any, t: int) -> Array:
    """As PyTorch: in ceil mode what lies beyond the stated padding is never counted."""
    (x,) = args
    out = _pool_shape(op, x)
    pads = _pool_padding(x, op, out)
    ones = (1,) * len(op.kernel)
    windows = _crop(_windows(_pad(x, pads, 0), op.kernel, op.stride, ones), out)
    counted = np.ones((1, 1, *x.shape[2:]), dtype)
    inside = tuple((p, p) for p in op.padding) if op.count_include_pad else ((0, 0),) * len(op.kernel)
    counted = _pad(counted, inside, 1)
    rest = tuple((a - c, max(0, b - d)) for (a, b), (c, d) in zip(pads, inside, strict=True))
    divisor = _crop(_windows(_pad(counted, rest, 0), op.kernel, op.stride, ones), out)
    over = tuple(range(x.ndim, windows.ndim))
    return np.asarray(windows.sum(axis=over) / divisor.sum(axis=over))


def _reduce(op: ops.Reduce, args: list[Array], dtype: Any, t: int) -> Array:
    axes = tuple(a + 1 for a in op.over)
    function = np.mean if op.mean else np.sum
    return np.asarray(function(args[0], axis=axes, keepdims=op.keepdims))


def _heads(heads: tuple[int, ...]) -> Iterator[slice]:
    start = 0
    for size in heads:
        yield slice(start, start + size)
        start += size


def _matmul(op: ops.MatMul, args: list[Array], dtype: Any, t: int) -> Array:
    a, b = args
    batch = max(a.shape[0], b.shape[0])
    a, b = np.broadcast_to(a, (batch, *a.shape[1:])), np.broadcast_to(b, (batch, *b.shape[1:]))
    tokens_b = b.shape[2:]
    bn = b.reshape(batch, b.shape[1], -1)
    if op.over == "keys":
        rest = a.ndim - len(tokens_b)
        maps = a.reshape(batch, a.shape[1], -1, bn.shape[2])
        parts = [bn[:, s] @ maps[:, h].swapaxes(1, 2) for h, s in enumerate(_heads(op.heads_b))]
        return np.concatenate(parts, axis=1).reshape(batch, b.shape[1], *a.shape[2:rest])
    an = a.reshape(batch, a.shape[1], -1)
    if op.over == "channels":
        parts = [(an[:, s].swapaxes(1, 2) @ bn[:, s])[:, None] for s in _heads(op.heads_a)]
        return np.concatenate(parts, axis=1).reshape(batch, -1, *a.shape[2:], *tokens_b)
    slices = zip(_heads(op.heads_a), _heads(op.heads_b), strict=True)
    if op.over == "tokens":
        parts = [(an[:, i] @ bn[:, j].swapaxes(1, 2)).reshape(batch, -1) for i, j in slices]
        return np.concatenate(parts, axis=1)
    sizes = tuple(m * n for m, n in zip(op.heads_a, op.heads_b, strict=True))
    parts = []
    for (i, j), pair in zip(slices, _heads(sizes), strict=True):
        matrix = b[:, pair].reshape(batch, i.stop - i.start, j.stop - j.start)
        parts.append(matrix.swapaxes(1, 2) @ an[:, i])
    return np.concatenate(parts, axis=1).reshape(batch, -1, *a.shape[2:])


EVALUATE: dict[type[ops.Op], Callable[[Any, list[Array], Any, int], Array]] = {
    ops.Linear: _linear,
    ops.Conv: _conv,
    ops.Affine: lambda op, a, dt, t: (
        a[0] * _per_channel(op.scale, a[0], dt) + _per_channel(op.shift, a[0], dt)
    ),
    ops.MaxPool: _maxpool,
    ops.AvgPool: _avgpool,
    ops.Reduce: _reduce,
    ops.Add: lambda op, a, dt, t: a[0] + a[1],
    ops.Mul: lambda op, a, dt, t: a[0] * a[1],
    ops.Scale: lambda op, a, dt, t: a[0] * dt.type(op.factor),
    ops.MatMul: _matmul,
    ops.Flatten: lambda op, a, dt, t: a[0].reshape(*a[0].shape[: 2 if op.tokens else 1], -1),
    ops.Concat: lambda op, a, dt, t: np.concatenate(_same_batch(a), axis=op.axis + 1),
    ops.Slice: lambda op, a, dt, t: a[0][(slice(None),) * (op.axis + 1) + (slice(op.start, op.stop),)],
}
"""What each operator of the catalogue computes on `[B, *shape]` arrays at step t."""


def _same_batch(arrays: list[Array]) -> list[Array]:
    batch = max(a.shape[0] for a in arrays)
    return [np.broadcast_to(a, (batch, *a.shape[1:])) for a in arrays]
