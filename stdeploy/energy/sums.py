"""Exact sums of masks and small integers over `[rows, B, ...]`, by the fastest of numpy's ways."""

from __future__ import annotations

import numpy as np

from stdeploy.graph.weight import Array


def per_sample(x: Array) -> Array:
    """`[rows, B]` sums over everything else of `x [rows, B, ...]`, int64."""
    flat = x.reshape(x.shape[0] * x.shape[1], -1)
    if x.dtype == np.bool_:
        return np.array([np.count_nonzero(row) for row in flat], np.int64).reshape(x.shape[:2])
    if x.dtype == np.uint8:
        flat = over_last(x.reshape(x.shape[0] * x.shape[1], -1, _chunk(flat.shape[1])))
    wide = x.dtype if x.dtype == object else np.int64
    return np.asarray(flat.sum(-1, dtype=wide)).reshape(x.shape[:2])


def over_last(x: Array) -> Array:
    """Sums over the last axis, int64: of bytes by a matrix product in float32, which is exact below 2**24."""
    if x.dtype.itemsize == 1 and x.dtype.kind in "bu" and 0 < x.shape[-1] * 255 < 1 << 24:
        return np.asarray(_floats(x) @ np.ones(x.shape[-1], np.float32)).astype(np.int64)
    return np.asarray(x.sum(-1, dtype=np.int64))


def over_second_last(x: Array) -> Array:
    """Sums over the axis before the last, int64."""
    if x.dtype.itemsize == 1 and x.dtype.kind in "bu" and 0 < x.shape[-2] * 255 < 1 << 24:
        return np.asarray(np.ones(x.shape[-2], np.float32) @ _floats(x)).astype(np.int64)
    return np.asarray(x.sum(-2, dtype=np.int64))


def _floats(x: Array) -> Array:
    return (x.view(np.uint8) if x.dtype == np.bool_ else x).astype(np.float32)


def _chunk(size: int) -> int:
    """The largest power of two up to 2**14 that divides `size` (1 for an empty axis)."""
    return min(size & -size, 1 << 14) or 1
