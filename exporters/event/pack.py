"""Weights and neurons as the kernels read them: blocks of rows, CSR, tables of windows and runs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from stdeploy.exporters.event.stages import (
    DECAY_INPUT,
    DIVIDE,
    LANES,
    MOST_VECTORS,
    POSITIONS_TOGETHER,
    SOFT,
    WORD,
)
from stdeploy.graph.ops import AvgPool, Conv, Linear, MaxPool, Neuron
from stdeploy.graph.weight import Array


@dataclass(frozen=True)
class Windows:
    """For every output position the pairs (tap, input position) that it sees, by position, then by tap."""

    ends: Array
    pairs: Array
    taps: int
    positions: int

    def table(self) -> Array:
        """int32: ends, then from an even place on the pairs."""
        return _table(self.ends, self.pairs)

    def visits(self) -> Array:
        """int32: of every POSITIONS_TOGETHER positions and each tap the end of its pairs, after a 0, then from an even place
        on the pairs (position among these, input position)."""
        position = np.repeat(np.arange(self.positions), np.diff(self.ends))
        group, place = np.divmod(position, POSITIONS_TOGETHER)
        run = group * self.taps + self.pairs[:, 0]
        order = np.argsort(run, kind="stable")
        runs = -(-self.positions // POSITIONS_TOGETHER) * self.taps
        return _table(_ends(run, runs), np.stack([place, self.pairs[:, 1]], axis=1)[order])

    def shifts(self) -> Array:
        """int32: of each tap and every WORD positions the end of its shifts, after a 0, then the shifts: how far the input
        position lies behind the output's, and which of the positions it lies so far from (low and high half of a word)."""
        position = np.repeat(np.arange(self.positions), np.diff(self.ends))
        word, bit = np.divmod(position, WORD)
        words = -(-self.positions // WORD)
        run, far = self.pairs[:, 0] * words + word, self.pairs[:, 1] - position
        order = np.lexsort((far, run))
        run, far, bits = run[order], far[order], np.uint64(1) << bit[order].astype(np.uint64)
        first = np.flatnonzero(np.diff(run, prepend=-1).astype(bool) | np.diff(far, prepend=0).astype(bool))
        masks = np.bitwise_or.reduceat(bits, first) if first.size else bits
        ends = _ends(run[first], self.taps * words)
        shifts = np.concatenate(
            [far[first, None].astype(np.int32), masks.view(np.int32).reshape(-1, 2)], axis=1
        )
        return np.concatenate([ends.astype(np.int32), shifts.reshape(-1)])


def _ends(run: Array, runs: int) -> Array:
    """Where each of `runs` runs ends, after a 0, in entries that lie run by run; `run`: of each entry the run that it is in."""
    return np.concatenate([[0], np.cumsum(np.bincount(run, minlength=runs))])


def _table(ends: Array, pairs: Array) -> Array:
    """int32: ends, then from an even place on the pairs."""
    gap = np.zeros(ends.size % 2, np.int32)
    return np.concatenate([ends, gap, pairs.reshape(-1)]).astype(np.int32)


def identity(positions: int) -> Windows:
    """Every position sees itself, by one tap."""
    places = np.arange(positions)
    pairs = np.stack([np.zeros_like(places), places], axis=1)
    return Windows(np.arange(positions + 1), pairs, 1, positions)


def windows(op: Conv | MaxPool | AvgPool, shape: tuple[int, ...], out: tuple[int, ...]) -> Windows:
    """The windows of a convolution or a pool over `shape` (spatial); what lies outside is left out."""
    kernel = op.weight.shape[2:] if isinstance(op, Conv) else op.kernel
    dilation = (1,) * len(kernel) if isinstance(op, AvgPool) else op.dilation
    outs = np.stack(np.meshgrid(*(np.arange(n) for n in out), indexing="ij"), axis=-1).reshape(
        -1, 1, len(out)
    )
    taps = np.stack(np.meshgrid(*(np.arange(k) for k in kernel), indexing="ij"), axis=-1).reshape(
        1, -1, len(out)
    )
    at = outs * np.array(op.stride) + taps * np.array(dilation) - np.array(op.padding)
    inside = ((at >= 0) & (at < np.array(shape))).all(axis=-1)
    flat = (at * np.array([int(np.prod(shape[i + 1 :])) for i in range(len(shape))])).sum(axis=-1)
    tap = np.broadcast_to(np.arange(taps.shape[1]), inside.shape)
    ends = np.concatenate([[0], np.cumsum(inside.sum(axis=1))])
    return Windows(ends, np.stack([tap[inside], flat[inside]], axis=1), taps.shape[1], outs.shape[0])


def matrix(op: Linear | Conv) -> scipy.sparse.csr_array:
    """Weights [outputs, tap x C + c] of a product, groups and all."""
    weight = op.weight.array()
    if isinstance(op, Linear):
        return scipy.sparse.csr_array(weight)
    outputs, inputs = weight.shape[:2]
    flat = weight.reshape(outputs, inputs, -1).transpose(0, 2, 1)
    taps, per = flat.shape[1], outputs // op.groups
    parts = []
    for g in range(op.groups):
        o, tap, c = np.nonzero(flat[g * per : (g + 1) * per])
        column = tap * inputs * op.groups + g * inputs + c
        parts.append((flat[g * per + o, tap, c], g * per + o, column))
    data, rows, columns = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return scipy.sparse.csr_array((data, (rows, columns)), shape=(outputs, taps * inputs * op.groups))


def blocks_of(outputs: int) -> tuple[int, int]:
    """Blocks, and vectors of 16 in each, that hold `outputs`."""
    vectors = -(-outputs // LANES)
    blocks = -(-vectors // MOST_VECTORS)
    return blocks, -(-vectors // blocks)


def padded(values: Array, outputs: int, fill: float) -> Array:
    """[..., outputs] with the room of its blocks: [..., blocks x vectors x 16], float32."""
    blocks, vectors = blocks_of(outputs)
    room = np.full((*values.shape[:-1], blocks * vectors * LANES), fill, np.float32)
    room[..., :outputs] = values
    return room


def rows(op: Linear | Conv, found: Array, unit: float = 1.0) -> tuple[Array, Array]:
    """Dense rows [part rows, 16 vectors] of every part that is `touched`, and how many of all [blocks, rows] are not zero."""
    weight = _by_tap(unit_scaled(op.weight.array(), unit))
    inputs, (blocks, _, channels) = weight.shape[1], found.shape
    size = blocks_of(len(weight))[1] * LANES
    kept = np.repeat(_by_word(found), WORD, axis=2)[..., :channels]
    dense = np.zeros((np.count_nonzero(kept), size), np.float32)
    row = np.cumsum(kept).reshape(kept.shape) - 1
    for block, first, last, channel in _segments(op, channels):
        seen = (block, slice(None), slice(channel, channel + inputs))
        outputs = slice(first - block * size, last - block * size)
        dense[row[seen][kept[seen]], outputs] = weight[first:last].T[kept[seen]]
    nonzero = np.zeros(kept.shape, np.int32)
    nonzero[kept] = np.count_nonzero(dense, axis=1)
    return dense, nonzero.reshape(blocks, -1)


def touched(op: Linear | Conv, channels: int) -> Array:
    """bool [blocks, taps, channels]: whether an input has a nonzero weight in a block of outputs."""
    there = _by_tap(op.weight.array()) != 0
    found = np.zeros((blocks_of(len(there))[0], there.shape[2], channels), bool)
    for block, first, last, channel in _segments(op, channels):
        found[block, :, channel : channel + there.shape[1]] |= there[first:last].any(axis=0).T
    return found


def _by_tap(weight: Array) -> Array:
    """[outputs, inputs, taps]."""
    return weight.reshape(*weight.shape[:2], math.prod(weight.shape[2:]))


def _segments(op: Linear | Conv, channels: int) -> Iterator[tuple[int, int, int, int]]:
    """Block, first and last output, and the group's first channel, of outputs of one block and one group."""
    outputs, inputs = op.weight.shape[:2]
    size, per = blocks_of(outputs)[1] * LANES, outputs * inputs // channels
    for first in sorted({*range(0, outputs, size), *range(0, outputs, per)}):
        block, group = first // size, first // per
        yield block, first, min(outputs, (block + 1) * size, (group + 1) * per), group * inputs


def parts(found: Array) -> Array:
    """int32: blocks + 1 ends, then (tap, first channel, first row of `rows`) of the runs of WORD rows that are `touched`."""
    block, tap, word = np.nonzero(_by_word(found))
    ends = _ends(block, found.shape[0])
    sizes = np.minimum(WORD, found.shape[2] - word * WORD)
    triples = np.stack([tap, word * WORD, np.cumsum(sizes) - sizes], axis=1)
    return np.concatenate([ends, triples.reshape(-1)]).astype(np.int32)


def parts_of(op: Linear | Conv, channels: int) -> tuple[int, int]:
    """How many `parts` a product has in all its blocks, and how many rows they are."""
    words = _by_word(touched(op, channels)).sum(axis=(0, 1))
    sizes = np.minimum(WORD, channels - WORD * np.arange(words.size))
    return int(words.sum()), int(words @ sizes)


def _by_word(found: Array) -> Array:
    """bool [blocks, taps, words]: whether any of WORD channels is touched."""
    return np.logical_or.reduceat(found, np.arange(0, found.shape[2], WORD), axis=2)


def neuron(op: Neuron, channels: int) -> tuple[Array, int]:
    """[3, channels]: tau or 1/tau, rest, threshold; and the neuron's kind."""

    def each(value: Array) -> Array:
        return np.broadcast_to(np.asarray(value, np.float32), (channels,))

    kind = SOFT if op.v_reset is None else 0
    rest = np.zeros(channels, np.float32) if op.v_reset is None else each(op.v_reset)
    if op.tau is None:
        return np.stack([np.zeros(channels, np.float32), rest, each(op.v_threshold)]), kind
    tau = each(op.tau)
    exact = bool(np.all(np.frexp(tau)[0] == 0.5))  # a power of two: x / tau is x * (1 / tau)
    kind |= (DECAY_INPUT if op.decay_input else 0) | (0 if exact else DIVIDE)
    return np.stack([1 / tau if exact else tau, rest, each(op.v_threshold)]), kind


def unit_scaled(weights: Array, unit: float) -> Array:
    """Weights times the unit of the counts that they meet."""
    return weights if unit == 1 else weights * np.float32(unit)
