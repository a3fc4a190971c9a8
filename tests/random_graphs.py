"""Small random graphs of every operator, with numbers that float32 holds exactly: eighths, and few of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from stdeploy.graph import Graph, GraphBuilder, Weight, ops, validate
from stdeploy.graph.weight import Array

AXES = ("channel", "y", "x")
OFTEN, SELDOM = (
    ("linear", "conv", "neuron", "add", "mul"),
    (
        "maxpool",
        "avgpool",
        "affine",
        "scale",
        "reduce",
        "flatten",
        "concat",
        "cut",
        "select",
        "attention",
        "constant",
        "inverse",
    ),
)
OPERATORS = (*OFTEN, *OFTEN, *SELDOM)


@dataclass
class RandomGraph:
    """Appends operators that fit; `draw` is hypothesis's."""

    draw: Any
    builder: GraphBuilder = field(init=False)
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.draw(st.integers(0, 2**32 - 1)))
        self.steps = self.pick([1, 2, 4, 5, 9])
        self.builder = GraphBuilder(self.steps)
        shape = self.pick([(5,), (3, 7), (2, 66), (3, 4, 5), (65, 3, 2), (1, 1, 1), (2, 9, 9)])
        self.keep(ops.Input(shape, AXES[: len(shape)], self.pick(["B", "BT", "TB"])), name="input")

    def pick(self, options: Any) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def keep(self, op: ops.Op, *inputs: str, name: str | None = None) -> str:
        """Add an operator whose value others may read."""
        self.names.append(self.builder.add(op, inputs, name=name or f"n{len(self.builder.nodes)}"))
        return self.names[-1]

    def eighths(self, *shape: int, zeros: float = 0.0) -> Array:
        values = self.rng.integers(-8, 9, shape) / 8
        values[self.rng.random(shape) < zeros] = 0
        return values.astype(np.float32)

    def bias(self, channels: int) -> Array | None:
        kind = self.pick(["none", "one", "per step"])
        if kind == "none":
            return None
        return self.eighths(self.steps, channels) if kind == "per step" else self.eighths(channels)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.builder.value(name).shape

    def grow(self) -> None:
        """One more operator; ValueError where it does not fit the value that was drawn."""
        kind, x = self.pick(OPERATORS), self.pick(self.names[-4:])
        getattr(self, f"_{kind}")(x, self.shape(x))

    def _linear(self, x: str, shape: tuple[int, ...]) -> None:
        out = self.pick([1, 4, 17, 70])
        weight = Weight.dense(self.eighths(out, shape[0], zeros=self.pick([0.0, 0.5, 0.95, 1.0])))
        self.keep(ops.Linear(weight, self.bias(out)), x)

    def _conv(self, x: str, shape: tuple[int, ...]) -> None:
        axes, groups = len(shape) - 1, self.pick([1, 1, shape[0]])
        if not axes:
            raise ValueError("no axis to slide along")
        kernel, stride, padding, dilation = (
            tuple(self.pick(options) for _ in range(axes)) for options in ([1, 2, 3], [1, 2], [0, 1], [1, 2])
        )
        out = groups * self.pick([1, 2, 3])
        weight = self.eighths(out, shape[0] // groups, *kernel, zeros=self.pick([0.0, 0.8]))
        self.keep(ops.Conv(Weight.dense(weight), self.bias(out), stride, padding, dilation, groups), x)

    def _neuron(self, x: str, shape: tuple[int, ...]) -> None:
        def number(low: int, high: int) -> Array:
            size = self.pick([(), (shape[0],)])
            return np.asarray(self.rng.integers(low, high, size) / 8, np.float32)

        taus = [
            None,
            np.float32(2.0),
            np.float32(1.7),
            np.asarray(self.rng.uniform(1.1, 4, shape[0]), np.float32),
        ]
        tau = self.pick(taus)
        rest = None if self.pick([True, False]) else number(-8, 4)
        low = self.pick([2, 2, -2])  # a threshold at or below 0 fires without input
        op = ops.Neuron(tau, number(low, 12), rest, self.pick([True, False]), "IF" if tau is None else "LIF")
        self.keep(op, x)

    def _maxpool(self, x: str, shape: tuple[int, ...]) -> None:
        self._pool(x, shape, ops.MaxPool)

    def _avgpool(self, x: str, shape: tuple[int, ...]) -> None:
        self._pool(x, shape, ops.AvgPool)

    def _pool(self, x: str, shape: tuple[int, ...], kind: Any) -> None:
        axes = len(shape) - 1
        if not axes:
            raise ValueError("no axis to pool")
        kernel, stride = (tuple(self.pick([2, 3]) for _ in range(axes)) for _ in range(2))
        padding = tuple(self.pick([0, 1]) for _ in range(axes))
        if kind is ops.MaxPool:
            dilation = tuple(self.pick([1, 1, 2]) if n > 2 else 1 for n in shape[1:])
            self.keep(ops.MaxPool(kernel, stride, padding, dilation, self.pick([True, False])), x)
        else:
            self.keep(
                ops.AvgPool(kernel, stride, padding, self.pick([True, False]), self.pick([True, False])), x
            )

    def _affine(self, x: str, shape: tuple[int, ...]) -> None:
        self.keep(ops.Affine(self.eighths(shape[0]), self.eighths(shape[0])), x)

    def _inverse(self, x: str, shape: tuple[int, ...]) -> None:
        ones = np.ones(shape[0], np.float32)
        self.keep(ops.Affine(-ones, ones), x)

    def _scale(self, x: str, shape: tuple[int, ...]) -> None:
        self.keep(ops.Scale(self.pick([0.125, -0.5, 2.0])), x)

    def _add(self, x: str, shape: tuple[int, ...]) -> None:
        self.keep(ops.Add(), x, self.pick(self.names))

    def _mul(self, x: str, shape: tuple[int, ...]) -> None:
        self.keep(ops.Mul(), x, self.pick(self.names))

    def _reduce(self, x: str, shape: tuple[int, ...]) -> None:
        over = self.pick([(0,), (len(shape) - 1,), tuple(range(1, len(shape))), tuple(range(len(shape)))])
        self.keep(ops.Reduce(over, self.pick([True, False]), keepdims=True), x)

    def _flatten(self, x: str, shape: tuple[int, ...]) -> None:
        self.keep(ops.Flatten(self.pick([True, False])), x)

    def _concat(self, x: str, shape: tuple[int, ...]) -> None:
        self.keep(ops.Concat(self.pick(range(len(shape)))), x, self.pick(self.names), x)

    def _cut(self, x: str, shape: tuple[int, ...]) -> None:
        axis = self.pick(range(len(shape)))
        start = self.pick(range(shape[axis]))
        self.keep(ops.Slice(axis, start, self.pick(range(start + 1, shape[axis] + 1))), x)

    def _select(self, x: str, shape: tuple[int, ...]) -> None:
        scores = self.builder.add(
            ops.Reduce((0,), False, keepdims=True), (x,), name=f"s{len(self.builder.nodes)}"
        )
        count = self.pick(range(1, shape[-1] + 1))
        self.keep(ops.Select(count, self.pick([True, False]), self.pick(["score", "index"])), x, scores)

    def _constant(self, x: str, shape: tuple[int, ...]) -> None:
        per_step = self.pick([True, False])
        value = self.eighths(*([self.steps] if per_step else []), *shape)
        value = (value > 0).astype(np.float32) if self.pick([True, False]) else value
        constant = self.builder.add(
            ops.Constant(value, AXES[: len(shape)], per_step), name=f"c{len(self.builder.nodes)}"
        )
        join = self.pick([ops.Add(), ops.Mul(), ops.Concat(0)])
        self.keep(join, *self.pick([(x, constant), (constant, x)]))

    def _attention(self, x: str, shape: tuple[int, ...]) -> None:
        if len(shape) < 2:
            raise ValueError("no tokens")
        q, k, v = (self._fire(x) for _ in range(3))
        heads, v_heads = self._heads(shape[0]), self._heads(shape[0])
        v_heads = v_heads if len(heads) == len(v_heads) else heads
        if not sum(m * n for m, n in zip(heads, v_heads, strict=True)):
            raise ValueError("no head has both sides")
        if self.pick([True, False]):
            scores = self.keep(ops.MatMul("channels", heads, heads), q, k)
            self.keep(ops.MatMul("keys", (), v_heads), scores, v)
        else:
            pairs = self.keep(ops.MatMul("tokens", heads, v_heads), k, v)
            self.keep(ops.MatMul("pairs", heads, v_heads), q, pairs)
        self.keep(ops.Scale(0.125), self.names[-1])

    def _fire(self, x: str) -> str:
        """A value of x's shape, spikes or (seldom) real."""
        shape = self.shape(x)
        weight = Weight.dense(self.eighths(shape[0], shape[0], zeros=0.5))
        y = self.builder.add(
            ops.Linear(weight, self.bias(shape[0])), (x,), name=f"l{len(self.builder.nodes)}"
        )
        if self.pick([False, True, True, True]):
            self._neuron(y, shape)
            return self.names[-1]
        return y

    def _heads(self, channels: int) -> tuple[int, ...]:
        first = self.pick(range(channels + 1))
        return self.pick([(channels,), (first, channels - first)])  # type: ignore[no-any-return]


@st.composite
def graphs(draw: Any, most: int = 8) -> Graph:
    """A graph of a few operators, with one output or two, some over time."""
    graph = RandomGraph(draw)
    for _ in range(draw(st.integers(1, most))):
        try:
            graph.grow()
        except ValueError:
            continue  # the operator does not fit the value
    builder = graph.builder
    read = {name for node in builder.nodes.values() for name in node.inputs}
    ends = [name for name in graph.names if name not in read][-2:] or graph.names[-1:]
    for i, name in enumerate(ends):
        if builder.value(name).time != "final" and draw(st.booleans()):
            name = builder.add(ops.Readout(graph.pick(["mean", "sum", "last"])), (name,), name=f"readout{i}")
        layout = graph.pick(["TB", "BT"]) if builder.value(name).time == "step" else "B"
        builder.add(ops.Output(f"y{i}", layout), (name,), name=f"output{i}")
    return validate(builder.build())


def eighths_batch(graph: Graph, batch: int = 2, seed: int = 0) -> Array:
    """A batch whose numbers are eighths, many of them zero."""
    op: Any = graph.inputs[0].op
    lead = {"B": (batch,), "BT": (batch, graph.steps), "TB": (graph.steps, batch)}[op.layout]
    rng = np.random.default_rng(seed)
    values = rng.integers(-12, 17, (*lead, *op.shape)) / 8
    return np.asarray(values * (rng.random(values.shape) < 0.7), np.float32)
