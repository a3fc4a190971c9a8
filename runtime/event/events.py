"""Lists of events: of every position the channels that are active in any of four steps, with their factors in each."""

from __future__ import annotations

from typing import Any

import numpy as np

from stdeploy.exporters.event.stages import STEPS_TOGETHER, WORD, Events
from stdeploy.runtime.event.jit import Memory, jit
from stdeploy.runtime.event.scalars import fetch_add, lowest

EVENTS = Events()

_ZERO, _ONE = np.uint64(0), np.uint64(1)


@jit
def _floats(
    m: Memory, x: int, channels: int, stride: int, steps: int, rows: int, places: int, values: int
) -> int:
    """Channels at x that are not zero in any of `steps` steps, `stride` floats apart; how many."""
    f, i = m.floats, m.ints
    n = 0
    for c in range(channels):
        active = False
        for s in range(STEPS_TOGETHER):
            value = f[x + s * stride + c] if s < steps else np.float32(0)
            f[values + s] = value
            active |= value != 0
        if active:
            i[rows + n], i[places + n] = c, values
            values += STEPS_TOGETHER
            n += 1
    return n


@jit
def _spikes(
    m: Memory, x: int, words: int, stride: int, steps: int, rows: int, places: int, patterns: int
) -> int:
    """Channels at x that spike in any of `steps` steps, `stride` words apart; how many."""
    q, i = m.words, m.ints
    n = 0
    for k in range(words):
        w0 = q[x + k]
        w1 = q[x + stride + k] if steps > 1 else _ZERO
        w2 = q[x + 2 * stride + k] if steps > 2 else _ZERO
        w3 = q[x + 3 * stride + k] if steps > 3 else _ZERO
        left = w0 | w1 | w2 | w3
        while left:
            c = np.uint64(lowest(left))
            left &= left - _ONE
            pattern = ((w0 >> c) & _ONE) | (((w1 >> c) & _ONE) << _ONE)
            pattern |= (((w2 >> c) & _ONE) << np.uint64(2)) | (((w3 >> c) & _ONE) << np.uint64(3))
            i[rows + n] = k * WORD + np.int64(c)
            i[places + n] = patterns + STEPS_TOGETHER * np.int64(pattern)
            n += 1
    return n


@jit
def _counts(
    m: Memory,
    x: int,
    words: int,
    stride: int,
    steps: int,
    planes: int,
    plane: int,
    rows: int,
    places: int,
    values: int,
) -> int:
    """Channels at x whose count is not zero in any of `steps` steps; planes lie `plane` words apart. How many."""
    q, i, f = m.words, m.ints, m.floats
    n = 0
    for k in range(words):
        left = _ZERO
        for s in range(steps):
            for b in range(planes):
                left |= q[x + b * plane + s * stride + k]
        while left:
            c = np.uint64(lowest(left))
            left &= left - _ONE
            i[rows + n], i[places + n] = k * WORD + np.int64(c), values
            for s in range(STEPS_TOGETHER):
                count = _ZERO
                for b in range(planes if s < steps else 0):
                    count |= ((q[x + b * plane + s * stride + k] >> c) & _ONE) << np.uint64(b)
                f[values + s] = np.float32(np.int64(count))
            values += STEPS_TOGETHER
            n += 1
    return n


@jit
def events(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of an `events` stage (stages.Events)."""
    channels, positions, steps, planes = (
        row[EVENTS.channels],
        row[EVENTS.positions],
        row[EVENTS.steps],
        row[EVENTS.planes],
    )
    width = channels if row[EVENTS.x_floats] else (channels + WORD - 1) // WORD
    stride = positions * width
    lists = (steps + STEPS_TOGETHER - 1) // STEPS_TOGETHER
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= lists * positions:
            break
        t, p = unit // positions * STEPS_TOGETHER, unit % positions
        s = min(STEPS_TOGETHER, steps - t)
        x = row[EVENTS.x] + t * stride + p * width
        rows, places = row[EVENTS.rows] + unit * channels, row[EVENTS.places] + unit * channels
        values = row[EVENTS.values] + unit * channels * STEPS_TOGETHER
        if row[EVENTS.x_floats]:
            n = _floats(m, x, channels, stride, s, rows, places, values)
        elif planes > 1:
            n = _counts(m, x, width, stride, s, planes, steps * stride, rows, places, values)
        else:
            n = _spikes(m, x, width, stride, s, rows, places, row[EVENTS.patterns])
        m.ints[row[EVENTS.counts] + unit] = n
