"""Shape, time and domain rules that several operators of the catalogue share.

A rule raises ValueError with a plain reason where its operands do not fit.
"""

from __future__ import annotations

import numpy as np

from stdeploy.graph.value import REAL, Domain, Time, Value, count
from stdeploy.graph.weight import Array, Weight


def check_bias(bias: Array | None, channels: int, steps: int) -> None:
    """A bias is `[C]`, or `[T, C]` where it changes over the steps."""
    if bias is not None and bias.shape not in ((channels,), (steps, channels)):
        raise ValueError(
            f"bias {bias.shape} is neither [{channels}] nor [{steps}, {channels}] (one per step)"
        )


def weighed_time(time: Time, bias: Array | None) -> Time:
    """Time of a Linear or Conv: a bias per step makes it per step."""
    if bias is None or bias.ndim == 1:
        return time
    if time == "final":
        raise ValueError("a bias per step meets a value that exists only after all steps")
    return "step"


def weighed_domain(domain: Domain, weight: Weight) -> Domain:
    """Domain behind a weight of zeros and one positive number: it copies, or adds, integers."""
    stored = weight.data if weight.values is None else weight.values.reshape(-1)
    if domain.maximum is None or stored is None or len({*stored[:64].tolist(), 0.0}) > 2:
        return REAL  # decided by the first few numbers of nearly every weight
    levels = np.unique(stored[stored != 0])
    if levels.size != 1 or levels[0] <= 0:
        return REAL
    terms = int(np.count_nonzero(weight.array(), axis=1).max())
    return count(domain.scale * float(levels[0]), domain.maximum * terms)


def switched(domain: Domain, scale: Array, shift: Array) -> Domain:
    """Domain of scale * x + shift: of spikes it may be spikes again, as 1 - x is (NOT)."""
    if domain.kind != "spike" or not shift.size:
        return REAL
    levels = np.unique(np.concatenate([shift, shift + domain.scale * np.asarray(scale, np.float64)]))
    fired = levels[levels != 0]
    return count(float(fired[0]), 1) if fired.size == 1 else REAL


def window_count(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool = False) -> int:
    """Positions of a window along an axis, as PyTorch counts them."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    if span < 0:
        raise ValueError(f"a window of {kernel} (dilation {dilation}) does not fit {size} + 2*{padding}")
    out = (-(-span // stride) if ceil else span // stride) + 1
    if ceil and (out - 1) * stride >= size + padding:
        out -= 1  # PyTorch drops a window that would start in the right padding
    return out


def summed(domain: Domain, terms: int, mean: bool) -> Domain:
    """Domain of the sum (or mean) of `terms` values."""
    if domain.maximum is None:
        return REAL
    return count(domain.scale / terms if mean else domain.scale, domain.maximum * terms)


def broadcast(a: Value, b: Value) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Shape and axes of an elementwise result: equal ranks, axes of size 1 spread."""
    if len(a.shape) != len(b.shape) or any(
        m != n and 1 not in (m, n) for m, n in zip(a.shape, b.shape, strict=True)
    ):
        raise ValueError(f"{a.shape} and {b.shape} do not broadcast")
    shape = tuple(n if m == 1 else m for m, n in zip(a.shape, b.shape, strict=True))
    return shape, tuple(
        y if m == 1 and n != 1 else x for x, y, m, n in zip(a.axes, b.axes, a.shape, b.shape, strict=True)
    )


def multiplied(a: Domain, b: Domain, terms: int) -> Domain:
    """Domain of a sum of `terms` products."""
    if a.maximum is None or b.maximum is None:
        return REAL
    return count(a.scale * b.scale, a.maximum * b.maximum * terms)
