"""Matrix attention: K^T V by counting bits, Q (K^T V) by masked sums, anything else in floats."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from stdeploy.exporters.event.stages import WORD, Pairs, Product, Tokens
from stdeploy.runtime.event.fire import begin_membranes, fire_word, keep_membranes
from stdeploy.runtime.event.jit import Memory, jit
from stdeploy.runtime.event.scalars import fetch_add, ones
from stdeploy.runtime.event.vectors import make_columns_sum

TOKENS, PAIRS, PRODUCT = Tokens(), Pairs(), Product()

_sum_pairs = make_columns_sum(1, 4, indexed=False)


@jit
def tokens(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `tokens` stage (stages.Tokens)."""
    steps, words = row[TOKENS.steps], (row[TOKENS.positions] + WORD - 1) // WORD
    while True:
        c = fetch_add(m.control, stage + 1, 1)
        if c >= row[TOKENS.a_channels]:
            break
        entry = row[TOKENS.table] + 3 * c
        b, count, pair = m.indices[entry], m.indices[entry + 1], m.indices[entry + 2]
        for t in range(steps):
            synops = 0
            for e in range(count):
                shared = 0
                for w in range(words):
                    mine = m.words[row[TOKENS.a] + (c * words + w) * steps + t]
                    shared += ones(mine & m.words[row[TOKENS.b] + ((b + e) * words + w) * steps + t])
                m.floats[row[TOKENS.y] + t * row[TOKENS.pairs] + pair + e] = shared
                synops += shared
            if m.counting:
                fetch_add(m.synops, stage * m.steps + t, synops)


@jit
def _count_pairs(
    m: Memory, row: Any, stage: int, first: int, count: int, pair: int, stride: int, t: int
) -> None:
    steps, words = row[PAIRS.steps], (row[PAIRS.positions] + WORD - 1) // WORD
    synops = 0
    for d in range(count):
        if m.floats[row[PAIRS.pair] + t * row[PAIRS.pairs] + pair + d * stride] != 0:
            for w in range(words):
                synops += ones(m.words[row[PAIRS.a] + ((first + d) * words + w) * steps + t])
    fetch_add(m.synops, stage * m.steps + t, synops)


@jit
def _pairs_output(m: Memory, row: Any, stage: int, o: int, w: int, sums: int, v: int) -> None:
    entry = row[PAIRS.table] + 4 * o
    first, count, pair, stride = (
        m.indices[entry],
        m.indices[entry + 1],
        m.indices[entry + 2],
        m.indices[entry + 3],
    )
    steps, positions, neuron, state = (
        row[PAIRS.steps],
        row[PAIRS.positions],
        row[PAIRS.neuron],
        row[PAIRS.state],
    )
    words = (positions + WORD - 1) // WORD
    valid = min(WORD, positions - w * WORD)
    place = state + o * positions + w * WORD
    scale = m.weights[row[PAIRS.scale]]
    if neuron >= 0:
        begin_membranes(m, place, v, WORD, valid, m.weights[neuron + 3 * o + 1])
    for t in range(steps):
        for j in range(WORD):
            m.floats[sums + j] = 0
        x = 4 * (row[PAIRS.a] + w * steps + t)
        data = row[PAIRS.pair] + t * row[PAIRS.pairs] + pair
        _sum_pairs(
            m.indices,
            first,
            m.floats,
            data,
            stride,
            np.float32(1),
            count,
            m.halves,
            x,
            4 * words * steps,
            m.floats,
            sums,
        )
        for j in range(WORD):
            m.floats[sums + j] *= scale
        if m.counting and w == 0:
            _count_pairs(m, row, stage, first, count, pair, stride, t)
        if neuron < 0:
            y = row[PAIRS.y] + (t * row[PAIRS.outputs] + o) * positions + w * WORD
            for j in range(valid):
                m.floats[y + j] = m.floats[sums + j]
            continue
        y = row[PAIRS.y] + (o * words + w) * steps + t
        fire_word(m, sums, v, WORD, valid, neuron + 3 * o, row[PAIRS.kind], y)
    if neuron >= 0 and state >= 0:
        keep_membranes(m, v, place, valid)


