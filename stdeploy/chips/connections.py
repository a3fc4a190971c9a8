"""Which neuron reaches which: exact synapse counts of convolutions, pools, their chains and sums.

A population is a map [C, Y, X]; positions are numbered row-major, P = Y X. A relation between two populations says
for every pair of channels which pairs of positions are connected. Few of these position sets differ (a dense kernel
has one), so a relation is an [O, I] table of indices into them. A synapse is a pair of neurons, however many paths
of the linear nodes between them connect it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stdeploy.graph.rules import window_count
from stdeploy.graph.weight import Array

Shape = tuple[int, int, int]
Pair = tuple[int, int]
_CODE_BITS = 62


@dataclass(frozen=True, eq=False)
class Window:
    """Where the taps of a kernel [ky, kx] land: from [y, x] inputs to [y, x] outputs, zero padding outside."""

    inputs: Pair
    outputs: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def axis(self, a: int) -> Array:
        """[k, out]: input coordinate that tap k of output o reads; -1 outside the map."""
        reads = (
            np.arange(self.outputs[a])[None] * self.stride[a]
            + np.arange(self.kernel[a])[:, None] * self.dilation[a]
            - self.padding[a]
        )
        return np.where((reads >= 0) & (reads < self.inputs[a]), reads, -1)

    @cached_property
    def inside(self) -> tuple[Array, Array]:
        """Per axis [k, out]: 1 where the tap reads an input."""
        y, x = ((self.axis(a) >= 0).astype(np.int64) for a in (0, 1))
        return y, x

    @cached_property
    def hits(self) -> tuple[Array, Array]:
        """Per axis [k, in]: 1 where some output reads this input by this tap."""
        out = []
        for a in (0, 1):
            hit = np.zeros((self.kernel[a], self.inputs[a] + 1), dtype=np.int64)
            np.put_along_axis(hit, self.axis(a), 1, axis=1)
            out.append(hit[:, :-1])
        return out[0], out[1]


@dataclass(frozen=True, eq=False)
class Positions:
    """Pairs (output position, input position), as numbers output * P_in + input; and how many each has."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    make: Callable[[], NDArray[np.int64]]

    @classmethod
    def of_taps(cls, window: Window, taps: NDArray[np.bool_]) -> Positions:
        """Pairs that the taps [ky, kx] connect."""
        grid = taps.astype(np.int64)
        rows = (window.inside[0].T @ grid @ window.inside[1]).ravel()
        columns = (window.hits[0].T @ grid @ window.hits[1]).ravel()

        def make() -> NDArray[np.int64]:
            ys, xs = window.axis(0), window.axis(1)
            width, total = window.inputs[1], window.inputs[0] * window.inputs[1]
            outputs = np.arange(window.outputs[0] * window.outputs[1]).reshape(window.outputs)
            parts = []
            for ky, kx in np.argwhere(taps):
                y, x = np.meshgrid(ys[ky], xs[kx], indexing="ij")
                valid = (y >= 0) & (x >= 0)
                parts.append(outputs[valid] * total + y[valid] * width + x[valid])
            return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)

        return cls(rows, columns, make)

    @classmethod
    def of_keys(cls, keys: NDArray[np.int64], outputs: int, inputs: int) -> Positions:
        rows = np.bincount(keys // inputs, minlength=outputs)
        return cls(rows, np.bincount(keys % inputs, minlength=inputs), lambda: keys)

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        return self.make()


@dataclass(frozen=True, eq=False)
class Relation:
    """Synapses from a population of shape `source` to one of shape `target`; `index` [O, I]: -1 for none."""

    target: Shape
    source: Shape
    index: NDArray[np.int64]
    positions: tuple[Positions, ...]

    @cached_property
    def synapses(self) -> int:
        """Pairs of neurons."""
        pairs = np.bincount(self.index[self.index >= 0].ravel(), minlength=len(self.positions))
        return sum(int(n) * int(p.rows.sum()) for n, p in zip(pairs, self.positions, strict=True))

    @cached_property
    def fan_in(self) -> NDArray[np.int64]:
        """[O, P_out]: synapses of every target neuron."""
        return self._counted(1, [p.rows for p in self.positions], self.target)

    @cached_property
    def fan_out(self) -> NDArray[np.int64]:
        """[I, P_in]: synapses of every source neuron."""
        return self._counted(0, [p.columns for p in self.positions], self.source)

    def _counted(self, axis: int, counts: list[NDArray[np.int64]], shape: Shape) -> NDArray[np.int64]:
        out = np.zeros((shape[0], shape[1] * shape[2]), dtype=np.int64)
        for i, count in enumerate(counts):
            out += (self.index == i).sum(axis=axis)[:, None] * count[None]
        return out

    def after(self, first: Relation) -> Relation:
        """Synapses through both: a pair once, however many neurons of the middle it passes."""
        ways, patterns = [], []
        for a, later in enumerate(self.positions):
            for b, earlier in enumerate(first.positions):
                left, right = (self.index == a).astype(np.float32), (first.index == b).astype(np.float32)
                patterns.append((left @ right) > 0)
                ways.append(_joined(later.keys, earlier.keys, _size(first.target), _size(first.source)))
        return _merged(self.target, first.source, patterns, ways)

    def union(self, other: Relation) -> Relation:
        """Synapses of either."""
        patterns, ways = [], []
        for relation in (self, other):
            for i, positions in enumerate(relation.positions):
                patterns.append(relation.index == i)
                ways.append(positions.keys)
        return _merged(self.target, self.source, patterns, ways)


def kernel_relation(
    nonzero: NDArray[np.bool_],
    source: Shape,
    stride: Pair,
    padding: Pair,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Relation:
    """Relation of a convolution whose weight [O, I / groups, ky, kx] is nonzero there."""
    outs, inner, *kernel = nonzero.shape
    window = _window(source, (kernel[0], kernel[1]), stride, padding, dilation)
    code = _codes(nonzero.reshape(outs * inner, -1))
    found, first, place = np.unique(code, return_index=True, return_inverse=True)
    taps = nonzero.reshape(outs * inner, kernel[0], kernel[1])[first]
    live = [i for i in range(len(found)) if taps[i].any()]
    number = np.full(len(found), -1, dtype=np.int64)
    number[live] = np.arange(len(live))
    dense = number[place].reshape(outs, inner)
    index = np.full((outs, inner * groups), -1, dtype=np.int64)
    for g in range(groups):
        rows = slice(g * outs // groups, (g + 1) * outs // groups)
        index[rows, g * inner : (g + 1) * inner] = dense[rows]
    positions = tuple(Positions.of_taps(window, taps[i]) for i in live)
    return Relation((outs, *window.outputs), source, index, positions)


def pool_relation(source: Shape, kernel: Pair, stride: Pair, padding: Pair) -> Relation:
    """Relation of a pool: every channel by itself, the whole window."""
    window = _window(source, kernel, stride, padding, (1, 1))
    index = np.where(np.eye(source[0], dtype=bool), 0, -1).astype(np.int64)
    return Relation(
        (source[0], *window.outputs), source, index, (Positions.of_taps(window, np.ones(kernel, bool)),)
    )


def identity_relation(shape: Shape) -> Relation:
    """Every neuron to its equal."""
    return pool_relation(shape, (1, 1), (1, 1), (0, 0))


def _window(source: Shape, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Window:
    y, x = (
        window_count(n, k, s, p, d)
        for n, k, s, p, d in zip(source[1:], kernel, stride, padding, dilation, strict=True)
    )
    return Window((source[1], source[2]), (y, x), kernel, stride, padding, dilation)


def _codes(patterns: NDArray[np.bool_]) -> Array:
    """One comparable value per row of bits."""
    if patterns.shape[1] <= _CODE_BITS:
        code: Array = patterns @ (1 << np.arange(patterns.shape[1], dtype=np.int64))
        return code
    packed: Any = np.packbits(patterns, axis=1)
    row: Array = np.ascontiguousarray(packed).view(np.dtype((np.void, packed.shape[1]))).ravel()
    return row


def _size(shape: Shape) -> int:
    return shape[1] * shape[2]


def _joined(later: Array, earlier: Array, middle: int, inputs: int) -> NDArray[np.int64]:
    """Pairs (output, input) that share a middle position."""
    starts = np.searchsorted(earlier, np.arange(middle + 1) * inputs)
    outputs, via = later // middle, later % middle
    lengths = (starts[1:] - starts[:-1])[via]
    which = np.repeat(np.arange(len(later)), lengths)
    offset = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.unique(outputs[which] * inputs + earlier[starts[via[which]] + offset] % inputs)


def _merged(
    target: Shape, source: Shape, patterns: list[NDArray[np.bool_]], ways: list[NDArray[np.int64]]
) -> Relation:
    """A relation that connects a pair of channels by every way whose pattern [O, I] holds there."""
    shape = (target[0], source[0])
    stack = (
        np.stack([p.ravel() for p in patterns], axis=1)
        if patterns
        else np.zeros((shape[0] * shape[1], 0), bool)
    )
    found, first, place = np.unique(_codes(stack), return_index=True, return_inverse=True)
    positions: list[Positions] = []
    number = np.full(len(found), -1, dtype=np.int64)
    for i, row in enumerate(stack[first]):
        chosen = [ways[j] for j in np.flatnonzero(row)]
        if chosen:
            number[i] = len(positions)
            keys = chosen[0] if len(chosen) == 1 else np.unique(np.concatenate(chosen))
            positions.append(Positions.of_keys(keys, _size(target), _size(source)))
    return Relation(target, source, number[place].reshape(shape), tuple(positions))
