"""Matrix attention: K^T V by counting bits, Q (K^T V) by masked sums, anything else in floats."""

from __future__ import annotations

from typing import Any

import numpy as np

from stdeploy.exporters.event.stages import WORD, Pairs, Product, Tokens
from stdeploy.runtime.event.fire import fire_positions
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
        for j in range(WORD):
            m.floats[v + j] = m.floats[place + j] if m.step and j < valid else m.weights[neuron + 3 * o + 1]
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
        fire_positions(m.floats, sums, v, WORD, m.weights, neuron + 3 * o, row[PAIRS.kind], m.halves, 4 * y)
        if valid < WORD:
            m.words[y] &= (np.uint64(1) << np.uint64(valid)) - np.uint64(1)
    if neuron >= 0 and state >= 0:
        for j in range(valid):
            m.floats[place + j] = m.floats[v + j]


@jit
def pairs(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `pairs` stage (stages.Pairs)."""
    outputs, words = row[PAIRS.outputs], (row[PAIRS.positions] + WORD - 1) // WORD
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= outputs * words:
            break
        _pairs_output(m, row, stage, unit % outputs, unit // outputs, m.scratch, m.scratch + WORD)


@jit
def product(m: Memory, row: Any, stage: int) -> None:
    """One thread's share of a `product` stage: one (head, step) at a time (stages.Product)."""
    n, k, over = row[PRODUCT.n], row[PRODUCT.m], row[PRODUCT.over]
    while True:
        unit = fetch_add(m.control, stage + 1, 1)
        if unit >= row[PRODUCT.heads] * row[PRODUCT.steps]:
            break
        head, t = unit % row[PRODUCT.heads], unit // row[PRODUCT.heads]
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
        f = m.floats
        synops = 0
        if over == 0:  # y[h, i, j] = sum_c a[c, i] b[c, j]
            out = y + head * n * k
            for i in range(n * k):
                f[out + i] = 0
            for c in range(da):
                for i in range(n):
                    value = f[a + (a0 + c) * n + i]
                    if value != 0:
                        for j in range(k):
                            f[out + i * k + j] += value * f[b + (b0 + c) * k + j]
        elif over == 1:  # y[c, i] = sum_j a[h, i, j] b[c, j]
            for c in range(db):
                for i in range(n):
                    total = np.float32(0)
                    for j in range(k):
                        total += f[a + (head * n + i) * k + j] * f[b + (b0 + c) * k + j]
                    f[y + (b0 + c) * n + i] = total
        elif over == 2:  # y[h, d, e] = sum_i a[d, i] b[e, i]
            for d in range(da):
                for e in range(db):
                    total = np.float32(0)
                    for i in range(n):
                        total += f[a + (a0 + d) * n + i] * f[b + (b0 + e) * n + i]
                    f[y + pair + d * db + e] = total
        else:  # y[e, i] = sum_d a[d, i] pair[d, e]
            for e in range(db):
                for i in range(n):
                    f[y + (b0 + e) * n + i] = 0
                for d in range(da):
                    value = f[b + pair + d * db + e]
                    if value != 0:
                        for i in range(n):
                            f[y + (b0 + e) * n + i] += value * f[a + (a0 + d) * n + i]
        if m.counting:
            synops = _product_synops(m, over, a, b, a0, da, b0, db, pair, n, k, head)
            fetch_add(m.synops, stage * m.steps + t, synops)


@jit
def _product_synops(
    m: Memory,
    over: int,
    a: int,
    b: int,
    a0: int,
    da: int,
    b0: int,
    db: int,
    pair: int,
    n: int,
    k: int,
    head: int,
) -> int:
    """Products of two numbers that are both not zero."""
    f = m.floats
    total = 0
    if over == 0:
        for c in range(da):
            left = right = 0
            for i in range(n):
                left += f[a + (a0 + c) * n + i] != 0
            for j in range(k):
                right += f[b + (b0 + c) * k + j] != 0
            total += left * right
    elif over == 1:
        for j in range(k):
            left = right = 0
            for i in range(n):
                left += f[a + (head * n + i) * k + j] != 0
            for c in range(db):
                right += f[b + (b0 + c) * k + j] != 0
            total += left * right
    elif over == 2:
        for i in range(n):
            left = right = 0
            for d in range(da):
                left += f[a + (a0 + d) * n + i] != 0
            for e in range(db):
                right += f[b + (b0 + e) * n + i] != 0
            total += left * right
    else:
        for d in range(da):
            left = right = 0
            for i in range(n):
                left += f[a + (a0 + d) * n + i] != 0
            for e in range(db):
                right += f[b + pair + d * db + e] != 0
            total += left * right
    return total
