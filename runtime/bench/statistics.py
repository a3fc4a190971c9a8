"""What can be said about latencies measured in turns: percentiles, drift, and ratios with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rounds = Sequence[Sequence[float]]
"""Seconds of every timed call, by round; each round holds as many."""

RESAMPLES = 2000
LEVEL = 0.95
FEWEST_ROUNDS = 5
"""Below this many rounds an interval would look narrow for want of data, and none is given."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Latencies of one candidate, in seconds.

    `p90` needs 10 calls and `p99` 100 (else None): below that a percentile is the maximum under another
    name. `iqr`: distance of the quartiles. `drift`: median of the second half of the rounds over that of
    the first, minus 1 (None below two rounds). `outliers`: calls more than 3 scaled median absolute
    deviations above the median.
    """

    n: int
    rounds: int
    p50: float
    p90: float | None
    p99: float | None
    mean: float
    sd: float
    iqr: float
    minimum: float
    maximum: float
    drift: float | None
    outliers: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of medians; `low` and `high` bound it at `level` (None below five rounds)."""

    value: float
    low: float | None
    high: float | None
    level: float
    rounds: int
    resamples: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.2f} (too few rounds for an interval)"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def summarise(rounds: Rounds) -> Summary:
    """Summary of one candidate's rounds; ValueError where there is no call or the rounds are ragged."""
    table = _table(rounds)
    seconds = table.ravel()
    median = float(np.median(seconds))
    spread = 1.4826 * float(np.median(np.abs(seconds - median)))
    half = len(table) // 2
    drift = float(np.median(table[-half:]) / np.median(table[:half])) - 1 if half else None
    low, high = np.percentile(seconds, [25, 75])
    return Summary(
        n=seconds.size,
        rounds=len(table),
        p50=median,
        p90=float(np.percentile(seconds, 90)) if seconds.size >= 10 else None,
        p99=float(np.percentile(seconds, 99)) if seconds.size >= 100 else None,
        mean=float(seconds.mean()),
        sd=float(seconds.std(ddof=1)) if seconds.size > 1 else 0.0,
        iqr=float(high - low),
        minimum=float(seconds.min()),
        maximum=float(seconds.max()),
        drift=drift,
        outliers=int(np.count_nonzero(seconds > median + 3 * spread)) if spread > 0 else 0,
    )


def ratio_of_medians(
    candidate: Rounds,
    reference: Rounds,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Ratio:
    """Median latency of `candidate` over that of `reference`, with a percentile bootstrap interval.

    Whole rounds are drawn with replacement, the same for both: what slowed the machine during a round slowed
    both, and calls of one turn are not independent (cluster bootstrap; Efron and Tibshirani, 1993, ch. 8).
    ValueError where the two do not have the same number of rounds.
    """
    a, b = _table(candidate), _table(reference)
    if len(a) != len(b):
        raise ValueError(f"{len(a)} rounds of the candidate, {len(b)} of the reference")
    value = float(np.median(a) / np.median(b))
    if len(a) < FEWEST_ROUNDS:
        return Ratio(value, None, None, level, len(a), 0, seed)
    drawn = np.random.default_rng(seed).integers(0, len(a), (resamples, len(a)))
    ratios = np.array([np.median(a[rows]) / np.median(b[rows]) for rows in drawn])
    tail = 50 * (1 - level)
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return Ratio(value, float(low), float(high), level, len(a), resamples, seed)


def _table(rounds: Rounds) -> NDArray[np.float64]:
    sizes = {len(r) for r in rounds}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(f"rounds hold {sorted(sizes)} calls; they have to hold equally many, at least one")
    return np.asarray(rounds, dtype=np.float64)
