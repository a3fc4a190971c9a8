"""Event-driven products: each output position sums the dense weight rows of the inputs that are active there.

Up to four steps go together: an input that is active in any of them has its weight row read once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stdeploy.exporters.event.stages import LANES, STEPS_TOGETHER, Rows
from stdeploy.runtime.event.fire import fire_channels
from stdeploy.runtime.event.jit import Memory, jit
from stdeploy.runtime.event.scalars import fetch_add
from stdeploy.runtime.event.vectors import copy_vectors, fill_vectors, make_rows_sum

ROWS = Rows()
CHUNK = 8
"""Positions that a thread takes at a time."""

_11, _21, _31, _41, _51, _61 = (make_rows_sum(vectors, 1) for vectors in range(1, 7))
_14, _24, _34, _44, _54, _64 = (make_rows_sum(vectors, 4) for vectors in range(1, 7))


@jit
def _sum_rows(m: Memory, row: Any, steps: int, w: int, begin: int, end: int, q: int, sums: int) -> None:
    """Add the rows that the pairs begin..end of the taps' table meet; q: first position of the steps' lists.

    Two or three steps are done as four: the events of those that are not there are zero.
    """
    f, i, ws, tables = m.floats, m.ints, m.weights, m.indices
    vectors, channels = row[ROWS.vectors], row[ROWS.channels]
    c, r, p = row[ROWS.counts] + q, row[ROWS.events] + q * channels, row[ROWS.places] + q * channels
    if steps > 1 and vectors == 6:
        _64(ws, w, tables, begin, end, i, c, r, p, channels, f, sums)
    elif steps > 1 and vectors == 5:
        _54(ws, w, tables, begin, end, i, c, r, p, channels, f, sums)
    elif steps > 1 and vectors == 4:
        _44(ws, w, tables, begin, end, i, c, r, p, channels, f, sums)
    elif steps > 1 and vectors == 3:
        _34(ws, w, tables, begin, end, i, c, r, p, channels, f, sums)
    elif steps > 1 and vectors == 2:
        _24(ws, w, tables, begin, end, i, c, r, p, channels, f, sums)
    elif steps > 1 and vectors == 1:
        _14(ws, w, tables, begin, end, i, c, r, p, channels, f, sums)
    elif vectors == 6:
        _61(ws, w, tables, begin, end, i, c, r, p, channels, f, sums)
    elif vectors == 5:
        _51(ws, w, tables, begin, end, i, c, r, p, channels, f, sums)
    elif vectors == 4:
        _41(ws, w, tables, begin, end, i, c, r, p, channels, f, sums)
    elif vectors == 3:
        _31(ws, w, tables, begin, end, i, c, r, p, channels, f, sums)
    elif vectors == 2:
        _21(ws, w, tables, begin, end, i, c, r, p, channels, f, sums)
    else:
        _11(ws, w, tables, begin, end, i, c, r, p, channels, f, sums)


@jit
def _begin(m: Memory, row: Any, block: int, t: int, steps: int, sums: int) -> None:
    """Sums begin with the bias."""
    vectors, bias = row[ROWS.vectors], row[ROWS.bias]
    size = vectors * LANES
    if bias < 0:
        fill_vectors(np.float32(0), m.floats, sums, steps * vectors)
        return
    for s in range(steps):
        b = bias + (m.step + t + s) * row[ROWS.bias_stride] + block * size
        copy_vectors(m.weights, b, m.floats, sums + s * size, vectors)


@jit
def _add_events(m: Memory, row: Any, block: int, p: int, t: int, steps: int, sums: int) -> None:
    """Add to the sums what position p sees in steps t..t + steps."""
    taps = row[ROWS.taps]
    w = row[ROWS.weight] + block * row[ROWS.rows] * row[ROWS.vectors] * LANES
    pairs = taps // 2 + (row[ROWS.positions] + 2) // 2
    begin, end = pairs + m.indices[taps + p], pairs + m.indices[taps + p + 1]
    _sum_rows(m, row, steps, w, begin, end, t // STEPS_TOGETHER * row[ROWS.x_positions], sums)


@jit
def _count(m: Memory, row: Any, stage: int, block: int, p: int, t: int, steps: int) -> None:
    """Synaptic operations: for every event and step the nonzero weights of its row."""
    channels, taps = row[ROWS.channels], row[ROWS.taps]
    pairs = taps + (row[ROWS.positions] + 2) // 2 * 2
    lists = t // STEPS_TOGETHER * row[ROWS.x_positions]
    for s in range(steps):
        synops = 0
        for k in range(m.indices[taps + p], m.indices[taps + p + 1]):
            tap, q = m.indices[pairs + 2 * k], m.indices[pairs + 2 * k + 1]
            nonzero = row[ROWS.nonzero] + block * row[ROWS.rows] + tap * channels
            at = (lists + q) * channels
            for j in range(m.ints[row[ROWS.counts] + lists + q]):
                place = m.ints[row[ROWS.places] + at + j] + s
                if m.floats[place] != 0:
                    synops += m.indices[nonzero + m.ints[row[ROWS.events] + at + j]]
        fetch_add(m.synops, stage * m.steps + t + s, synops)


@jit
def _emit(m: Memory, row: Any, block: int, p: int, t: int, sums: int, v: int) -> None:
    """Fire on the sums of one step, or store them."""
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
def _position(m: Memory, row: Any, stage: int, block: int, p: int, sums: int, v: int) -> None:
    """All steps of one block of outputs at position p."""
    vectors, neuron, state = row[ROWS.vectors], row[ROWS.neuron], row[ROWS.state]
    size, steps = vectors * LANES, row[ROWS.steps]
    across = row[ROWS.blocks] * size
    place = state + p * across + block * size
    if neuron >= 0:
        if m.step:
            copy_vectors(m.floats, place, m.floats, v, vectors)
        else:
            copy_vectors(m.weights, neuron + across + block * size, m.floats, v, vectors)
    t = 0
    while t < steps:
        s = min(STEPS_TOGETHER, steps - t)
        _begin(m, row, block, t, s, sums)
        _add_events(m, row, block, p, t, s, sums)
        if m.counting:
            _count(m, row, stage, block, p, t, s)
        for k in range(s):
            _emit(m, row, block, p, t + k, sums + k * size, v)
        t += s
    if neuron >= 0 and state >= 0:
        copy_vectors(m.floats, v, m.floats, place, vectors)


@jit
def rows(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `rows` stage (stages.Rows)."""
    blocks, positions = row[ROWS.blocks], row[ROWS.positions]
    sums = m.scratch
    v = sums + STEPS_TOGETHER * row[ROWS.vectors] * LANES
    chunks = (positions + CHUNK - 1) // CHUNK
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= blocks * chunks:
            break
        block, chunk = unit // chunks, unit % chunks
        for p in range(chunk * CHUNK, min(positions, (chunk + 1) * CHUNK)):
            _position(m, row, stage, block, p, sums, v)
