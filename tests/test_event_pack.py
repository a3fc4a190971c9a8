"""Weights and windows as the kernels read them, against nested loops."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stdeploy.exporters.event.pack import (
    blocks_of,
    identity,
    matrix,
    parts,
    parts_of,
    rows,
    touched,
    windows,
)
from stdeploy.exporters.event.stages import LANES, POSITIONS_TOGETHER, WORD
from stdeploy.graph import GraphBuilder, Weight, ops
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.weight import Array
from tests.event_stage import SOME, sliding

Case = tuple[Any, tuple[int, ...], tuple[int, ...]]


def seen(case: Case) -> list[list[tuple[int, int]]]:
    """Of every output position the pairs (tap, input position), by nested loops."""
    op, shape, out = case
    kernel = op.weight.shape[2:] if isinstance(op, ops.Conv) else op.kernel
    dilation = getattr(op, "dilation", (1,) * len(shape))
    found = []
    for o in np.ndindex(out):
        here = []
        for tap, k in enumerate(np.ndindex(kernel)):
            at = [o[i] * op.stride[i] + k[i] * dilation[i] - op.padding[i] for i in range(len(shape))]
            if all(0 <= a < n for a, n in zip(at, shape, strict=True)):
                here.append((tap, int(np.ravel_multi_index(at, shape))))
        found.append(here)
    return found


def read(table: Array, count: int) -> list[list[tuple[int, int]]]:
    """The runs of a table of `count` ends, after a 0, then from an even place on pairs."""
    assert table.dtype == np.int32 and table[0] == 0
    ends, pairs = table[: count + 1], table[-(-(count + 1) // 2) * 2 :].reshape(-1, 2)
    assert ends[-1] == len(pairs)
    return [[(int(i), int(j)) for i, j in pairs[a:b]] for a, b in pairwise(ends)]


@SOME
@given(sliding())
def test_windows(case: Case) -> None:
    wanted, table = seen(case), windows(*case)
    assert read(table.table(), len(wanted)) == wanted and table.positions == len(wanted)


@SOME
@given(sliding())
def test_shifts_name_every_pair_once_and_each_distance_once_a_word(case: Case) -> None:
    wanted, table = seen(case), windows(*case)
    words, shifts = -(-len(wanted) // WORD), table.shifts()
    ends, triples = shifts[: table.taps * words + 1], shifts[table.taps * words + 1 :].reshape(-1, 3)
    told = []
    for run, (first, last) in enumerate(pairwise(ends)):
        tap, word = divmod(run, words)
        assert len({int(far) for far, _, _ in triples[first:last]}) == last - first
        for far, low, high in triples[first:last].tolist():
            mask = low % 2**32 | high % 2**32 << 32
            places = [WORD * word + bit for bit in range(WORD) if mask >> bit & 1]
            assert places
            told += [(p, tap, p + far) for p in places]
    assert ends[0] == 0 and ends[-1] == len(triples)
    assert sorted(told) == sorted((p, tap, q) for p, here in enumerate(wanted) for tap, q in here)


@SOME
@given(sliding())
def test_visits_of_some_positions_lie_together_tap_by_tap(case: Case) -> None:
    table, windows_ = windows(*case), seen(case)
    wanted = []
    for first in range(0, len(windows_), POSITIONS_TOGETHER):
        group = windows_[first : first + POSITIONS_TOGETHER]
        for tap in range(table.taps):
            wanted.append([(p, q) for p, here in enumerate(group) for seen_by, q in here if seen_by == tap])
    assert read(table.visits(), len(wanted)) == wanted


@pytest.mark.parametrize("positions", [1, 7, 8, 9, 64, 65])
def test_visits_of_positions_that_see_themselves(positions: int) -> None:
    groups = [range(first, min(first + 8, positions)) for first in range(0, positions, 8)]
    wanted = [[(p - group[0], p) for p in group] for group in groups]
    assert read(identity(positions).visits(), len(groups)) == wanted


@SOME
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_the_matrix_of_a_grouped_convolution(groups: int, per: int, inp: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (
        rng.integers(-4, 5, (groups * per, inp, 2, 3)) * (rng.random((groups * per, inp, 2, 3)) < 0.6)
    ).astype(np.float32)
    op = ops.Conv(Weight.dense(weight), None, (1, 1), (0, 0), (1, 1), groups)
    x = rng.integers(-3, 4, (1, groups * inp, 2, 3)).astype(np.float32)  # one window: taps are positions
    builder = GraphBuilder(1)
    name = builder.add(ops.Input(x.shape[1:], ("channel", "y", "x")), name="input")
    builder.add(ops.Output("y"), (builder.add(op, (name,), name="conv"),), name="output")
    wanted = interpret(builder.build(), x).outputs["y"].reshape(-1)
    found = matrix(op) @ x[0].reshape(groups * inp, -1).T.reshape(-1)
    np.testing.assert_array_equal(found, wanted)


@given(st.integers(1, 3000))
def test_blocks_hold_their_outputs(outputs: int) -> None:
    blocks, vectors = blocks_of(outputs)
    assert blocks * vectors * 16 >= outputs > (blocks - 1) * vectors * 16 and 1 <= vectors <= 6


@st.composite
def sparse(draw: Any) -> tuple[ops.Linear | ops.Conv, int]:
    """A Linear or a grouped convolution of several blocks of outputs with few weights, and its channels."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    groups, near = draw(st.sampled_from([1, 2, 3, 7, 64])), draw(st.integers(63, 129))
    inputs = -(-near // groups)
    outputs = groups * -(-draw(st.sampled_from([5, 96, 97, 200, 330])) // groups)
    kernel = draw(st.sampled_from([(), (3,), (2, 1)])) if groups == 1 else (2, 2)
    weight = rng.integers(1, 9, (outputs, inputs, *kernel)).astype(np.float32)
    weight *= rng.random(weight.shape) < draw(st.sampled_from([0.0, 0.0002, 0.003, 0.05, 1.0]))
    if not kernel:
        return ops.Linear(Weight.dense(weight)), inputs
    axes = len(kernel)
    conv = ops.Conv(Weight.dense(weight), None, (1,) * axes, (0,) * axes, (1,) * axes, groups)
    return conv, inputs * groups


@SOME
@given(sparse())
def test_rows_and_the_parts_of_them_that_are_not_zero(case: tuple[ops.Linear | ops.Conv, int]) -> None:
    op, channels = case
    whole = matrix(op).toarray()
    outputs, size = whole.shape[0], LANES * blocks_of(whole.shape[0])[1]
    found, wanted = touched(op, channels), []
    dense, nonzero = rows(op, found)
    width = 0
    for block, first in enumerate(range(0, outputs, size)):
        own, some = whole[first : first + size], []
        np.testing.assert_array_equal(nonzero[block], np.count_nonzero(own, axis=0))
        for tap in range(whole.shape[1] // channels):
            for c in range(channels):
                column = own[:, tap * channels + c]
                assert found[block, tap, c] == column.any()
                at = c // WORD * WORD
                if column.any() and (tap, at) not in [part[:2] for part in some]:
                    here = tap * channels + at
                    these = own[:, here : here + min(WORD, channels - at)].T
                    np.testing.assert_array_equal(dense[width : width + len(these), : len(own)], these)
                    assert not dense[width : width + len(these), len(own) :].any()
                    some.append((tap, at, width))
                    width += len(these)
        wanted.append(some)
    table, blocks = parts(found), len(wanted)
    assert table.dtype == np.int32 and len(found) == blocks and len(dense) == width
    told = table[blocks + 1 :].reshape(-1, 3).tolist()
    assert [list(map(tuple, told[a:b])) for a, b in pairwise(table[: blocks + 1])] == wanted
    assert parts_of(op, channels) == (len(told), width)


def test_rows_of_a_depthwise_convolution_are_made_without_the_whole_matrix() -> None:
    channels = 1024
    weight = np.random.default_rng(0).integers(1, 9, (channels, 1, 3, 3)).astype(np.float32)
    op = ops.Conv(Weight.dense(weight), None, (1, 1), (1, 1), (1, 1), channels)
    tracemalloc.start()
    dense, nonzero = rows(op, touched(op, channels))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.count_nonzero(dense) == nonzero.sum() == weight.size
    assert peak < 4 * (dense.nbytes + nonzero.nbytes) < 4 * channels * 9 * channels
