"""Spikes and counts as bits: turned, packed, unpacked, unfolded, pooled and added, 64 at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from stdeploy.exporters.event.bit_stages import AddCounts, CopyRows, Gate, Pack, Turn, Unfold, Union, Unpack
from stdeploy.exporters.event.stages import LANES, WORD
from stdeploy.runtime.event.jit import Memory, jit
from stdeploy.runtime.event.scalars import fetch_add, ones
from stdeploy.runtime.event.vectors import add_bits, fill_vectors

TURN, PACK, UNPACK, UNFOLD, UNION = Turn(), Pack(), Unpack(), Unfold(), Union()
ADD, COPY, GATE = AddCounts(), CopyRows(), Gate()
CHUNK = 512
"""Words that a thread takes at a time where any division will do."""
ROWS = 32
"""Rows of a channel, as a tap sees it, that a thread takes at a time."""

_ONE = np.uint64(1)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@jit
def _transpose(words: Any, at: int) -> None:
    """The 64 x 64 bits in words[at:at+64], transposed in place by halves (Warren, Hacker's Delight, 7-3)."""
    size = 32
    mask = np.uint64(0x00000000FFFFFFFF)
    while size:
        shift = np.uint64(size)
        k = 0
        while k < WORD:
            for j in range(k, k + size):
                low, high = words[at + j], words[at + j + size]
                swap = ((low >> shift) ^ high) & mask
                words[at + j] = low ^ (swap << shift)
                words[at + j + size] = high ^ swap
            k += 2 * size
        size //= 2
        if size:
            mask ^= mask << np.uint64(size)


@jit
def turn(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `turn` stage (bit_stages.Turn)."""
    steps, channels, positions = row[TURN.steps], row[TURN.channels], row[TURN.positions]
    by_channel, by_position = (positions + WORD - 1) // WORD, (channels + WORD - 1) // WORD
    block = m.scratch // 2
    units = row[TURN.planes] * steps * by_channel * by_position
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= units:
            break
        k, c = unit % by_position, unit // by_position
        w, c = c % by_channel, c // by_channel
        t, plane = c % steps, c // steps
        in_positions = ((plane * steps + t) * positions + w * WORD) * by_position + k
        in_channels = ((plane * channels + k * WORD) * by_channel + w) * steps + t
        p, c = min(WORD, positions - w * WORD), min(WORD, channels - k * WORD)
        if row[TURN.to_positions]:
            first, count, stride, x = c, p, by_channel * steps, row[TURN.x] + in_channels
            y, y_stride = row[TURN.y] + in_positions, by_position
        else:
            first, count, stride, x = p, c, by_position, row[TURN.x] + in_positions
            y, y_stride = row[TURN.y] + in_channels, by_channel * steps
        for j in range(WORD):
            m.words[block + j] = m.words[x + j * stride] if j < first else np.uint64(0)
        _transpose(m.words, block)
        for j in range(count):
            m.words[y + j * y_stride] = m.words[block + j]


@jit
def unpack(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of an `unpack` stage (bit_stages.Unpack)."""
    steps, channels, positions = row[UNPACK.steps], row[UNPACK.channels], row[UNPACK.positions]
    words = (positions + WORD - 1) // WORD
    room = m.scratch
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= channels * words:
            break
        c, w = unit // words, unit % words
        for t in range(steps):
            fill_vectors(np.float32(0), m.floats, room, WORD // LANES)
            size = m.weights[row[UNPACK.unit]]
            for k in range(row[UNPACK.planes]):
                word = row[UNPACK.x] + ((k * channels + c) * words + w) * steps + t
                for j in range(WORD // LANES):
                    add_bits(m.halves, 4 * word + j, size, m.floats, room + j * LANES)
                size *= np.float32(2)
            y = row[UNPACK.y] + (t * channels + c) * positions + w * WORD
            for j in range(min(WORD, positions - w * WORD)):
                m.floats[y + j] = m.floats[room + j]


@jit
def pack(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `pack` stage (bit_stages.Pack)."""
    steps, channels, positions, planes = (
        row[PACK.steps],
        row[PACK.channels],
        row[PACK.positions],
        row[PACK.planes],
    )
    words = (positions + WORD - 1) // WORD
    unit_value = m.weights[row[PACK.unit]]
    while True:
        c = fetch_add(m.control, stage + 1, 1)
        if c >= channels:
            break
        for t in range(steps):
            x = row[PACK.x] + (t * channels + c) * positions
            for w in range(words):
                y = row[PACK.y] + (c * words + w) * steps + t
                for k in range(planes):
                    m.words[y + k * channels * words * steps] = 0
                for j in range(min(WORD, positions - w * WORD)):
                    count = np.uint64(np.rint(m.floats[x + w * WORD + j] / unit_value))
                    for k in range(planes):
                        bit = (count >> np.uint64(k)) & _ONE
                        m.words[y + k * channels * words * steps] |= bit << np.uint64(j)


@jit
def _add_shifted(m: Memory, x: int, steps: int, at: int, mask: Any, out: int) -> None:
    """Or 64 bits of each step, from bit `at` on of the row at x, into `out` under a mask; the row has those that it lets pass."""
    word, shift = x + (at >> 6) * steps, np.uint64(at & (WORD - 1))
    low = _ALL >> shift
    if mask & low:
        for t in range(steps):
            m.words[out + t] |= (m.words[word + t] >> shift) & mask
    if mask & ~low:
        for t in range(steps):
            m.words[out + t] |= (m.words[word + steps + t] << (np.uint64(WORD) - shift)) & mask


@jit
def _unfold_row(m: Memory, row: Any, tap: int, x: int, y: int) -> None:
    """One channel's row at x, as a tap sees it, to y."""
    steps = row[UNFOLD.steps]
    words = (row[UNFOLD.positions] + WORD - 1) // WORD
    shifts = row[UNFOLD.shifts] + row[UNFOLD.taps] * words + 1
    for j in range(words * steps):
        m.words[y + j] = 0
    for w in range(words):
        end = row[UNFOLD.shifts] + tap * words + w
        for k in range(m.indices[end], m.indices[end + 1]):
            mask = np.uint64(np.uint32(m.indices[shifts + 3 * k + 1]))
            mask |= np.uint64(np.uint32(m.indices[shifts + 3 * k + 2])) << np.uint64(32)
            at = w * WORD + m.indices[shifts + 3 * k]
            _add_shifted(m, x, steps, at, mask, y + w * steps)


@jit
def unfold(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of an `unfold` stage (bit_stages.Unfold)."""
    steps, channels, taps = row[UNFOLD.steps], row[UNFOLD.channels], row[UNFOLD.taps]
    x_words = (row[UNFOLD.x_positions] + WORD - 1) // WORD
    words = (row[UNFOLD.positions] + WORD - 1) // WORD
    units = row[UNFOLD.planes] * taps * channels
    while True:
        first = ROWS * fetch_add(m.control, stage + 1, 1)
        if first >= units:
            break
        for unit in range(first, min(units, first + ROWS)):
            c, tap = unit % channels, (unit // channels) % taps
            x = row[UNFOLD.x] + (unit // (channels * taps) * channels + c) * x_words * steps
            _unfold_row(m, row, tap, x, row[UNFOLD.y] + unit * words * steps)


@jit
def union(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `union` stage (bit_stages.Union)."""
    steps, positions, windows = row[UNION.steps], row[UNION.positions], row[UNION.windows]
    width = (row[UNION.channels] + WORD - 1) // WORD
    pairs = windows + (positions + 2) // 2 * 2
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= steps * positions:
            break
        t, p = unit // positions, unit % positions
        x = row[UNION.x] + t * row[UNION.x_positions] * width
        y = row[UNION.y] + unit * width
        for j in range(width):
            m.words[y + j] = 0
        for k in range(m.indices[windows + p], m.indices[windows + p + 1]):
            q = m.indices[pairs + 2 * k + 1]
            for j in range(width):
                m.words[y + j] |= m.words[x + q * width + j]


@jit
def add_counts(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of an `add_counts` stage: a ripple-carry adder, bit by bit plane (bit_stages.AddCounts)."""
    words = row[ADD.words] * row[ADD.steps]
    while True:
        first = fetch_add(m.control, stage + 1, CHUNK)
        if first >= words:
            break
        for j in range(first, min(words, first + CHUNK)):
            carry = np.uint64(0)
            for k in range(row[ADD.z_planes]):
                a = m.words[row[ADD.x] + k * words + j] if k < row[ADD.x_planes] else np.uint64(0)
                b = m.words[row[ADD.y] + k * words + j] if k < row[ADD.y_planes] else np.uint64(0)
                m.words[row[ADD.z] + k * words + j] = a ^ b ^ carry
                carry = (a & b) | (carry & (a ^ b))


@jit
def _spread(
    m: Memory, x: int, k: int, channels: int, positions: int, steps: int, c: int, w: int, t: int, all_: int
) -> Any:
    """Word w of channel c in plane k at step t of an operand that may have one channel, position or step for all."""
    words = (positions + WORD - 1) // WORD
    c, w, t = c if channels > 1 else 0, w if words > 1 else 0, t if steps > 1 else 0
    word = m.words[x + ((k * channels + c) * words + w) * steps + t]
    if positions == 1 and all_ > 1:
        return _ALL if word else np.uint64(0)
    return word


@jit
def gate(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `gate` stage: spikes mask counts, bit plane by bit plane (bit_stages.Gate)."""
    steps, channels, positions = row[GATE.steps], row[GATE.channels], row[GATE.positions]
    words = (positions + WORD - 1) // WORD
    planes = max(row[GATE.x_planes], row[GATE.y_planes])
    xc, xp, xs = row[GATE.x_channels], row[GATE.x_positions], row[GATE.x_steps]
    yc, yp, ys = row[GATE.y_channels], row[GATE.y_positions], row[GATE.y_steps]
    while True:
        c = fetch_add(m.control, stage + 1, 1)
        if c >= channels:
            break
        for t in range(steps):
            synops = 0
            for w in range(words):
                active = np.uint64(0)
                for k in range(planes):
                    a = _spread(
                        m, row[GATE.x], k if row[GATE.x_planes] > 1 else 0, xc, xp, xs, c, w, t, positions
                    )
                    b = _spread(
                        m, row[GATE.y], k if row[GATE.y_planes] > 1 else 0, yc, yp, ys, c, w, t, positions
                    )
                    m.words[row[GATE.z] + ((k * channels + c) * words + w) * steps + t] = a & b
                    active |= a & b
                synops += ones(active)
            if m.counting:
                fetch_add(m.synops, stage * m.steps + t, synops)


@jit
def copy_rows(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `copy_rows` stage (bit_stages.CopyRows)."""
    steps = row[COPY.steps]
    while True:
        plane = fetch_add(m.control, stage + 1, 1)
        if plane >= row[COPY.planes]:
            break
        x = row[COPY.x] + (plane * row[COPY.x_plane] + row[COPY.first]) * steps
        y = row[COPY.y] + (plane * row[COPY.y_plane] + row[COPY.to]) * steps
        for j in range(row[COPY.length] * steps):
            m.words[y + j] = m.words[x + j]
