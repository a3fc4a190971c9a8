"""The rounding bound holds for every operator, and would not hide a bug."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.errors import UserError
from stdeploy.graph import Graph, GraphBuilder, Weight, ops
from stdeploy.graph.interpreter import Interpreter
from stdeploy.graph.rounding import Bounded, drives, membrane

T, B = 3, 4
AXES = ("channel", "y", "x")


def _f32(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32)


def _conv(b: GraphBuilder, x: str, rng: np.random.Generator) -> str:
    op = ops.Conv(Weight.csr(_f32(rng, 6, 2, 3, 3)), _f32(rng, T, 6), (2, 1), (1, 0), (1, 2), groups=2)
    return b.add(op, (x,), name="conv")


def _attention(b: GraphBuilder, x: str, rng: np.random.Generator) -> str:
    q = b.add(ops.Linear(Weight.dense(_f32(rng, 5, 4)), _f32(rng, 5)), (x,), name="q")
    v = b.add(ops.Linear(Weight.dense(_f32(rng, 6, 4)), _f32(rng, 6)), (x,), name="v")
    a = b.add(ops.MatMul("channels", (2, 3), (2, 3)), (q, q), name="qk")
    return b.add(ops.MatMul("keys", (), (4, 2)), (a, v), name="av")


def _linear_attention(b: GraphBuilder, x: str, rng: np.random.Generator) -> str:
    q = b.add(ops.Linear(Weight.dense(_f32(rng, 5, 4)), _f32(rng, 5)), (x,), name="q")
    kv = b.add(ops.MatMul("tokens", (2, 3), (3, 1)), (q, x), name="kv")
    return b.add(ops.MatMul("pairs", (2, 3), (3, 1)), (q, kv), name="qkv")


def _norm(b: GraphBuilder, x: str, rng: np.random.Generator) -> str:
    x = b.add(ops.Affine(_f32(rng, 4), _f32(rng, 4)), (x,), name="bn")
    return b.add(ops.Scale(0.3), (x,), name="scale")


def _pools(b: GraphBuilder, x: str, rng: np.random.Generator) -> str:
    x = _norm(b, x, rng)
    y = b.add(ops.AvgPool((3, 2), (1, 1), (1, 0), count_include_pad=False), (x,), name="avg")
    return b.add(ops.MaxPool((2, 2), (2, 1), (1, 0), (1, 1)), (y,), name="max")


def _joins(b: GraphBuilder, x: str, rng: np.random.Generator) -> str:
    y = _norm(b, x, rng)
    z = b.add(ops.Mul(), (x, y), name="mul")
    z = b.add(ops.Add(), (z, y), name="add")
    z = b.add(ops.Concat(0), (z, x), name="cat")
    return b.add(ops.Slice(0, 1, 6), (z,), name="slice")


def _gate(b: GraphBuilder, x: str, rng: np.random.Generator) -> str:
    y = b.add(ops.Reduce((1, 2), True, keepdims=True), (_norm(b, x, rng),), name="mean")
    return b.add(ops.Mul(), (x, y), name="gate")


def _constant(b: GraphBuilder, x: str, rng: np.random.Generator) -> str:
    c = b.add(ops.Constant(_f32(rng, T, 4, 1, 1), AXES, per_step=True), name="constant")
    x = b.add(ops.Add(), (x, c), name="add")
    x = b.add(ops.Flatten(), (x,), name="flat")
    return b.add(ops.Linear(Weight.dense(_f32(rng, 7, 100))), (x,), name="fc")


BUILD: list[Callable[[GraphBuilder, str, np.random.Generator], str]] = [
    _conv,
    _attention,
    _linear_attention,
    _norm,
    _pools,
    _joins,
    _gate,
    _constant,
]

NEURONS: list[dict[str, Any]] = [
    {"tau": np.array(1.7), "v_reset": np.array(-0.1)},
    {"tau": np.array(3.3), "v_reset": np.array(0.2), "decay_input": False},
    {"tau": np.array(2.6), "v_reset": None},
    {"tau": None, "v_reset": None, "kind": "IF"},
    {"tau": None, "v_reset": np.array(0.05), "kind": "IF"},
]


def network(build: Callable[[GraphBuilder, str, np.random.Generator], str], neuron: int, seed: int) -> Graph:
    """Input, neuron-free operators, a neuron, a Linear, Readouts of the drive and of the spikes."""
    rng = np.random.default_rng(seed)
    b = GraphBuilder(T)
    x = b.add(ops.Input((4, 5, 5), AXES, "BT"), name="input")
    y = build(b, x, rng)
    op = ops.Neuron(v_threshold=np.array(0.7, np.float32), **NEURONS[neuron])
    s = b.add(op, (y,), name="lif")
    z = b.add(ops.Linear(Weight.dense(_f32(rng, 3, b.value(s).shape[0])), _f32(rng, 3)), (s,), name="fc2")
    b.add(ops.Output("steps", "BT"), (z,), name="o")
    for mode in ("mean", "sum", "last"):
        r = b.add(ops.Readout(mode), (z,), name=mode)  # type: ignore[arg-type]
        b.add(ops.Output(mode), (r,), name=f"o.{mode}")
    return b.build()


@pytest.mark.parametrize("build", BUILD, ids=lambda f: f.__name__.strip("_"))
@given(
    neuron=st.integers(0, len(NEURONS) - 1), seed=st.integers(0, 2**16), size=st.sampled_from([0.1, 1, 30])
)
@settings(max_examples=15, deadline=None)
def test_float32_stays_within_the_bound(build: Any, neuron: int, seed: int, size: float) -> None:
    graph = network(build, neuron, seed)
    inputs = (size * np.random.default_rng(seed + 1).standard_normal((B, T, 4, 5, 5))).astype(np.float32)
    run = Interpreter(graph, np.float32, membranes=True).run(inputs)
    exact = drives(graph, inputs, run.spikes)
    (node,) = graph.neurons
    assert isinstance(node.op, ops.Neuron)
    h = membrane(node.op, exact.neurons["lif"], run.spikes["lif"])
    assert np.all(np.abs(run.membranes["lif"] - h.value) <= h.error)
    for label, output in run.outputs.items():
        assert np.all(np.abs(output - exact.outputs[label].value) <= exact.outputs[label].error), label
    # a relative error of 1e-3 in the membranes' scale would be seen
    assert np.median(h.error) <= 1e-3 * (np.abs(h.value).max() + 1)


def test_the_membrane_is_the_interpreters() -> None:
    for neuron in range(len(NEURONS)):
        graph = network(_norm, neuron, 5)
        inputs = 10 * np.random.default_rng(2).standard_normal((B, T, 4, 5, 5))
        run = Interpreter(graph, membranes=True).run(inputs)
        assert 0.02 < run.spikes["lif"].mean() < 0.9
        (node,) = graph.neurons
        assert isinstance(node.op, ops.Neuron)
        h = membrane(node.op, drives(graph, inputs, run.spikes).neurons["lif"], run.spikes["lif"])
        np.testing.assert_allclose(h.value, run.membranes["lif"], rtol=1e-12, atol=1e-12)


def test_integer_drives_are_exact() -> None:
    b = GraphBuilder(2)
    x = b.add(ops.Input((4, 2), ("channel", "x"), "TB"), name="input")
    s = b.add(ops.Neuron(None, np.array(0.5), np.array(0.0)), (x,), name="first")
    a = b.add(ops.MatMul("channels", (4,), (4,)), (s, s), name="qk")
    y = b.add(ops.MatMul("keys", (), (4,)), (a, s), name="av")
    y = b.add(ops.Scale(0.125), (y,), name="scale")
    b.add(ops.Neuron(np.array(2.0), np.array(0.5), np.array(0.0)), (y,), name="second")
    b.add(ops.Output("o", "TB"), ("second",), name="o")
    graph = b.build()
    inputs = np.random.default_rng(0).standard_normal((2, 3, 4, 2))
    run = Interpreter(graph).run(inputs)
    found = drives(graph, inputs, run.spikes)
    assert run.spikes["first"].any()
    assert not found.neurons["second"].error.any()
    (_, node) = graph.neurons
    assert isinstance(node.op, ops.Neuron)
    assert not membrane(node.op, found.neurons["second"], run.spikes["second"]).error.any()


@pytest.mark.parametrize(
    ("tau", "threshold", "exact"), [(2.0, 0.5, True), (2.1, 0.5, False), (2.0, 0.6, False)]
)
def test_a_tie_counts_as_rounding_only_where_something_rounds(
    tau: float, threshold: float, exact: bool
) -> None:
    op = ops.Neuron(np.array(tau), np.array(threshold), np.array(0.0))
    drive = Bounded(np.full((2, 1, 1), 2 * threshold), np.zeros((2, 1, 1)))
    h = membrane(op, drive, np.zeros((2, 1, 1)))
    assert (h.error[0, 0, 0] == 0) == exact


def test_a_flip_does_not_blur_later_steps() -> None:
    """The membrane follows the given spikes, so it is right after a spike that should not have been."""
    op = ops.Neuron(np.array(2.0), np.array(1.0), np.array(0.0), decay_input=False)
    x = np.full((3, 1, 1), 0.8)
    drive = Bounded(x, np.zeros_like(x))
    never = membrane(op, drive, np.array([0, 0, 0]).reshape(3, 1, 1))
    early = membrane(op, drive, np.array([1, 0, 0]).reshape(3, 1, 1))
    np.testing.assert_allclose(never.value.ravel(), [0.8, 1.2, 1.4])
    np.testing.assert_allclose(early.value.ravel(), [0.8, 0.8, 1.2])


def test_missing_spikes_are_refused() -> None:
    graph = network(_norm, 0, 1)
    with pytest.raises(UserError, match="no spikes are given for lif"):
        drives(graph, np.zeros((B, T, 4, 5, 5)), {})