@jit
def pairs(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `pairs` stage (stages.Pairs)."""
    outputs, words = row[PAIRS.outputs], (row[PAIRS.positions] + WORD - 1) // WORD
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= outputs * words:
            break
        _pairs_output(m, row, stage, unit % outputs, unit // outputs, m.scratch, m.scratch + WORD)


class _Head(NamedTuple):
    """A head's operands and product in one step: places in floats, tokens of a and of b, channels of a and of b."""

    a: int
    b: int
    y: int
    n: int
    k: int
    da: int
    db: int


@jit
def _over_channels(f: Any, h: _Head) -> None:
    """y[i, j] = sum_c a[c, i] b[c, j]."""
    for i in range(h.n * h.k):
        f[h.y + i] = 0
    for c in range(h.da):
        for i in range(h.n):
            value = f[h.a + c * h.n + i]
            if value != 0:
                for j in range(h.k):
                    f[h.y + i * h.k + j] += value * f[h.b + c * h.k + j]


@jit
def _over_keys(f: Any, h: _Head) -> None:
    """y[c, i] = sum_j a[i, j] b[c, j]."""
    for c in range(h.db):
        for i in range(h.n):
            total = np.float32(0)
            for j in range(h.k):
                total += f[h.a + i * h.k + j] * f[h.b + c * h.k + j]
            f[h.y + c * h.n + i] = total


@jit
def _over_tokens(f: Any, h: _Head) -> None:
    """y[d, e] = sum_i a[d, i] b[e, i]."""
    for d in range(h.da):
        for e in range(h.db):
            total = np.float32(0)
            for i in range(h.n):
                total += f[h.a + d * h.n + i] * f[h.b + e * h.n + i]
            f[h.y + d * h.db + e] = total


@jit
def _over_pairs(f: Any, h: _Head) -> None:
    """y[e, i] = sum_d a[d, i] b[d, e]."""
    for e in range(h.db):
        for i in range(h.n):
            f[h.y + e * h.n + i] = 0
        for d in range(h.da):
            value = f[h.b + d * h.db + e]
            if value != 0:
                for i in range(h.n):
                    f[h.y + e * h.n + i] += value * f[h.a + d * h.n + i]


@jit
def _nonzero(f: Any, first: int, count: int, stride: int) -> int:
    """How many of `count` numbers from `first` on are not zero."""
    found = 0
    for i in range(count):
        found += f[first + i * stride] != 0
    return found


@jit
def _product_synops(f: Any, h: _Head, over: int) -> int:
    """Products of two numbers that are both not zero: for each index that is summed over, those of a times those of b."""
    total = 0
    if over == 0:
        for c in range(h.da):
            total += _nonzero(f, h.a + c * h.n, h.n, 1) * _nonzero(f, h.b + c * h.k, h.k, 1)
    elif over == 1:
        for j in range(h.k):
            total += _nonzero(f, h.a + j, h.n, h.k) * _nonzero(f, h.b + j, h.db, h.k)
    elif over == 2:
        for i in range(h.n):
            total += _nonzero(f, h.a + i, h.da, h.n) * _nonzero(f, h.b + i, h.db, h.n)
    else:
        for d in range(h.da):
            total += _nonzero(f, h.a + d * h.n, h.n, 1) * _nonzero(f, h.b + d * h.db, h.db, 1)
    return total


@jit
def _head(m: Memory, row: Any, head: int, t: int) -> _Head:
    """Head `head` in step t."""
    n, k, over = row[PRODUCT.n], row[PRODUCT.m], row[PRODUCT.over]
    a = row[PRODUCT.a] + (t * row[PRODUCT.a_size] if row[PRODUCT.a_steps] > 1 else 0)
    b = row[PRODUCT.b] + (t * row[PRODUCT.b_size] if row[PRODUCT.b_steps] > 1 else 0)
    y = row[PRODUCT.y] + t * row[PRODUCT.size]
    entry = row[PRODUCT.table] + 5 * head
    a0, da, b0, db, pair = (
        m.indices[entry],
        m.indices[entry + 1],
        m.indices[entry + 2],
        m.indices[entry + 3],
        m.indices[entry + 4],
    )
    if over == 0:
        return _Head(a + a0 * n, b + b0 * k, y + head * n * k, n, k, da, db)
    if over == 1:
        return _Head(a + head * n * k, b + b0 * k, y + b0 * n, n, k, da, db)
    if over == 2:
        return _Head(a + a0 * n, b + b0 * n, y + pair, n, k, da, db)
    return _Head(a + a0 * n, b + pair, y + b0 * n, n, k, da, db)


@jit
def product(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `product` stage: one (head, step) at a time (stages.Product)."""
    over, heads = row[PRODUCT.over], row[PRODUCT.heads]
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= heads * row[PRODUCT.steps]:
            break
        t = unit // heads
        h = _head(m, row, unit % heads, t)
        if over == 0:
            _over_channels(m.floats, h)
        elif over == 1:
            _over_keys(m.floats, h)
        elif over == 2:
            _over_tokens(m.floats, h)
        else:
            _over_pairs(m.floats, h)
        if m.counting:
            fetch_add(m.synops, stage * m.steps + t, _product_synops(m.floats, h, over))
