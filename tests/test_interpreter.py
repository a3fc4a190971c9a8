"""Each operator of the reference interpreter against PyTorch's function of the same name, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.errors import UserError
from stdeploy.graph import Graph, GraphBuilder, Weight, ops
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.ops import Op

AXES = ("channel", "y", "x")


def one(op: Op, shape: tuple[int, ...], steps: int = 1) -> Graph:
    """Input -> op -> Output."""
    builder = GraphBuilder(steps)
    x = builder.add(ops.Input(shape, AXES[: len(shape)]), name="input")
    y = builder.add(op, (x,), name="op")
    time = builder.value(y).time
    builder.add(ops.Output("output", "TB" if time == "step" else "B"), (y,), name="output")
    return builder.build()


def run(graph: Graph, x: np.ndarray) -> np.ndarray:
    return interpret(graph, x).outputs["output"]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 2),
    st.sampled_from([1, 2]),
    st.integers(0, 99),
)
def test_conv_equals_torch(
    kernel: int, stride: int, padding: int, dilation: int, groups: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, 4, 7, 6))
    weight, bias = rng.standard_normal((6, 4 // groups, kernel, kernel)), rng.standard_normal(6)
    op = ops.Conv(Weight.dense(weight), bias, (stride,) * 2, (padding,) * 2, (dilation,) * 2, groups)
    got = run(one(op, (4, 7, 6)), x)
    want = F.conv2d(*map(torch.from_numpy, (x, weight, bias)), stride, padding, dilation, groups).numpy()
    np.testing.assert_allclose(got, want, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.booleans(), st.booleans(), st.integers(4, 9)
)
def test_pools_equal_torch(
    kernel: int, stride: int, padding: int, ceil: bool, include: bool, size: int
) -> None:
    if padding > kernel // 2:
        return
    x = np.random.default_rng(size).standard_normal((2, 3, size, size + 1))
    largest = ops.MaxPool((kernel,) * 2, (stride,) * 2, (padding,) * 2, (1, 1), ceil)
    want = F.max_pool2d(torch.from_numpy(x), kernel, stride, padding, 1, ceil).numpy()
    np.testing.assert_array_equal(run(one(largest, x.shape[1:]), x), want)
    mean = ops.AvgPool((kernel,) * 2, (stride,) * 2, (padding,) * 2, ceil, include)
    want = F.avg_pool2d(torch.from_numpy(x), kernel, stride, padding, ceil, include).numpy()
    np.testing.assert_allclose(run(one(mean, x.shape[1:]), x), want, atol=1e-12)


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("reset", [None, 0.25, -0.1])
@pytest.mark.parametrize("tau", [None, 1.7, "channel"])
def test_neuron_follows_its_equation(decay_input: bool, reset: float | None, tau: float | str | None) -> None:
    steps, rng = 5, np.random.default_rng(3)
    taus = None if tau is None else np.array([1.3, 2.0, 3.7]) if tau == "channel" else np.array(tau)
    threshold = np.array([0.8, 1.0, 1.1])
    builder = GraphBuilder(steps)
    x = builder.add(ops.Input((3, 4), ("channel", "token"), "TB"), name="input")
    rest = None if reset is None else np.array(reset)
    s = builder.add(ops.Neuron(taus, threshold, rest, decay_input), (x,), name="lif")
    builder.add(ops.Output("output", "TB"), (s,), name="output")
    data = rng.normal(0.6, 1.0, (steps, 2, 3, 4))
    got = interpret(builder.build(), data, membranes=True)
    v = np.full((2, 3, 4), reset or 0.0)
    for t in range(steps):
        for c in range(3):
            k = None if taus is None else float(taus[c]) if taus.ndim else float(taus)
            r = reset or 0.0
            old = v[:, c]
            if k is None:
                h = old + data[t, :, c]
            elif decay_input:
                h = old + (data[t, :, c] - (old - r)) / k
            else:
                h = old - (old - r) / k + data[t, :, c]
            spike = (h >= threshold[c]).astype(float)
            v[:, c] = h - spike * threshold[c] if reset is None else (1 - spike) * h + spike * r
            np.testing.assert_array_equal(got.spikes["lif"][t, :, c], spike)
            np.testing.assert_array_equal(got.membranes["lif"][t, :, c], h)
    assert 0.05 < got.spikes["lif"].mean() < 0.9


def attention(order: str, heads: tuple[int, ...], v_heads: tuple[int, ...]) -> Graph:
    builder = GraphBuilder(1)
    shape = (2 * sum(heads) + sum(v_heads), 2, 3)
    x = builder.add(ops.Input(shape, AXES), name="input")
    d = sum(heads)
    q = builder.add(ops.Slice(0, 0, d), (x,), name="q")
    k = builder.add(ops.Slice(0, d, 2 * d), (x,), name="k")
    v = builder.add(ops.Slice(0, 2 * d, shape[0]), (x,), name="v")
    if order == "qk":
        m = builder.add(ops.MatMul("channels", heads, heads), (q, k), name="qk")
        y = builder.add(ops.MatMul("keys", (), v_heads), (m, v), name="av")
    else:
        m = builder.add(ops.MatMul("tokens", heads, v_heads), (k, v), name="kv")
        y = builder.add(ops.MatMul("pairs", heads, v_heads), (q, m), name="qm")
    builder.add(ops.Output(), (y,), name="output")
    return builder.build()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3), st.integers(0, 99))
def test_both_attention_orders_equal_the_definition(sizes: list[tuple[int, int]], seed: int) -> None:
    heads, v_heads = tuple(a for a, _ in sizes), tuple(b for _, b in sizes)
    d, dv = sum(heads), sum(v_heads)
    x = np.random.default_rng(seed).integers(0, 2, (2, 2 * d + dv, 2, 3)).astype(float)
    flat = x.reshape(2, -1, 6)
    want = np.zeros((2, dv, 6))
    i = j = 0
    for a, b in sizes:
        q, k, v = flat[:, i : i + a], flat[:, d + i : d + i + a], flat[:, 2 * d + j : 2 * d + j + b]
        want[:, j : j + b] = np.einsum("bcn,bcm,bem->ben", q, k, v)
        i, j = i + a, j + b
    for order in ("qk", "kv"):
        np.testing.assert_array_equal(run(attention(order, heads, v_heads), x).reshape(2, dv, 6), want)


def test_forced_spikes_reach_the_consumer_and_own_spikes_are_reported() -> None:
    builder = GraphBuilder(2)
    x = builder.add(ops.Input((2,), ("channel",)), name="input")
    s = builder.add(ops.Neuron(np.array(1.5), np.array(1.0), np.array(0.0)), (x,), name="lif")
    builder.add(ops.Output("output", "TB"), (s,), name="output")
    data = np.array([[3.0, -1.0]])
    forced = np.array([[[0, 1]], [[1, 1]]])
    got = interpret(builder.build(), data, forced={"lif": forced})
    np.testing.assert_array_equal(got.outputs["output"], forced)
    np.testing.assert_array_equal(got.spikes["lif"][:, 0], [[1, 0], [1, 0]])


@pytest.mark.parametrize(("mode", "want"), [("mean", 2.0), ("sum", 6.0), ("last", 4.0)])
def test_readout_over_time(mode: str, want: float) -> None:
    builder = GraphBuilder(3)
    x = builder.add(ops.Input((1,), ("channel",), "BT"), name="input")
    y = builder.add(ops.Readout(mode), (x,), name="readout")
    builder.add(ops.Output(), (y,), name="output")
    data = np.array([[[0.0], [2.0], [4.0]], [[0.0], [2.0], [4.0]]])
    np.testing.assert_allclose(run(builder.build(), data), [[want], [want]])


def test_a_bias_per_step_and_a_static_readout() -> None:
    builder = GraphBuilder(2)
    x = builder.add(ops.Input((2,), ("channel",)), name="input")
    bias = np.array([[1.0, 0.0], [0.0, 10.0]])
    y = builder.add(ops.Linear(Weight.dense(np.eye(2)), bias), (x,), name="fc")
    total = builder.add(ops.Readout("sum"), (y,), name="sum")
    still = builder.add(ops.Readout("sum"), (x,), name="still")
    both = builder.add(ops.Add(), (total, still), name="add")
    builder.add(ops.Output(), (both,), name="output")
    np.testing.assert_allclose(run(builder.build(), np.array([[5.0, 7.0]])), [[21.0, 38.0]])


def test_a_wrong_input_shape_names_the_one_expected() -> None:
    graph = one(ops.Scale(2.0), (4, 7, 6))
    with pytest.raises(UserError, match="takes Bx4x7x6"):
        interpret(graph, np.zeros((3, 4, 6, 7)))
