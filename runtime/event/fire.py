"""A neuron's charge, fire and reset on sums that still lie in the cache, by the neuron's kind (stages)."""

from __future__ import annotations

from typing import Any

import numpy as np

from stdeploy.exporters.event.stages import DECAY_INPUT, DIVIDE, LANES, SOFT, WORD
from stdeploy.runtime.event.jit import Memory, jit
from stdeploy.runtime.event.vectors import make_fire

_EACH = tuple(
    make_fire(bool(k & DECAY_INPUT), bool(k & DIVIDE), bool(k & SOFT), spread=False) for k in range(8)
)
_ALL = tuple(
    make_fire(bool(k & DECAY_INPUT), bool(k & DIVIDE), bool(k & SOFT), spread=True) for k in range(8)
)
_each0, _each1, _each2, _each3, _each4, _each5, _each6, _each7 = _EACH
_all0, _all1, _all2, _all3, _all4, _all5, _all6, _all7 = _ALL


@jit
def fire_channels(
    f: Any, x: int, v: int, count: int, weights: Any, p: int, stride: int, kind: int, halves: Any, out: int
) -> None:
    """`count` channels (a multiple of 16) of one position: tau, rest, threshold at p, p + stride, p + 2 stride."""
    n = count // LANES
    if kind == DECAY_INPUT:
        _each1(f, x, v, n, weights, p, stride, halves, out)
    elif kind == DECAY_INPUT | DIVIDE:
        _each3(f, x, v, n, weights, p, stride, halves, out)
    elif kind == 0:
        _each0(f, x, v, n, weights, p, stride, halves, out)
    elif kind == DIVIDE:
        _each2(f, x, v, n, weights, p, stride, halves, out)
    elif kind == DECAY_INPUT | SOFT:
        _each5(f, x, v, n, weights, p, stride, halves, out)
    elif kind == DECAY_INPUT | DIVIDE | SOFT:
        _each7(f, x, v, n, weights, p, stride, halves, out)
    elif kind == SOFT:
        _each4(f, x, v, n, weights, p, stride, halves, out)
    else:
        _each6(f, x, v, n, weights, p, stride, halves, out)


@jit
def fire_positions(
    f: Any, x: int, v: int, count: int, weights: Any, p: int, kind: int, halves: Any, out: int
) -> None:
    """`count` positions (a multiple of 16) of one channel, whose tau, rest and threshold are at p, p + 1, p + 2."""
    n = count // LANES
    if kind == DECAY_INPUT:
        _all1(f, x, v, n, weights, p, 1, halves, out)
    elif kind == DECAY_INPUT | DIVIDE:
        _all3(f, x, v, n, weights, p, 1, halves, out)
    elif kind == 0:
        _all0(f, x, v, n, weights, p, 1, halves, out)
    elif kind == DIVIDE:
        _all2(f, x, v, n, weights, p, 1, halves, out)
    elif kind == DECAY_INPUT | SOFT:
        _all5(f, x, v, n, weights, p, 1, halves, out)
    elif kind == DECAY_INPUT | DIVIDE | SOFT:
        _all7(f, x, v, n, weights, p, 1, halves, out)
    elif kind == SOFT:
        _all4(f, x, v, n, weights, p, 1, halves, out)
    else:
        _all6(f, x, v, n, weights, p, 1, halves, out)


@jit
def fire_word(m: Memory, x: int, v: int, count: int, valid: int, neuron: int, kind: int, y: int) -> None:
    """`count` positions of one channel as word y, of which `valid` are there: the bits of the others stay 0."""
    m.words[y] = 0
    fire_positions(m.floats, x, v, count, m.weights, neuron, kind, m.halves, 4 * y)
    if valid < WORD:
        m.words[y] &= (np.uint64(1) << np.uint64(valid)) - np.uint64(1)


@jit
def begin_membranes(m: Memory, place: int, v: int, count: int, valid: int, rest: Any) -> None:
    """`count` membranes at v: what was kept at `place` of those that are there, or at rest."""
    for j in range(count):
        m.floats[v + j] = m.floats[place + j] if m.step and j < valid else rest


@jit
def keep_membranes(m: Memory, v: int, place: int, valid: int) -> None:
    """Keep the membranes of neurons that are there for the next call."""
    for j in range(valid):
        m.floats[place + j] = m.floats[v + j]
