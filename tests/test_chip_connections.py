"""Synapses between populations against dense matrices, and bits against brute force."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.chips.budget import exact_bits
from stdeploy.chips.connections import Relation, identity_relation, kernel_relation, pool_relation
from stdeploy.graph.weight import Array

Dense = tuple[Array, tuple[int, int, int]]


def dense_kernel(mask: Array, source: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Dense:
    """[target neuron, source neuron] by plain loops over outputs and taps."""
    outs, inner, ky, kx = mask.shape
    channels, height, width = source
    oy, ox = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip((height, width), (ky, kx), stride, padding, dilation, strict=True)
    )
    matrix = np.zeros((outs, oy, ox, channels, height, width), bool)
    for o, i, a, b, y, x in np.ndindex(outs, inner, ky, kx, oy, ox):
        r, c = y * stride[0] + a * dilation[0] - padding[0], x * stride[1] + b * dilation[1] - padding[1]
        if mask[o, i, a, b] and 0 <= r < height and 0 <= c < width:
            matrix[o, y, x, o // (outs // groups) * inner + i, r, c] = True
    return matrix.reshape(outs * oy * ox, channels * height * width), (outs, oy, ox)


def same(relation: Relation, dense: Array) -> None:
    assert relation.synapses == dense.sum()
    np.testing.assert_array_equal(relation.fan_in.ravel(), dense.sum(1))
    np.testing.assert_array_equal(relation.fan_out.ravel(), dense.sum(0))


@st.composite
def stages(draw: st.DrawFn, source: tuple[int, int, int]) -> tuple[Relation, Array, tuple[int, int, int]]:
    """A random convolution (grouped, dilated, pruned) or pool on `source`, as relation and as dense matrix."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    padding = draw(st.tuples(st.integers(1, 2), st.integers(1, 3)))
    if draw(st.booleans()):
        relation = pool_relation(source, kernel, stride, padding)
        mask = np.ones((source[0], 1, *kernel), bool)
        dense, target = dense_kernel(mask, source, stride, padding, (1, 1), source[0])
        return relation, dense, target
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    groups = draw(st.sampled_from([g for g in (1, 2, 3) if source[0] % g == 0]))
    outs = groups * draw(st.integers(1, 2))
    mask = rng.random((outs, source[0] // groups, *kernel)) < draw(st.sampled_from([0.2, 0.6, 1.0]))
    dilation = (dilation[0] if kernel[0] < 3 else 1, dilation[1] if kernel[1] < 3 else 1)
    relation = kernel_relation(mask, source, stride, padding, dilation, groups)
    dense, target = dense_kernel(mask, source, stride, padding, dilation, groups)
    return relation, dense, target


@settings(max_examples=60, deadline=None)
@given(st.data(), st.tuples(st.integers(1, 4), st.integers(2, 5), st.integers(2, 4)))
def test_counts_of_chains_and_sums_are_those_of_dense_matrices(
    data: st.DataObject, source: tuple[int, int, int]
) -> None:
    first, dense, shape = data.draw(stages(source))
    same(first, dense)
    second, later, target = data.draw(stages(shape))
    chain, both = second.after(first), (later.astype(int) @ dense.astype(int)) > 0
    assert (chain.source, chain.target) == (source, target)
    same(chain, both)
    third, last, _ = data.draw(stages(target))
    same(third.after(chain), (last.astype(int) @ both.astype(int)) > 0)
    other = kernel_relation(np.ones((shape[0], source[0], 1, 1), bool), source, (1, 1), (0, 0))
    if other.target == first.target:
        wide, _ = dense_kernel(np.ones((shape[0], source[0], 1, 1), bool), source, (1, 1), (0, 0), (1, 1), 1)
        same(first.union(other), dense | wide)
    same(identity_relation(source), np.eye(math.prod(source), dtype=bool))


def test_a_large_kernel_is_compared_bit_by_bit() -> None:
    mask = np.random.default_rng(0).random((3, 2, 9, 9)) < 0.5
    mask[1] = mask[0]
    relation = kernel_relation(mask, (2, 9, 11), (1, 2), (4, 4))
    same(relation, dense_kernel(mask, (2, 9, 11), (1, 2), (4, 4), (1, 1), 1)[0])
    assert len(relation.positions) == 4


@given(
    st.lists(st.integers(-300, 300), min_size=1, max_size=8),
    st.floats(1e-6, 1e6).map(lambda v: float(np.float32(v))),
)
def test_the_bits_are_those_of_the_narrowest_integers(numbers: list[int], factor: float) -> None:
    values = np.array(numbers, dtype=np.float64) * factor  # exact: 24 and 9 bits
    live = [n for n in numbers if n]
    common = math.gcd(*live) if live else 1
    wanted = max((abs(n) // common).bit_length() for n in live) if live else 0
    wanted += bool(live and min(live) < 0 < max(live))
    assert exact_bits(values) == wanted
