"""Event-driven products: each output position sums the dense weight rows of the inputs that are active there.

Weights are read WORD rows at a time, for some positions and steps, so that they come from the first cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stdeploy.exporters.event.stages import LANES, POSITIONS_TOGETHER, STEPS_TOGETHER, WORD, Rows
from stdeploy.runtime.event.fire import fire_channels
from stdeploy.runtime.event.jit import Memory, jit
from stdeploy.runtime.event.scalars import fetch_add, lowest, shifted
from stdeploy.runtime.event.vectors import copy_vectors, fill_vectors, make_rows_sum

ROWS = Rows()

_bits1, _bits2, _bits3, _bits4, _bits5, _bits6 = (make_rows_sum(vectors, True) for vectors in range(1, 7))
_numbers1, _numbers2, _numbers3, _numbers4, _numbers5, _numbers6 = (
    make_rows_sum(vectors, False) for vectors in range(1, 7)
)
_ZERO, _ONE = np.uint64(0), np.uint64(1)


@jit
def _add_bits(
    m: Memory, row: Any, w: int, begin: int, end: int, x: int, step: int, steps: int, scale: Any, sums: int
) -> None:
    """Rows from w on, for the bits of words x + q stride + s step of the visits' input positions q, times `scale`."""
    ws, i, f, vectors = m.weights, m.indices, m.floats, row[ROWS.vectors]
    q, stride = shifted(m.words, x), (row[ROWS.channels] + WORD - 1) // WORD
    if vectors == 6:
        _bits6(ws, w, i, begin, end, q, stride, step, steps, scale, 0, f, sums)
    elif vectors == 5:
        _bits5(ws, w, i, begin, end, q, stride, step, steps, scale, 0, f, sums)
    elif vectors == 4:
        _bits4(ws, w, i, begin, end, q, stride, step, steps, scale, 0, f, sums)
    elif vectors == 3:
        _bits3(ws, w, i, begin, end, q, stride, step, steps, scale, 0, f, sums)
    elif vectors == 2:
        _bits2(ws, w, i, begin, end, q, stride, step, steps, scale, 0, f, sums)
    else:
        _bits1(ws, w, i, begin, end, q, stride, step, steps, scale, 0, f, sums)


@jit
def _add_numbers(
    m: Memory, row: Any, w: int, begin: int, end: int, x: int, step: int, steps: int, count: int, sums: int
) -> None:
    """`count` rows from w on, each times the number at x + q channels + s step + its index."""
    ws, i, f, vectors = m.weights, m.indices, m.floats, row[ROWS.vectors]
    v, stride, one = shifted(m.floats, x), row[ROWS.channels], np.float32(1)
    if vectors == 6:
        _numbers6(ws, w, i, begin, end, v, stride, step, steps, one, count, f, sums)
    elif vectors == 5:
        _numbers5(ws, w, i, begin, end, v, stride, step, steps, one, count, f, sums)
    elif vectors == 4:
        _numbers4(ws, w, i, begin, end, v, stride, step, steps, one, count, f, sums)
    elif vectors == 3:
        _numbers3(ws, w, i, begin, end, v, stride, step, steps, one, count, f, sums)
    elif vectors == 2:
        _numbers2(ws, w, i, begin, end, v, stride, step, steps, one, count, f, sums)
    else:
        _numbers1(ws, w, i, begin, end, v, stride, step, steps, one, count, f, sums)


@jit
def _begin(m: Memory, row: Any, block: int, positions: int, t: int, steps: int, sums: int) -> None:
    """Sums of `positions` and of t..t + steps begin with the bias."""
    vectors, bias = row[ROWS.vectors], row[ROWS.bias]
    size = vectors * LANES
    if bias < 0:
        fill_vectors(np.float32(0), m.floats, sums, positions * steps * vectors)
        return
    for s in range(steps):
        b = bias + (m.step + t + s) * row[ROWS.bias_stride] + block * size
        for p in range(positions):
            copy_vectors(m.weights, b, m.floats, sums + (p * steps + s) * size, vectors)


@jit
def _add(m: Memory, row: Any, block: int, group: int, t: int, steps: int, sums: int) -> None:
    """Add to the sums what a group of positions sees in t..t + steps."""
    channels, taps, planes = row[ROWS.channels], row[ROWS.taps], row[ROWS.planes]
    size = row[ROWS.vectors] * LANES
    parts, visits = row[ROWS.parts], row[ROWS.visits]
    part_triples = parts + row[ROWS.blocks] + 1
    groups = (row[ROWS.positions] + POSITIONS_TOGETHER - 1) // POSITIONS_TOGETHER
    visit_pairs = visits // 2 + (groups * taps + 2) // 2
    width = channels if row[ROWS.x_floats] else (channels + WORD - 1) // WORD
    step = row[ROWS.x_positions] * width
    for k in range(m.indices[parts + block], m.indices[parts + block + 1]):
        part = part_triples + 3 * k
        tap, first = m.indices[part], m.indices[part + 1]
        w = row[ROWS.weight] + m.indices[part + 2] * size
        run = visits + group * taps + tap
        begin, end = visit_pairs + m.indices[run], visit_pairs + m.indices[run + 1]
        x = row[ROWS.x] + t * step
        if row[ROWS.x_floats]:
            count = min(WORD, channels - first)
            _add_numbers(m, row, w, begin, end, x + first, step, steps, count, sums)
            continue
        scale = np.float32(1)
        for plane in range(planes):
            at = x + plane * row[ROWS.steps] * step + first // WORD
            _add_bits(m, row, w, begin, end, at, step, steps, scale, sums)
            scale += scale


