"""Spikes as one operator: a HardSigmoid so steep that no floating-point number lies on its slope.

HardSigmoid(h) = min(1, max(0, alpha h + beta)). With alpha = 1 / gap and beta = -alpha p, where p is the number
below the threshold and gap their distance, a power of two, h = p gives exactly 0 and the threshold exactly 1: alpha
h rounds nowhere, and the difference of neighbours is exact with or without a fused multiply-add. Rounding is
monotone, so every lower h gives 0 and every higher one 1. It is a comparison that gives real numbers, where
GreaterOrEqual gives booleans, which a Cast has to pass over once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

_SMALLEST, _LARGEST = 2.0**-60, 2.0**60
"""Of a threshold: nothing comes near the ends of float32, and nothing is subnormal."""


@dataclass(frozen=True, slots=True)
class Ramp:
    """The attributes of HardSigmoid."""

    alpha: float
    beta: float


def ramp(threshold: float, real: np.dtype[Any], *, rising: bool = True) -> Ramp | None:
    """1 where h >= threshold, else 0 (`rising`), or 1 where h <= threshold; for every finite or infinite h of
    type `real`.

    The threshold is first rounded to `real`. None where `real` has no such attributes: it is too small or too
    large.
    """
    level = real.type(threshold)
    if not _SMALLEST <= abs(float(level)) <= _LARGEST:
        return None
    outside = np.nextafter(level, real.type(-np.inf if rising else np.inf))
    alpha = 1.0 / (float(level) - float(outside))
    beta = -alpha * float(outside)
    return Ramp(alpha, beta) if max(abs(alpha), abs(beta)) <= float(np.finfo(real).max) else None
