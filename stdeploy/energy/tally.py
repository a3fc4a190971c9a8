"""Accumulating statistics sample by sample in constant memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, combinations

import numpy as np

from stdeploy.energy.statistics import EXACT_VALUES, Joint, Moments, bucket
from stdeploy.graph.weight import Array

_HALF = 30


class Tally:
    """Statistics of `rows` integer quantities, each one number per sample."""

    def __init__(self, rows: int) -> None:
        self.n = 0
        self._total = np.zeros(rows, dtype=object)
        self._squares = np.zeros(rows, dtype=object)
        self._low: Array | None = None
        self._high: Array | None = None
        self._times: list[dict[int, int]] = [{} for _ in range(rows)]
        self._exact = [True] * rows

    def add(self, samples: Array) -> None:
        """Take `samples [rows, B]` int64 (or Python integers)."""
        if samples.shape[1] == 0:
            return
        self.n += samples.shape[1]
        self._total += _exact_sum(samples)
        self._squares += exact_products(samples, samples)
        low, high = samples.min(1), samples.max(1)
        self._low = low if self._low is None else np.minimum(self._low, low)
        self._high = high if self._high is None else np.maximum(self._high, high)
        for i, row in enumerate(samples.tolist()):
            self._note(i, row)

    def _note(self, i: int, row: Sequence[int]) -> None:
        times = self._times[i]
        if not self._exact[i]:
            row = [bucket(v) for v in row]
        for value in row:
            times[value] = times.get(value, 0) + 1
        if self._exact[i] and len(times) > EXACT_VALUES:
            self._exact[i], old, self._times[i] = False, times, {}
            for value, count in old.items():
                start = bucket(value)
                self._times[i][start] = self._times[i].get(start, 0) + count

    def moments(self, i: int) -> Moments:
        """Statistics of row i (ValueError where there is no sample)."""
        if self._low is None or self._high is None:
            raise ValueError("there is no sample")
        return Moments(
            self.n,
            int(self._total[i]),
            int(self._squares[i]),
            int(self._low[i]),
            int(self._high[i]),
            tuple(sorted(self._times[i].items())),
            self._exact[i],
        )


class JointTally:
    """Statistics of groups of named quantities of the same samples, with the sums of products within each group."""

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        self.groups = [tuple(names) for names in groups]
        self._starts = [0, *accumulate(len(names) for names in self.groups)]
        self._pairs = [
            (i, a, b) for i, names in enumerate(self.groups) for a, b in combinations(sorted(names), 2)
        ]
        self._left = [self._place(i, a) for i, a, _ in self._pairs]
        self._right = [self._place(i, b) for i, _, b in self._pairs]
        self._products = np.zeros(len(self._pairs), dtype=object)
        self._tally = Tally(self._starts[-1])

    def _place(self, group: int, name: str) -> int:
        return self._starts[group] + self.groups[group].index(name)

    def add(self, quantities: Sequence[Mapping[str, Array]]) -> None:
        """Take one number per sample, `[B]`, for every name of every group."""
        samples = np.stack(
            [q[name] for names, q in zip(self.groups, quantities, strict=True) for name in names]
        )
        self._tally.add(samples)
        self._products += exact_products(samples[self._left], samples[self._right])

    def joints(self) -> list[Joint]:
        """Every group's statistics (ValueError where there is no sample)."""
        products: list[dict[tuple[str, str], int]] = [{} for _ in self.groups]
        for (i, a, b), product in zip(self._pairs, self._products, strict=True):
            products[i][a, b] = int(product)
        each = [
            {name: self._tally.moments(start + k) for k, name in enumerate(names)}
            for start, names in zip(self._starts, self.groups, strict=False)
        ]
        return [Joint(moments, pairs) for moments, pairs in zip(each, products, strict=True)]


def _exact_sum(samples: Array) -> Array:
    if samples.dtype == object or int(np.abs(samples).max()) * samples.shape[1] >= 1 << 62:
        samples = samples.astype(object)
    return np.asarray(samples.sum(1)).astype(object)


def exact_products(a: Array, b: Array) -> Array:
    """`[rows]` exact sums of a * b over the samples, as Python integers; a, b `[rows, B]`."""
    if a.dtype == object or b.dtype == object:
        return np.asarray((a.astype(object) * b.astype(object)).sum(1), dtype=object)
    largest = max(int(np.abs(a).max()), int(np.abs(b).max()))
    if largest * largest * a.shape[1] < 1 << 62:
        return np.asarray((a * b).sum(1)).astype(object)
    if largest >= 1 << (2 * _HALF) or a.shape[1] >= 1 << (62 - 2 * _HALF):
        return np.asarray((a.astype(object) * b.astype(object)).sum(1), dtype=object)
    # a = a1 2**30 + a0 with 0 <= a0 < 2**30, so that every partial sum stays within int64
    a1, a0, b1, b0 = a >> _HALF, a & ((1 << _HALF) - 1), b >> _HALF, b & ((1 << _HALF) - 1)
    parts = [(x * y).sum(1).astype(object) for x, y in ((a1, b1), (a1, b0), (a0, b1), (a0, b0))]
    return np.asarray((parts[0] << (2 * _HALF)) + ((parts[1] + parts[2]) << _HALF) + parts[3], dtype=object)
