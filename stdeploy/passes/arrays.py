"""Arithmetic on parameters that several passes share; results are float64, exporters round once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stdeploy.graph.ops import Conv, Linear
from stdeploy.graph.weight import Array, Weight


def f64(array: Array) -> Array:
    return np.asarray(array, dtype=np.float64)


def per_row(vector: Array, rank: int) -> Array:
    """`[C]` shaped to multiply the rows of a weight of `rank` axes."""
    return vector.reshape(-1, *([1] * (rank - 1)))


def scale_rows(op: Linear | Conv, scale: Array, shift: Array) -> Linear | Conv:
    """scale * op(x) + shift as one operator: W' = scale W, b' = scale b + shift (also for b[t])."""
    weight = Weight.dense(f64(op.weight.array()) * per_row(f64(scale), len(op.weight.shape)))
    bias = f64(shift) if op.bias is None else f64(op.bias) * f64(scale) + f64(shift)
    return replace(op, weight=weight, bias=bias if op.bias is not None or np.any(shift) else None)


def matrix(op: Linear | Conv) -> Array:
    """[out, in] sums of the kernel: the response to an input that is uniform and not at a padded border."""
    values = f64(op.weight.array())
    return values if values.ndim == 2 else values.sum(axis=tuple(range(2, values.ndim)))


def is_padded(op: Linear | Conv) -> bool:
    return isinstance(op, Conv) and any(op.padding)


def is_pointwise(op: object) -> bool:
    """Linear, or a convolution that is one: kernel 1, stride 1, no padding, no groups."""
    return isinstance(op, Linear) or (
        isinstance(op, Conv)
        and set(op.weight.shape[2:]) == {1}
        and set(op.stride) == {1}
        and not any(op.padding)
        and op.groups == 1
    )


def is_power_of_two(factor: float) -> bool:
    """Whether multiplying a float by `factor` never rounds (subnormals aside)."""
    return factor != 0 and abs(float(np.frexp(factor)[0])) == 0.5
