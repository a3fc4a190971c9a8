"""Linear operators as sparse matrices, against the interpreter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.exporters.lava import linear_map
from stdeploy.graph import GraphBuilder, Weight, ops
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.ops import Op
from stdeploy.graph.weight import Array


def evaluated(op: Op, shape: tuple[int, ...], x: Array) -> Array:
    axes = ("channel", "y", "x")[: len(shape)]
    builder = GraphBuilder(1)
    name = builder.add(ops.Input(shape, axes), name="input")
    name = builder.add(op, (name,), name="op")
    builder.add(ops.Output(), (name,), name="out")
    return interpret(builder.build(), x[None]).outputs["output"][0]


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[ops.Conv, tuple[int, ...]]:
    rank = draw(st.integers(1, 2))
    groups, per_in, per_out = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    padding = tuple(draw(st.integers(0, 2)) for _ in range(rank))
    space = tuple(draw(st.integers(d * (k - 1) + 1, 7)) for k, d in zip(kernel, dilation, strict=True))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    weight = rng.standard_normal((groups * per_out, per_in, *kernel)) * (rng.random((1, 1, *kernel)) < 0.8)
    op = ops.Conv(Weight.dense(weight), None, stride, padding, dilation, groups)
    return op, (groups * per_in, *space)


@given(convolutions())
@settings(max_examples=60, deadline=None)
def test_a_convolution_is_its_matrix(case: tuple[ops.Conv, tuple[int, ...]]) -> None:
    op, shape = case
    x = np.random.default_rng(1).standard_normal(shape)
    matrix = linear_map.convolution(op.weight.array(), op.groups, shape, op.stride, op.padding, op.dilation)
    y = evaluated(op, shape, x)
    np.testing.assert_allclose(matrix.expanded @ x.ravel(), y.ravel(), rtol=1e-12, atol=1e-12)


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 1),
    st.integers(3, 8),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_a_window_sum_is_a_pool(
    channels: int, kernel: int, stride: int, padding: int, side: int, ceil: bool
) -> None:
    padding = min(padding, kernel // 2)
    op = ops.MaxPool((kernel, kernel), (stride, stride), (padding, padding), (1, 1), ceil)
    x = (np.random.default_rng(side).random((channels, side, side)) < 0.4).astype(float)
    pooled = evaluated(op, x.shape, x)
    window = linear_map.window_sum(
        channels, x.shape[1:], pooled.shape[1:], op.kernel, op.stride, op.padding, op.dilation
    )
    np.testing.assert_array_equal((window.expanded @ x.ravel() > 0.5).astype(float), pooled.ravel())


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_maps_compose_whether_or_not_they_keep_their_positions(
    first: int, second: int, third: int, positions: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    a = linear_map.linear(rng.standard_normal((second, first)), positions)
    b = linear_map.linear(rng.standard_normal((third, second)), positions)
    whole = linear_map.LinearMap(b.expanded)
    x = rng.standard_normal(first * positions)
    wanted = b.expanded @ (a.expanded @ x)
    for outer in (b, whole):
        np.testing.assert_allclose(outer.after(a).expanded @ x, wanted, atol=1e-12)
    assert b.after(a).positions == positions and whole.after(a).positions == 1
    gains, rows = rng.uniform(0.5, 2, third), np.flatnonzero(rng.random(third) < 0.7)
    cut = (wanted.reshape(third, -1) * gains[:, None])[rows].ravel()
    for outer in (b.after(a), whole.after(a)):
        np.testing.assert_allclose(outer.rows(gains, rows, positions).expanded @ x, cut, atol=1e-12)
    assert b.synapses == np.count_nonzero(b.expanded.toarray())


def test_selections_and_totals() -> None:
    x = np.arange(6.0)
    np.testing.assert_array_equal(linear_map.select(np.array([5, 0, 5]), 6).expanded @ x, [5, 0, 5])
    np.testing.assert_array_equal(
        linear_map.total(np.array([0, 1, 0, 1, 0, 1]), 2, 0.5).expanded @ x, [3, 4.5]
    )
    stacked = linear_map.stacked([linear_map.linear(np.eye(2), 3), linear_map.linear(2 * np.eye(2), 3)])
    np.testing.assert_array_equal(stacked.expanded @ x, [*x, *(2 * x)])


def test_an_empty_kernel_is_a_bug_and_not_a_matrix_of_nothing() -> None:
    with pytest.raises(ValueError, match="kernel"):
        linear_map.convolution(np.zeros((1, 1, 0)), 1, (1, 4), (1,), (0,), (1,))
