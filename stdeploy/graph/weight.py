"""A weight tensor, dense or compressed sparse row; what reads it asks, and never cares which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Weight:
    """`W[out, in]` or `W[out, in/groups, *kernel]`; CSR holds its `[out, -1]` view.

    Exactly one of `values` (dense) and (`indptr`, `indices`, `data`) is set. Immutable: arrays are
    marked read-only, so passes build new weights.
    """

    shape: tuple[int, ...]
    values: Array | None = None
    indptr: Array | None = None
    indices: Array | None = None
    data: Array | None = None

    def __post_init__(self) -> None:
        for array in (self.values, self.indptr, self.indices, self.data):
            if array is not None:
                array.setflags(write=False)

    @classmethod
    def dense(cls, values: Array) -> Weight:
        """Weight from a dense array (copied only where it is not owned and contiguous)."""
        array = np.array(values, order="C", copy=True) if values.flags.writeable else values
        return cls(tuple(int(n) for n in array.shape), values=array)

    @classmethod
    def csr(cls, values: Array) -> Weight:
        """Weight in CSR from a dense array; column indices ascend within a row."""
        shape = tuple(int(n) for n in values.shape)
        matrix = values.reshape(shape[0], -1)
        rows, columns = np.nonzero(matrix)
        indptr = np.zeros(shape[0] + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows, minlength=shape[0]), out=indptr[1:])
        index_type = np.int32 if matrix.shape[1] <= np.iinfo(np.int32).max else np.int64
        return cls(
            shape, indptr=indptr, indices=columns.astype(index_type), data=matrix[rows, columns].copy()
        )

    @property
    def is_csr(self) -> bool:
        return self.values is None

    @property
    def dtype(self) -> np.dtype[Any]:
        array = self.data if self.values is None else self.values
        if array is None:
            raise ValueError("a Weight holds neither dense values nor CSR data")
        return array.dtype

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nnz(self) -> int:
        """Number of nonzero elements."""
        if self.values is not None:
            return int(np.count_nonzero(self.values))
        return int(np.count_nonzero(self.data)) if self.data is not None else 0

    @property
    def density(self) -> float:
        return self.nnz / self.size if self.size else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the stored arrays."""
        arrays = (self.values, self.indptr, self.indices, self.data)
        return sum(a.nbytes for a in arrays if a is not None)

    def array(self) -> Array:
        """Dense array of `shape`; do not write to it."""
        if self.values is not None:
            return self.values
        if self.indptr is None or self.indices is None or self.data is None:
            raise ValueError("a Weight holds neither dense values nor CSR data")
        out = np.zeros(
            (self.shape[0], self.size // self.shape[0] if self.shape[0] else 0), dtype=self.data.dtype
        )
        rows = np.repeat(np.arange(self.shape[0]), np.diff(self.indptr))
        out[rows, self.indices] = self.data
        return out.reshape(self.shape)

    def zero_rows(self) -> NDArray[np.bool_]:
        """[out] mask of output rows without a nonzero weight."""
        nonzero: NDArray[np.bool_] = np.any(self.array().reshape(self.shape[0], -1) != 0, axis=1)
        return ~nonzero

    def zero_columns(self) -> NDArray[np.bool_]:
        """[in/groups] mask of input channels without a nonzero weight."""
        array = self.array()
        nonzero: NDArray[np.bool_] = np.any(array != 0, axis=tuple(i for i in range(array.ndim) if i != 1))
        return ~nonzero
