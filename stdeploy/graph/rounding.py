"""How far a floating-point evaluation of a graph may stray from the exact one, value by value.

Running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., §3.3), with
every neuron's output fixed to given spikes, so that only what lies between two neuron layers adds up.
Each value x carries e with |computed x - x| <= e. A sum of n products in any order, with weights that
were themselves rounded, obeys e <= gamma_n sum |w||x| + sum |w| e_x.

gamma_n = (min(n, 8 sqrt(n)) + 4) u. The worst case n u is never met in practice and would hide bugs in wide
layers; 8 sqrt(n) u fails with probability below 2 exp(-32) = 3e-14 a sum (Higham & Mary, SIAM J. Sci.
Comput. 41(5), 2019, Theorem 3.1 with lambda = 8). The 4 pays for rounded and folded weights and biases.
Values that are integers times a power of two, and small enough, are exact: e = 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from stdeploy.errors import UserError
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.interpreter import EVALUATE, forced_selection, steps_first
from stdeploy.graph.selection import pick, ranked, score_domain
from stdeploy.graph.value import Domain
from stdeploy.graph.weight import Array, Weight

FLOAT32_ROUNDOFF = 2.0**-24
_F64 = np.dtype(np.float64)
_LARGEST_EXACT_COUNT = 2**24
_NEURON_ROUNDINGS = 8
"""Charge, decay and reset round at most six times in any order used here; two more for a rounded 1/tau."""


@dataclass(frozen=True, eq=False)
class Bounded:
    """Exact values (float64) and the bound of their absolute floating-point error, same shape."""

    value: Array
    error: Array


@dataclass(frozen=True, eq=False)
class Drives:
    """What reaches every neuron (`[T, B, *shape]` by name) and every output (the Output's layout, by label).

    `scores`: `[T or 1, B, N]` what every Select chooses by, by its name.
    """

    neurons: dict[str, Bounded]
    outputs: dict[str, Bounded]
    scores: dict[str, Bounded]


def drives(
    graph: Graph,
    inputs: Array,
    spikes: Mapping[str, Array],
    selections: Mapping[str, Array] | None = None,
    *,
    roundoff: float = FLOAT32_ROUNDOFF,
) -> Drives:
    """Every neuron's and output's input in float64, with its error bound, when neurons emit `spikes`.

    `inputs` in the Input's layout; `spikes` `[T, B, *shape]` for every neuron of the graph; `selections`
    `[T or 1, B, count]` the tokens that a Select keeps (without: those that its exact scores choose). Raises
    UserError where a neuron has no spikes or the input's shape does not fit.
    """
    missing = [n.name for n in graph.neurons if n.name not in spikes]
    if missing:
        raise UserError(f"no spikes are given for {', '.join(missing)}")
    return _Walk(graph, np.asarray(inputs), spikes, selections or {}, roundoff).execute()


def membrane(op: ops.Neuron, drive: Bounded, spikes: Array, *, roundoff: float = FLOAT32_ROUNDOFF) -> Bounded:
    """Charged membrane h `[T, B, *shape]` of a neuron that fired `spikes`, and the bound on |h - threshold|.

    The membrane follows the given spikes' resets, so each step is judged by itself: a flip at one step
    does not blur the next. The bound includes the rounding of the threshold. It is 0 where every order of
    evaluation is exact (short dyadic drive and reset, tau and threshold powers of two), so that `>` in the place of `>=` shows.
    """
    x, u = drive.value, roundoff
    tau = _parameter(op.tau, x) if op.tau is not None else None
    gain = 1.0 if tau is None or not op.decay_input else 1.0 / tau
    leak = 1.0 if tau is None else 1.0 - 1.0 / tau
    threshold = _parameter(op.v_threshold, x)
    rest = _parameter(op.v_reset, x) if op.v_reset is not None else np.zeros(())
    tidy = _power_of_two(threshold) & _short(rest) & (_power_of_two(tau) if tau is not None else True)
    clean = np.broadcast_to(tidy, x.shape[1:])
    v, ev = np.broadcast_to(rest, x.shape[1:]), np.broadcast_to(u * np.abs(rest), x.shape[1:])
    h, e, exact = np.empty_like(x), np.empty_like(x), np.empty(x.shape, dtype=bool)
    for t in range(x.shape[0]):
        h[t] = leak * (v - rest) + rest + gain * x[t]
        size = np.abs(v) + gain * np.abs(x[t]) + np.abs(rest)
        e[t] = leak * ev + gain * drive.error[t] + _NEURON_ROUNDINGS * u * size
        exact[t] = clean & (drive.error[t] == 0) & _short(x[t]) & _short(h[t])
        fired = spikes[t] != 0
        clean = exact[t] | (tidy & fired & (op.v_reset is not None))
        if op.v_reset is None:
            v = h[t] - fired * threshold
            ev = e[t] + u * (np.abs(h[t]) + fired * np.abs(threshold))
        else:
            v = np.where(fired, rest, h[t])
            ev = np.where(fired, u * np.abs(rest), e[t])
    return Bounded(h, np.where(exact, 0.0, e + 4 * u * np.abs(threshold)))


def _power_of_two(parameter: Array) -> Array:
    return np.asarray(np.frexp(parameter)[0] == 0.5)


def _short(values: Array) -> Array:
    """Numbers of at most 20 significant bits: sums and halves of a few of them are exact in float32's 24."""
    scaled = np.frexp(values)[0] * 2.0**20
    return np.asarray(scaled == np.round(scaled))


def _parameter(parameter: Array, x: Array) -> Array:
    """A scalar or `[C]` parameter, shaped to broadcast over one step of `x [T, B, C, *spatial]`."""
    value = np.asarray(parameter, dtype=np.float64)
    return value.reshape(-1, *([1] * (x.ndim - 3))) if value.ndim else value


@dataclass(frozen=True, eq=False)
class _Value:
    """A step's value; `error` None: exact."""

    x: Array
    error: Array | None

    @property
    def bound(self) -> Array:
        return np.zeros_like(self.x) if self.error is None else np.broadcast_to(self.error, self.x.shape)


@dataclass
class _Walk:
    graph: Graph
    inputs: Array
    spikes: Mapping[str, Array]
    selections: Mapping[str, Array]
    roundoff: float
    static: dict[str, _Value] = field(default_factory=dict)
    read: dict[str, list[_Value]] = field(default_factory=dict)
    seen: dict[str, list[_Value]] = field(default_factory=dict)
    magnitudes: dict[str, ops.Op] = field(default_factory=dict)

    def execute(self) -> Drives:
        graph, steps = self.graph, self.graph.steps
        self._evaluate("static", self.static, 0)
        for t in range(steps):
            self._evaluate("step", dict(self.static), t)
        final = {**self.static, **{name: self._readout(graph[name], v) for name, v in self.read.items()}}
        self._evaluate("final", final, 0)
        neurons = {n.name: _stack(self.seen[n.name], 0) for n in graph.neurons}
        outputs = {}
        for node in graph.outputs:
            op = node.op
            if isinstance(op, ops.Output):
                values = self.seen[node.name]
                found = (
                    Bounded(values[0].x, values[0].bound)
                    if op.layout == "B"
                    else _stack(values, 0 if op.layout == "TB" else 1)
                )
                outputs[op.label] = Bounded(op.returned(found.value), op.returned(found.error))
        scores = {n.name: _stack(self.seen[n.name], 0) for n in graph.of(ops.Select)}
        return Drives(neurons, outputs, scores)

    def _evaluate(self, time: str, values: dict[str, _Value], t: int) -> None:
        for node in self.graph:
            if isinstance(node.op, ops.Readout):
                if self.graph[node.inputs[0]].value.time == time:
                    self.read.setdefault(node.name, []).append(values[node.inputs[0]])
            elif node.value.time == time:
                values[node.name] = self._apply(node, [values[n] for n in node.inputs], t)

    def _apply(self, node: Node, args: list[_Value], t: int) -> _Value:
        op, u = node.op, self.roundoff
        if isinstance(op, ops.Input):
            batch = steps_first(node, self.inputs, self.graph.steps).astype(np.float64)
            return _Value(batch if op.layout == "B" else batch[t], None)
        if isinstance(op, ops.Constant):
            x = np.asarray(op.value[t] if op.per_step else op.value, dtype=np.float64)[None]
            return _Value(x, None if _exact(node.value.domain) else u * np.abs(x))
        if isinstance(op, ops.Neuron):
            self.seen.setdefault(node.name, []).append(args[0])
            return _Value(np.asarray(self.spikes[node.name][t], dtype=np.float64), None)
        if isinstance(op, ops.Output):
            self.seen.setdefault(node.name, []).append(args[0])
            return args[0]
        if isinstance(op, ops.Select):
            return self._select(node, op, args[0], args[1], t)
        y = EVALUATE[type(op)](op, [a.x for a in args], _F64, t)
        if _exact(node.value.domain) and all(a.error is None for a in args):
            return _Value(y, None)
        return _Value(y, self._error(node, args, y, t))

    def _select(self, node: Node, op: ops.Select, x: _Value, scores: _Value, t: int) -> _Value:
        """The kept tokens with their errors; the scores are noted, one row a sample."""
        batch = max(x.x.shape[0], scores.x.shape[0])
        rows = np.broadcast_to(scores.x, (batch, *scores.x.shape[1:])).reshape(batch, -1)
        error = np.broadcast_to(scores.bound, (batch, *scores.x.shape[1:])).reshape(batch, -1)
        self.seen.setdefault(node.name, []).append(_Value(rows, error))
        if node.name in self.selections:
            positions = forced_selection(node, self.selections[node.name])[t]
        else:
            positions = ranked(op, rows, score_domain(self.graph, node))
        return _Value(pick(x.x, positions), None if x.error is None else pick(x.bound, positions))

    def _error(self, node: Node, args: list[_Value], y: Array, t: int) -> Array | None:
        """Bound of the operator's result from those of its arguments (module docstring)."""
        op, u = node.op, self.roundoff
        a = args[0]
        if isinstance(op, ops.Flatten | ops.Concat | ops.Slice | ops.MaxPool):
            if all(v.error is None for v in args):
                return None
            return EVALUATE[type(op)](op, [v.bound for v in args], _F64, t)
        if isinstance(op, ops.Add):
            return a.bound + args[1].bound + u * np.abs(y)
        if isinstance(op, ops.Scale):
            return abs(op.factor) * a.bound + 2 * u * np.abs(y)
        if isinstance(op, ops.Mul | ops.MatMul):
            return self._product(node, a, args[1], t)
        magnitude = self._magnitude(node)
        error = _gamma(self._terms(node), u) * self._on(magnitude, np.abs(a.x), t)
        if a.error is not None:
            bare = magnitude if isinstance(op, ops.AvgPool | ops.Reduce) else _without_bias(magnitude)
            error = error + self._on(bare, a.error, t)
        return error

    def _product(self, node: Node, a: _Value, b: _Value, t: int) -> Array:
        function = EVALUATE[type(node.op)]
        x, y = np.abs(a.x), np.abs(b.x)
        terms = self._terms(node)
        error: Array = _gamma(terms, self.roundoff) * function(node.op, [x, y], _F64, t)
        if a.error is not None:
            error = error + function(node.op, [a.bound, y + b.bound], _F64, t)
        if b.error is not None:
            error = error + function(node.op, [x, b.bound], _F64, t)
        return error

    def _on(self, op: ops.Op, x: Array, t: int) -> Array:
        return EVALUATE[type(op)](op, [x], _F64, t)

    def _magnitude(self, node: Node) -> ops.Op:
        """The operator with every coefficient replaced by its magnitude."""
        if node.name not in self.magnitudes:
            self.magnitudes[node.name] = _magnitude(node.op)
        return self.magnitudes[node.name]

    def _terms(self, node: Node) -> int:
        """Length of the longest sum behind one element of the result."""
        op = node.op
        if isinstance(op, ops.Linear | ops.Conv):
            nonzero = np.count_nonzero(op.weight.array().reshape(op.weight.shape[0], -1), axis=1)
            return int(nonzero.max(initial=0)) + 1
        shape = self.graph[node.inputs[0]].value.shape
        if isinstance(op, ops.Reduce):
            return math.prod(shape[axis] for axis in op.over)
        if isinstance(op, ops.AvgPool):
            return math.prod(op.kernel)
        if isinstance(op, ops.MatMul):
            tokens = math.prod(self.graph[node.inputs[1]].value.shape[1:])
            return tokens if op.over in ("keys", "tokens") else max(op.heads_a, default=1)
        return 2

    def _readout(self, node: Node, values: list[_Value]) -> _Value:
        op, steps = node.op, self.graph.steps
        if not isinstance(op, ops.Readout):
            raise TypeError(f"{node.name} is not a Readout")
        if op.mode == "last":
            return values[-1]
        values = values * steps if len(values) == 1 else values
        share = 1.0 / steps if op.mode == "mean" else 1.0
        x = share * np.sum([v.x for v in values], axis=0)
        if _exact(node.value.domain) and all(v.error is None for v in values):
            return _Value(x, None)
        size = share * np.sum([np.abs(v.x) for v in values], axis=0)
        error = share * np.sum([v.bound for v in values], axis=0)
        return _Value(x, error + _gamma(steps, self.roundoff) * size)


def _stack(values: list[_Value], axis: int) -> Bounded:
    return Bounded(np.stack([v.x for v in values], axis=axis), np.stack([v.bound for v in values], axis=axis))


def _gamma(terms: int, roundoff: float) -> float:
    return (min(terms, 8.0 * math.sqrt(terms)) + 4.0) * roundoff


def _exact(domain: Domain) -> bool:
    """Whether every value of the domain, and every partial sum on the way, is a float32 number."""
    power_of_two = math.frexp(domain.scale)[0] == 0.5
    return domain.maximum is not None and power_of_two and domain.maximum <= _LARGEST_EXACT_COUNT


def _magnitude(op: ops.Op) -> ops.Op:
    if isinstance(op, ops.Linear | ops.Conv):
        bias = None if op.bias is None else np.abs(op.bias).astype(np.float64)
        return replace(op, weight=Weight.dense(np.abs(op.weight.array()).astype(np.float64)), bias=bias)
    if isinstance(op, ops.Affine):
        return replace(op, scale=np.abs(op.scale), shift=np.abs(op.shift))
    return op


def _without_bias(op: ops.Op) -> ops.Op:
    if isinstance(op, ops.Affine):
        return replace(op, shift=np.zeros_like(op.shift))
    if isinstance(op, ops.Linear | ops.Conv):
        return replace(op, bias=None)
    return op
