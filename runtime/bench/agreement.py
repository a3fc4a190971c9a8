"""Whether candidates compute the same: compared before anything is timed, so that no wrong result is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stdeploy.graph.weight import Array

LIMIT = 0.1
"""Relative distance of outputs above which two candidates are not the same network.

A spike within float32 rounding of its threshold may flip, and what follows it in a deep network: outputs of exact
implementations then differ visibly (a random Spikformer-4-384-1536, 16 samples, PyTorch in float32 against float64:
0.009). This limit tells them from another network's; `stdeploy verify` is the proof.
"""


@dataclass(frozen=True, slots=True)
class Agreement:
    """A candidate's outputs beside the reference's.

    `rows`: score vectors compared (samples, times the steps where the model gives scores of every step);
    `argmax_agree` of them have the same largest entry. `distance`: Euclidean distance of all outputs,
    relative to the reference's own spread among the classes. `problem`: why they are not the same
    network, or None.
    """

    rows: int
    argmax_agree: int
    max_difference: float
    distance: float
    problem: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.problem is not None:
            return self.problem
        same = "equal" if self.max_difference == 0 else f"max|d| {self.max_difference:.1e}"
        return f"argmax {self.argmax_agree}/{self.rows}, {same}"


def compare_outputs(reference: Sequence[Array], candidate: Sequence[Array]) -> Agreement:
    """Compare the outputs of two candidates on the same inputs, in the model's order."""
    shapes = [[list(a.shape) for a in arrays] for arrays in (reference, candidate)]
    if shapes[0] != shapes[1]:
        return Agreement(
            0, 0, np.inf, np.inf, f"its outputs have shapes {shapes[1]}, the reference's {shapes[0]}"
        )
    wanted, got = (np.concatenate([_rows(a).ravel() for a in arrays]) for arrays in (reference, candidate))
    r, c = _rows(reference[0]), _rows(candidate[0])
    finite = bool(np.isfinite(got).all())
    largest = float(np.abs(got - wanted).max(initial=0.0)) if finite else np.inf
    spread = np.concatenate([_spread(_rows(a)).ravel() for a in reference])
    distance = np.inf if not finite else _relative(got - wanted, spread)
    problem = None
    if not finite:
        problem = "its outputs hold values that are not finite"
    elif distance > LIMIT:
        problem = (
            f"its outputs are not the reference's: relative distance {distance:.2g}, max|d| {largest:.2g}"
        )
    agree = int(np.count_nonzero(r.argmax(-1) == c.argmax(-1)))
    return Agreement(len(r), agree, largest, distance, problem)


def _rows(array: Array) -> Array:
    return np.asarray(array, dtype=np.float64).reshape(-1, array.shape[-1] if array.ndim else 1)


def _spread(rows: Array) -> Array:
    """Scores about their mean, so that an offset of all classes counts for nothing."""
    centred: Array = rows - rows.mean(-1, keepdims=True) if rows.shape[-1] > 1 else rows
    return centred


def _relative(difference: Array, spread: Array) -> float:
    far, wide = float(np.linalg.norm(difference)), float(np.linalg.norm(spread))
    if wide == 0.0:
        return 0.0 if far == 0.0 else np.inf
    return far / wide
