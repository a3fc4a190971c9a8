"""Linear operators as sparse matrices over flattened `[C, *spatial]` values: what one Lava Sparse process holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from scipy import sparse

from stdeploy.graph.rules import window_count
from stdeploy.graph.weight import Array


@dataclass(frozen=True, eq=False)
class LinearMap:
    """y = (matrix kron identity(positions)) x; a token Linear keeps its `positions`, a convolution is expanded.

    x and y are flattened row-major, so channel c at position p is entry c * positions + p.
    """

    matrix: sparse.csr_matrix
    positions: int = 1

    @cached_property
    def expanded(self) -> sparse.csr_matrix:
        """The whole matrix, `[outputs, inputs]`."""
        if self.positions == 1:
            return self.matrix
        return sparse.csr_matrix(sparse.kron(self.matrix, sparse.identity(self.positions), format="csr"))

    @property
    def synapses(self) -> int:
        """Nonzero entries of the whole matrix."""
        return int(self.matrix.nnz) * self.positions

    def after(self, first: LinearMap | None) -> LinearMap:
        """This map applied to what `first` (None: the identity) yields."""
        if first is None:
            return self
        if self.positions == first.positions:
            return _map(self.matrix @ first.matrix, self.positions)
        return _map(self.expanded @ first.expanded)

    def scaled(self, factor: float) -> LinearMap:
        return self if factor == 1.0 else _map(self.matrix * factor, self.positions)

    def rows(self, gains: Array, chosen: Array | None, positions: int) -> LinearMap:
        """Row-wise gains per output channel (`positions` entries each), then the `chosen` channels only."""
        if self.positions != positions:
            gains = np.repeat(gains, positions)
            if chosen is not None:
                chosen = (chosen[:, None] * positions + np.arange(positions)).ravel()
        matrix = self.expanded if self.positions != positions else self.matrix
        scaled = sparse.diags(gains, format="csr") @ matrix if np.any(gains != 1.0) else matrix
        picked = scaled if chosen is None else scaled[chosen]
        return _map(picked, positions if self.positions == positions else 1)


def _map(matrix: sparse.spmatrix, positions: int = 1) -> LinearMap:
    matrix = sparse.csr_matrix(matrix)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return LinearMap(matrix, positions)


def linear(weight: Array, positions: int) -> LinearMap:
    """A Linear `[out, in]` at every position."""
    return _map(sparse.csr_matrix(weight.astype(np.float64)), positions)


def channelwise(gains: Array, positions: int) -> LinearMap:
    """y[c, p] = gains[c] x[c, p]."""
    return _map(sparse.diags(gains.astype(np.float64)), positions)


def select(source: Array, size: int, weight: float = 1.0) -> LinearMap:
    """y[i] = weight * x[source[i]], x of `size` entries."""
    source = source.ravel()
    data = np.full(source.size, weight)
    return _map(sparse.csr_matrix((data, (np.arange(source.size), source)), shape=(source.size, size)))


def total(target: Array, size: int, weight: float = 1.0) -> LinearMap:
    """y[j] = weight * (sum of the x[i] with target[i] = j), y of `size` entries."""
    target = target.ravel()
    data = np.full(target.size, weight)
    return _map(sparse.csr_matrix((data, (target, np.arange(target.size))), shape=(size, target.size)))


def convolution(
    weight: Array,
    groups: int,
    shape: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> LinearMap:
    """A convolution `[out, in/groups, *kernel]` of `[in, *spatial]`, one Kronecker product per kernel tap."""
    kernel, space = weight.shape[2:], tuple(shape[1:])
    out = tuple(
        window_count(n, k, s, p, d)
        for n, k, s, p, d in zip(space, kernel, stride, padding, dilation, strict=True)
    )
    whole: sparse.spmatrix | None = None
    for tap in product(*(range(k) for k in kernel)):
        at: Any = (slice(None), slice(None), *tap)
        channels = _grouped(weight[at].astype(np.float64), groups)
        offset = [k * d - p for k, d, p in zip(tap, dilation, padding, strict=True)]
        part = sparse.kron(channels, _shift(space, out, stride, offset), format="csr")
        whole = part if whole is None else whole + part
    if whole is None:
        raise ValueError(f"a convolution of kernel {kernel}")
    return _map(whole)


def window_sum(
    channels: int,
    shape: Sequence[int],
    out: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> LinearMap:
    """Sum over each window of a pool; the padding adds nothing."""
    whole = sparse.csr_matrix((int(np.prod(out)), int(np.prod(shape))))
    for tap in product(*(range(k) for k in kernel)):
        offset = [k * d - p for k, d, p in zip(tap, dilation, padding, strict=True)]
        whole = whole + _shift(shape, out, stride, offset)
    return _map(sparse.kron(sparse.identity(channels), whole))


def _grouped(weight: Array, groups: int) -> sparse.csr_matrix:
    return sparse.block_diag(np.split(weight, groups), format="csr")


def _shift(
    space: Sequence[int], out: Sequence[int], stride: Sequence[int], offset: Sequence[int]
) -> sparse.csr_matrix:
    """`[prod(out), prod(space)]`: y[p] = x[stride * p + offset], nothing outside."""
    whole = sparse.identity(1, format="csr")
    for n, m, s, o in zip(space, out, stride, offset, strict=True):
        source = s * np.arange(m) + o
        inside = (source >= 0) & (source < n)
        rows = np.flatnonzero(inside)
        axis = sparse.csr_matrix((np.ones(rows.size), (rows, source[inside])), shape=(m, n))
        whole = sparse.kron(whole, axis, format="csr")
    return sparse.csr_matrix(whole)


def stacked(maps: Sequence[LinearMap]) -> LinearMap:
    """The outputs of several maps of one input, one after another; all with the same positions."""
    return _map(sparse.vstack([m.matrix for m in maps], format="csr"), maps[0].positions)