@jit
def _count(m: Memory, row: Any, stage: int, block: int, group: int, t: int) -> None:
    """Synaptic operations of a group of positions in step t: the nonzero weights of every nonzero input's row."""
    channels, taps, planes = row[ROWS.channels], row[ROWS.taps], row[ROWS.planes]
    width = channels if row[ROWS.x_floats] else (channels + WORD - 1) // WORD
    step = row[ROWS.x_positions] * width
    visits = row[ROWS.visits]
    groups = (row[ROWS.positions] + POSITIONS_TOGETHER - 1) // POSITIONS_TOGETHER
    pairs = visits + (groups * taps + 2) // 2 * 2
    synops = 0
    for tap in range(taps):
        nonzero = row[ROWS.nonzero] + block * row[ROWS.inputs] + tap * channels
        run = visits + group * taps + tap
        for k in range(m.indices[run], m.indices[run + 1]):
            x = row[ROWS.x] + t * step + m.indices[pairs + 2 * k + 1] * width
            if row[ROWS.x_floats]:
                for c in range(channels):
                    if m.floats[x + c] != 0:
                        synops += m.indices[nonzero + c]
                continue
            for i in range(width):
                left = _ZERO
                for plane in range(planes):
                    left |= m.words[x + plane * row[ROWS.steps] * step + i]
                while left:
                    synops += m.indices[nonzero + i * WORD + lowest(left)]
                    left &= left - _ONE
    fetch_add(m.synops, stage * m.steps + t, synops)


@jit
def _emit(m: Memory, row: Any, block: int, p: int, t: int, sums: int, v: int) -> None:
    """Fire on the sums of one position and step, or store them."""
    outputs, positions, neuron = row[ROWS.outputs], row[ROWS.positions], row[ROWS.neuron]
    size = row[ROWS.vectors] * LANES
    first = block * size
    if neuron < 0:
        y = row[ROWS.y] + (t * positions + p) * outputs + first
        for j in range(min(size, outputs - first)):
            m.floats[y + j] = m.floats[sums + j]
        return
    width = 4 * ((outputs + 63) // 64)
    y = 4 * row[ROWS.y] + (t * positions + p) * width
    fired = min(size, width * LANES - first)
    across = row[ROWS.blocks] * size
    fire_channels(
        m.floats,
        sums,
        v,
        fired,
        m.weights,
        neuron + first,
        across,
        row[ROWS.kind],
        m.halves,
        y + first // LANES,
    )
    if block == row[ROWS.blocks] - 1:
        for k in range((first + fired) // LANES, width):
            m.halves[y + k] = 0


@jit
def _membranes(m: Memory, row: Any, block: int, first: int, positions: int, v: int, load: bool) -> None:
    """Membranes of `positions` from `first` on: from where they are kept to v, or back."""
    vectors, neuron, state = row[ROWS.vectors], row[ROWS.neuron], row[ROWS.state]
    size = vectors * LANES
    across = row[ROWS.blocks] * size
    for k in range(positions):
        place, at = state + (first + k) * across + block * size, v + k * size
        if load and m.step:
            copy_vectors(m.floats, place, m.floats, at, vectors)
        elif load:
            copy_vectors(m.weights, neuron + across + block * size, m.floats, at, vectors)
        elif state >= 0:
            copy_vectors(m.floats, at, m.floats, place, vectors)


@jit
def _group(m: Memory, row: Any, stage: int, block: int, group: int) -> None:
    """All steps of one block of outputs at POSITIONS_TOGETHER positions."""
    first, steps = group * POSITIONS_TOGETHER, row[ROWS.steps]
    positions = min(POSITIONS_TOGETHER, row[ROWS.positions] - first)
    size = row[ROWS.vectors] * LANES
    sums = m.scratch
    v = sums + POSITIONS_TOGETHER * STEPS_TOGETHER * size
    if row[ROWS.neuron] >= 0:
        _membranes(m, row, block, first, positions, v, True)
    for t in range(0, steps, STEPS_TOGETHER):
        together = min(STEPS_TOGETHER, steps - t)
        _begin(m, row, block, positions, t, together, sums)
        _add(m, row, block, group, t, together, sums)
        for p in range(positions):
            for s in range(together):
                _emit(m, row, block, first + p, t + s, sums + (p * together + s) * size, v + p * size)
    if row[ROWS.neuron] >= 0:
        _membranes(m, row, block, first, positions, v, False)
    if m.counting:
        for t in range(steps):
            _count(m, row, stage, block, group, t)


@jit
def rows(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `rows` stage (stages.Rows)."""
    blocks = row[ROWS.blocks]
    groups = (row[ROWS.positions] + POSITIONS_TOGETHER - 1) // POSITIONS_TOGETHER
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= blocks * groups:
            break
        _group(m, row, stage, unit // groups, unit % groups)
