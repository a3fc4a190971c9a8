"""Everything that is neither a product nor a spike's bit: floats, element by element."""

from __future__ import annotations

from typing import Any

import numpy as np

from stdeploy.exporters.event.float_stages import (
    Affine,
    Constant,
    Elementwise,
    Fire,
    FirePositions,
    Flip,
    Gather,
    Readout,
    Segments,
    Select,
)
from stdeploy.exporters.event.stages import LANES, WORD
from stdeploy.runtime.event.fire import begin_membranes, fire_channels, fire_word, keep_membranes
from stdeploy.runtime.event.jit import Memory, jit
from stdeploy.runtime.event.scalars import fetch_add

FLIP, FIRE, FIRE_P, ELEMENT, AFFINE = Flip(), Fire(), FirePositions(), Elementwise(), Affine()
GATHER, SEGMENTS, SELECT, READOUT, CONSTANT = Gather(), Segments(), Select(), Readout(), Constant()
CHUNK = 4096
"""Elements that a thread takes at a time."""


@jit
def flip(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `flip` stage (float_stages.Flip)."""
    steps, channels, positions = row[FLIP.steps], row[FLIP.channels], row[FLIP.positions]
    tiles = (channels + LANES - 1) // LANES
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= steps * tiles:
            break
        t, first = unit // tiles, unit % tiles * LANES
        last = min(channels, first + LANES)
        by_channel, by_position = t * channels * positions, t * positions * channels
        if row[FLIP.to_positions]:
            for p in range(positions):
                for c in range(first, last):
                    m.floats[row[FLIP.y] + by_position + p * channels + c] = m.floats[
                        row[FLIP.x] + by_channel + c * positions + p
                    ]
        else:
            for p in range(positions):
                for c in range(first, last):
                    m.floats[row[FLIP.y] + by_channel + c * positions + p] = m.floats[
                        row[FLIP.x] + by_position + p * channels + c
                    ]


@jit
def fire(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `fire` stage (float_stages.Fire)."""
    steps, channels, positions, state = (
        row[FIRE.steps],
        row[FIRE.channels],
        row[FIRE.positions],
        row[FIRE.state],
    )
    words = (positions + WORD - 1) // WORD
    h, v = m.scratch, m.scratch + WORD
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= channels * words:
            break
        c, w = unit // words, unit % words
        valid = min(WORD, positions - w * WORD)
        neuron, place = row[FIRE.neuron] + 3 * c, state + c * positions + w * WORD
        begin_membranes(m, place, v, WORD, valid, m.weights[neuron + 1])
        for t in range(steps):
            x = row[FIRE.x] + ((t if row[FIRE.x_steps] > 1 else 0) * channels + c) * positions + w * WORD
            for j in range(WORD):
                m.floats[h + j] = m.floats[x + j] if j < valid else np.float32(0)
            y = row[FIRE.y] + unit * steps + t
            fire_word(m, h, v, WORD, valid, neuron, row[FIRE.kind], y)
        if state >= 0:
            keep_membranes(m, v, place, valid)


@jit
def fire_by_position(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `fire_positions` stage (float_stages.FirePositions)."""
    steps, channels, positions = row[FIRE_P.steps], row[FIRE_P.channels], row[FIRE_P.positions]
    state, size, neuron = row[FIRE_P.state], row[FIRE_P.size], row[FIRE_P.neuron]
    words = (channels + WORD - 1) // WORD
    h, v = m.scratch, m.scratch + WORD
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= positions * words:
            break
        p, w = unit // words, unit % words
        valid = min(WORD, channels - w * WORD)
        place = state + p * channels + w * WORD
        for j in range(WORD):
            rest = m.weights[neuron + size + w * WORD + j]
            m.floats[v + j] = m.floats[place + j] if m.step and j < valid else rest
        for t in range(steps):
            x = row[FIRE_P.x] + ((t if row[FIRE_P.x_steps] > 1 else 0) * positions + p) * channels + w * WORD
            for j in range(WORD):
                m.floats[h + j] = m.floats[x + j] if j < valid else np.float32(0)
            y = row[FIRE_P.y] + (t * positions + p) * words + w
            fire_channels(
                m.floats, h, v, WORD, m.weights, neuron + w * WORD, size, row[FIRE_P.kind], m.halves, 4 * y
            )
        if state >= 0:
            keep_membranes(m, v, place, valid)


@jit
def elementwise(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of an `elementwise` stage (float_stages.Elementwise)."""
    size, ia, ib = row[ELEMENT.size], row[ELEMENT.a_index], row[ELEMENT.b_index]
    chunks = (size + CHUNK - 1) // CHUNK
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= chunks * row[ELEMENT.steps]:
            break
        t, first = unit // chunks, unit % chunks * CHUNK
        last = min(size, first + CHUNK)
        a = row[ELEMENT.a] + (t * row[ELEMENT.a_size] if row[ELEMENT.a_steps] > 1 else 0)
        b = row[ELEMENT.b] + (t * row[ELEMENT.b_size] if row[ELEMENT.b_steps] > 1 else 0)
        y = row[ELEMENT.y] + t * size
        for i in range(first, last):
            left = m.floats[a + (m.indices[ia + i] if ia >= 0 else i)]
            right = m.floats[b + (m.indices[ib + i] if ib >= 0 else i)]
            m.floats[y + i] = left * right if row[ELEMENT.multiply] else left + right
        if m.counting and row[ELEMENT.multiply]:
            synops = 0
            for i in range(first, last):
                left = m.floats[a + (m.indices[ia + i] if ia >= 0 else i)]
                right = m.floats[b + (m.indices[ib + i] if ib >= 0 else i)]
                synops += left != 0 and right != 0
            fetch_add(m.synops, stage * m.steps + t, synops)


@jit
def affine(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of an `affine` stage (float_stages.Affine)."""
    channels, inner = row[AFFINE.channels], row[AFFINE.inner]
    units = row[AFFINE.steps] * row[AFFINE.outer]
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= units:
            break
        for c in range(channels):
            at = (unit * channels + c) * inner
            scale = m.weights[row[AFFINE.scale] + c]
            for j in range(at, at + inner):
                m.floats[row[AFFINE.y] + j] = scale * m.floats[row[AFFINE.x] + j]
            if row[AFFINE.shift] >= 0:
                shift = m.weights[row[AFFINE.shift] + c]
                for j in range(at, at + inner):
                    m.floats[row[AFFINE.y] + j] += shift


@jit
def gather(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `gather` stage (float_stages.Gather)."""
    size, index, to = row[GATHER.size], row[GATHER.source], row[GATHER.to]
    while True:
        t = fetch_add(m.control, stage + 1, 1)
        if t >= row[GATHER.steps]:
            break
        x = row[GATHER.x] + (t * row[GATHER.x_size] if row[GATHER.x_steps] > 1 else 0)
        y = row[GATHER.y] + t * row[GATHER.y_size]
        for i in range(size):
            m.floats[y + (m.indices[to + i] if to >= 0 else i)] = m.floats[x + m.indices[index + i]]


@jit
def segments(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `segments` stage (float_stages.Segments)."""
    size, table = row[SEGMENTS.size], row[SEGMENTS.table]
    places = table + size + 1
    chunks = (size + WORD - 1) // WORD
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= row[SEGMENTS.steps] * chunks:
            break
        t, first = unit // chunks, unit % chunks * WORD
        x, y = row[SEGMENTS.x] + t * row[SEGMENTS.x_size], row[SEGMENTS.y] + t * size
        for i in range(first, min(size, first + WORD)):
            begin, end = m.indices[table + i], m.indices[table + i + 1]
            if row[SEGMENTS.divisor] >= 0:
                total = np.float32(0)
                for k in range(begin, end):
                    total += m.floats[x + m.indices[places + k]]
                m.floats[y + i] = total / m.weights[row[SEGMENTS.divisor] + i]
            else:
                best = np.float32(-np.inf)
                for k in range(begin, end):
                    value = m.floats[x + m.indices[places + k]]
                    if value > best or np.isnan(value):  # not a number stays one
                        best = value
                m.floats[y + i] = best


@jit
def select(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `select` stage: insertion sort of the best, ties by index (float_stages.Select)."""
    tokens, count, channels = row[SELECT.tokens], row[SELECT.kept], row[SELECT.channels]
    while True:
        t = fetch_add(m.control, stage + 1, 1)
        if t >= row[SELECT.steps]:
            break
        own = t if row[SELECT.score_steps] > 1 else 0
        chosen = row[SELECT.chosen] + t * count
        if not row[SELECT.forced]:
            scores = row[SELECT.scores] + own * tokens
            kept = 0
            for i in range(tokens):
                key = _key(m, row, scores + i)
                at = kept
                while at > 0 and key > _key(m, row, scores + m.ints[chosen + at - 1]):
                    at -= 1
                if at >= count:
                    continue
                kept = min(count, kept + 1)
                for j in range(kept - 1, at, -1):
                    m.ints[chosen + j] = m.ints[chosen + j - 1]
                m.ints[chosen + at] = i
            if row[SELECT.by_index]:
                _sort(m, chosen, count)
        x = row[SELECT.x] + (t if row[SELECT.x_steps] > 1 else 0) * channels * tokens
        y = row[SELECT.y] + t * channels * count
        for c in range(channels):
            for j in range(count):
                m.floats[y + c * count + j] = m.floats[x + c * tokens + m.ints[chosen + j]]


@jit
def _key(m: Memory, row: Any, at: int) -> Any:
    score = m.floats[at]
    if row[SELECT.unit] >= 0:
        score = np.float32(np.rint(score / m.weights[row[SELECT.unit]]))
    return score if row[SELECT.largest] else -score


@jit
def _sort(m: Memory, at: int, count: int) -> None:
    for i in range(1, count):
        value, j = m.ints[at + i], i
        while j > 0 and m.ints[at + j - 1] > value:
            m.ints[at + j] = m.ints[at + j - 1]
            j -= 1
        m.ints[at + j] = value


@jit
def readout(m: Memory, row: Any, stage: int) -> None:
    """A `readout` stage, on one thread: what it sums is small (float_stages.Readout)."""
    if fetch_add(m.control, stage + 1, 1):
        return
    x, y, size, x_steps, state = (
        row[READOUT.x],
        row[READOUT.y],
        row[READOUT.size],
        row[READOUT.x_steps],
        row[READOUT.state],
    )
    if row[READOUT.mode] == 2 or x_steps == 0:
        last = x + (max(x_steps, 1) - 1) * size
        times = row[READOUT.total] if state < 0 else m.step + 1  # the whole run, or a stream
        factor = np.float32(times if row[READOUT.mode] == 1 and x_steps == 0 else 1)
        for i in range(size):
            m.floats[y + i] = m.floats[last + i] * factor
        return
    steps = np.float32(row[READOUT.total] if state < 0 else m.step + x_steps)
    for i in range(size):
        total = m.floats[x + i]
        if state >= 0 and m.step:
            total += m.floats[state + i]
        for t in range(1, x_steps):
            total += m.floats[x + t * size + i]
        if state >= 0:
            m.floats[state + i] = total
        m.floats[y + i] = total / steps if row[READOUT.mode] == 0 else total


@jit
def constant(m: Memory, row: Any, stage: int) -> None:
    """A `constant` stage, on one thread (float_stages.Constant)."""
    if fetch_add(m.control, stage + 1, 1):
        return
    size = row[CONSTANT.size]
    for t in range(row[CONSTANT.steps]):
        value = row[CONSTANT.value] + (m.step + t) * row[CONSTANT.stride]
        for i in range(size):
            m.floats[row[CONSTANT.y] + t * size + i] = m.weights[value + i]
