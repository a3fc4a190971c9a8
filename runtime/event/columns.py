"""Products of sparse weights: each nonzero weight is added where its input's bits are set, 16 positions at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from stdeploy.exporters.event.stages import LANES, STEPS_TOGETHER, WORD, Columns
from stdeploy.runtime.event.fire import begin_membranes, fire_word, keep_membranes
from stdeploy.runtime.event.jit import Memory, jit
from stdeploy.runtime.event.scalars import fetch_add, ones
from stdeploy.runtime.event.vectors import fill_vectors, make_columns_sum, make_values_sum

COLUMNS = Columns()
CHUNK = 4
"""Outputs that a thread takes at a time."""

_b11, _b14, _b41, _b44 = (make_columns_sum(s, g, indexed=True) for s in (1, 4) for g in (1, 4))
_f11, _f14, _f41, _f44 = (make_values_sum(s, g) for s in (1, 4) for g in (1, 4))


@jit
def _sum_masked(
    m: Memory, steps: int, groups: int, c: int, d: int, scale: Any, n: int, x: int, stride: int, sums: int
) -> None:
    f, i, ws, h = m.floats, m.indices, m.weights, m.halves
    if steps == 4 and groups == 4:
        _b44(i, c, ws, d, 1, scale, n, h, x, stride, f, sums)
    elif steps == 4:
        _b41(i, c, ws, d, 1, scale, n, h, x, stride, f, sums)
    elif groups == 4:
        _b14(i, c, ws, d, 1, scale, n, h, x, stride, f, sums)
    else:
        _b11(i, c, ws, d, 1, scale, n, h, x, stride, f, sums)


@jit
def _sum_values(
    m: Memory, steps: int, groups: int, c: int, d: int, n: int, x: int, stride: int, step: int, sums: int
) -> None:
    f, i, ws = m.floats, m.indices, m.weights
    if steps == 4 and groups == 4:
        _f44(i, c, ws, d, n, f, x, stride, step, sums)
    elif steps == 4:
        _f41(i, c, ws, d, n, f, x, stride, step, sums)
    elif groups == 4:
        _f14(i, c, ws, d, n, f, x, stride, step, sums)
    else:
        _f11(i, c, ws, d, n, f, x, stride, step, sums)


@jit
def _sum(m: Memory, row: Any, o: int, w: int, groups: int, t: int, steps: int, sums: int) -> None:
    """Sums of output o at the positions of word w, for `steps` steps from t on, [steps, 16 groups], with its bias."""
    for s in range(steps):
        value = np.float32(0)
        if row[COLUMNS.bias] >= 0:
            value = m.weights[row[COLUMNS.bias] + (m.step + t + s) * row[COLUMNS.bias_stride] + o]
        fill_vectors(value, m.floats, sums + s * groups * LANES, groups)
    begin = m.indices[row[COLUMNS.ends] + o]
    n = m.indices[row[COLUMNS.ends] + o + 1] - begin
    c, d = row[COLUMNS.columns] + begin, row[COLUMNS.data] + begin
    all_steps, positions = row[COLUMNS.steps], row[COLUMNS.positions]
    if row[COLUMNS.x_floats]:
        step = row[COLUMNS.inputs] * positions
        x = row[COLUMNS.x] + t * step + w * WORD
        _sum_values(m, steps, groups, c, d, n, x, positions, step, sums)
        return
    stride = 4 * ((positions + WORD - 1) // WORD) * all_steps
    x = 4 * (row[COLUMNS.x] + w * all_steps + t)
    scale = np.float32(1)
    for _ in range(row[COLUMNS.planes]):
        _sum_masked(m, steps, groups, c, d, scale, n, x, stride, sums)
        x += row[COLUMNS.inputs] * stride
        scale *= np.float32(2)


@jit
def _emit(m: Memory, row: Any, o: int, w: int, groups: int, t: int, steps: int, sums: int, v: int) -> None:
    """Fire on the sums, or store them."""
    size, positions = groups * LANES, row[COLUMNS.positions]
    outputs, all_steps = row[COLUMNS.outputs], row[COLUMNS.steps]
    count = min(WORD, positions - w * WORD)
    words = (positions + WORD - 1) // WORD
    for s in range(steps):
        x = sums + s * size
        if row[COLUMNS.neuron] < 0:
            y = row[COLUMNS.y] + ((t + s) * outputs + o) * positions + w * WORD
            for j in range(count):
                m.floats[y + j] = m.floats[x + j]
            continue
        y = row[COLUMNS.y] + (o * words + w) * all_steps + t + s
        fire_word(m, x, v, size, count, row[COLUMNS.neuron] + 3 * o, row[COLUMNS.kind], y)


@jit
def _tile(m: Memory, row: Any, o: int, w: int, sums: int, v: int) -> None:
    """All steps of output o at the positions of word w."""
    positions, steps, state = row[COLUMNS.positions], row[COLUMNS.steps], row[COLUMNS.state]
    count = min(WORD, positions - w * WORD)
    groups = 1 if count <= LANES else 4  # positions that are not there cost less than a kernel of their own
    size, place = groups * LANES, state + o * positions + w * WORD
    if row[COLUMNS.neuron] >= 0:
        begin_membranes(m, place, v, size, count, m.weights[row[COLUMNS.neuron] + 3 * o + 1])
    t = 0
    while t < steps:
        s = 1 if steps - t < STEPS_TOGETHER else STEPS_TOGETHER
        _sum(m, row, o, w, groups, t, s, sums)
        _emit(m, row, o, w, groups, t, s, sums, v)
        t += s
    if row[COLUMNS.neuron] >= 0 and state >= 0:
        keep_membranes(m, v, place, count)


@jit
def _active(m: Memory, row: Any, c: int, t: int) -> int:
    """At how many positions input row c is not zero at step t."""
    planes, steps, inputs, positions = (
        row[COLUMNS.planes],
        row[COLUMNS.steps],
        row[COLUMNS.inputs],
        row[COLUMNS.positions],
    )
    active = 0
    if row[COLUMNS.x_floats]:
        x = row[COLUMNS.x] + (t * inputs + c) * positions
        for p in range(positions):
            active += m.floats[x + p] != 0
        return active
    words = (positions + WORD - 1) // WORD
    for w in range(words):
        word = np.uint64(0)
        for k in range(planes):
            word |= m.words[row[COLUMNS.x] + ((k * inputs + c) * words + w) * steps + t]
        active += ones(word)
    return active


@jit
def _count(m: Memory, row: Any, stage: int, c: int) -> None:
    """Synaptic operations of input row c: where it is not zero, times the nonzero weights that read it."""
    fan_out = m.indices[row[COLUMNS.fan_out] + c]
    for t in range(row[COLUMNS.steps]):
        fetch_add(m.synops, stage * m.steps + t, _active(m, row, c, t) * fan_out)


@jit
def columns(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `columns` stage (stages.Columns)."""
    outputs, words = row[COLUMNS.outputs], (row[COLUMNS.positions] + WORD - 1) // WORD
    chunks = (outputs + CHUNK - 1) // CHUNK
    counted = row[COLUMNS.inputs] if m.counting else 0
    sums = m.scratch
    v = sums + STEPS_TOGETHER * WORD
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= words * chunks + counted:
            break
        if unit >= words * chunks:
            _count(m, row, stage, unit - words * chunks)
            continue
        w, chunk = unit // chunks, unit % chunks
        for o in range(chunk * CHUNK, min(outputs, (chunk + 1) * CHUNK)):
            _tile(m, row, o, w, sums, v)
