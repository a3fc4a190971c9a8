"""Exact statistics of integers over a data set: sums as Python integers, so that shards merge to one run's result.

Everything held is a function of the multiset of samples: neither their order nor how they were split
into batches and shards can be seen in it. Memory does not grow with the number of samples.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, combinations
from statistics import NormalDist
from typing import Any

from stdeploy.errors import UserError

EXACT_VALUES = 256
"""Percentiles are exact while a quantity took at most so many different values."""

BUCKET_BITS = 8
"""Beyond that a value keeps so many leading binary digits: percentiles are within 1/256 of it (0.4 %)."""


@dataclass(frozen=True)
class Moments:
    """One integer quantity over `n` samples: sum, sum of squares, extremes and how often each value came.

    `values` is `((value, times), ...)`, ascending. Where `exact` is False the values are lower ends of buckets.
    """

    n: int
    total: int
    squares: int
    low: int
    high: int
    values: tuple[tuple[int, int], ...]
    exact: bool = True

    @classmethod
    def of(cls, samples: Sequence[int]) -> Moments:
        """Moments of a non-empty list of integers."""
        times: dict[int, int] = {}
        for v in samples:
            times[int(v)] = times.get(int(v), 0) + 1
        total, squares = sum(times[v] * v for v in times), sum(times[v] * v * v for v in times)
        low, high = min(times), max(times)
        return cls(len(samples), total, squares, low, high, *settle(times, True))

    @property
    def mean(self) -> float:
        return self.total / self.n

    @property
    def scatter(self) -> int:
        """n times the sum of the squared distances from the mean."""
        return self.n * self.squares - self.total**2

    @property
    def variance(self) -> Fraction | None:
        """Unbiased sample variance, exact; None for one sample."""
        return Fraction(self.scatter, self.n * (self.n - 1)) if self.n > 1 else None

    @property
    def sd(self) -> float | None:
        return None if self.variance is None else math.sqrt(self.variance)

    @property
    def se(self) -> float | None:
        """Standard error of the mean."""
        return None if self.variance is None else math.sqrt(self.variance / self.n)

    @property
    def ci95(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean, Student's t with n - 1 degrees of freedom; None for one sample."""
        return interval(self.mean, self.se, self.n)

    def percentile(self, p: float) -> int:
        """Nearest rank: the smallest value that at least p % of the samples do not exceed.

        Exact where `exact`, else the middle of its bucket, within the extremes. ValueError outside 0..100.
        """
        if not 0 <= p <= 100:
            raise ValueError(f"a percentile lies between 0 and 100, not at {p}")
        rank = max(1, math.ceil(Fraction(p) * self.n / 100))
        place = bisect_left(list(accumulate(times for _, times in self.values)), rank)
        value = self.values[place][0]
        return value if self.exact else min(max(value + _width(value) // 2, self.low), self.high)

    def merge(self, other: Moments) -> Moments:
        """Moments of both samples together."""
        exact = self.exact and other.exact
        mine, theirs = (
            dict(m.values) if exact or not m.exact else _bucketed(dict(m.values)) for m in (self, other)
        )
        times = dict(mine)
        for value, count in theirs.items():
            times[value] = times.get(value, 0) + count
        return Moments(
            self.n + other.n,
            self.total + other.total,
            self.squares + other.squares,
            min(self.low, other.low),
            max(self.high, other.high),
            *settle(times, exact),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "sum": self.total,
            "squares": self.squares,
            "min": self.low,
            "max": self.high,
            "values": [list(pair) for pair in self.values],
            "exact": self.exact,
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Moments:
        """Inverse of to_json; KeyError, TypeError or ValueError where `d` is not its form."""
        values = tuple((integer(v), integer(c)) for v, c in d["values"])
        n, total, squares, low, high = (integer(d[key]) for key in ("n", "sum", "squares", "min", "max"))
        moments = cls(n, total, squares, low, high, values, d["exact"])
        moments._check()
        return moments

    def _check(self) -> None:
        """ValueError where no samples have these statistics."""
        if type(self.exact) is not bool:
            raise ValueError(f"exact is {self.exact!r}")
        if self.n < 1 or min(c for _, c in self.values) < 1 or sum(c for _, c in self.values) != self.n:
            raise ValueError("the times of its values do not sum to n")
        first, last = (v if self.exact else bucket(v) for v in (self.low, self.high))
        starts = [v for v, _ in self.values]
        if starts != sorted(set(starts)) or (starts[0], starts[-1]) != (first, last):
            raise ValueError("its values do not go from the least to the largest")
        sums = tuple(sum(v**power * c for v, c in self.values) for power in (1, 2))
        if self.exact and sums != (self.total, self.squares):
            raise ValueError("its sums are not those of its values")
        if not self.n * self.low <= self.total <= self.n * self.high or self.scatter < 0:
            raise ValueError("no samples have its sums")


def integer(value: Any) -> int:
    """`value` of a JSON document as it is; ValueError where it is no integer."""
    if type(value) is not int:
        raise ValueError(f"{value!r} is no integer")
    return value


def settle(times: Mapping[int, int], exact: bool) -> tuple[tuple[tuple[int, int], ...], bool]:
    """`values` and `exact` of a Moments: bucketed where there are more than EXACT_VALUES different values."""
    if exact and len(times) > EXACT_VALUES:
        times, exact = _bucketed(times), False
    return tuple(sorted(times.items())), exact


def bucket(value: int) -> int:
    """Lower end of a value's bucket: its BUCKET_BITS leading binary digits."""
    drop = max(0, abs(value).bit_length() - BUCKET_BITS)
    return (value >> drop) << drop


def _width(start: int) -> int:
    return 1 << max(0, abs(start).bit_length() - BUCKET_BITS)


def _bucketed(times: Mapping[int, int]) -> dict[int, int]:
    out: dict[int, int] = {}
    for value, count in times.items():
        start = bucket(value)
        out[start] = out.get(start, 0) + count
    return out


@dataclass(frozen=True)
class Joint:
    """Several integer quantities of the same samples, with their products: any weighted sum's spread follows.

    `products[a, b]` is the sum over the samples of a*b, for every pair of names a < b.
    """

    each: Mapping[str, Moments]
    products: Mapping[tuple[str, str], int]

    @property
    def n(self) -> int:
        return next((m.n for m in self.each.values()), 0)

    def __getitem__(self, name: str) -> Moments:
        return self.each[name]

    def combine(self, weights: Mapping[str, Fraction | float | int]) -> Estimate:
        """Mean and spread of `sum_name weights[name] * quantity` over the samples (KeyError for an unknown name).

        UserError where no samples have these products, as in a count that was tampered with.
        """
        exact = {name: Fraction(w) for name, w in weights.items()}
        n = self.n
        total = sum((w * self.each[name].total for name, w in exact.items()), Fraction(0))
        squares = sum((w * w * self.each[name].squares for name, w in exact.items()), Fraction(0))
        for a, b in combinations(sorted(exact), 2):
            squares += 2 * exact[a] * exact[b] * self.products[a, b]
        variance = (n * squares - total**2) / (n * (n - 1)) if n > 1 else None
        if variance is not None and variance < 0:
            raise UserError("the count is damaged: no samples have its products", hint="count again")
        return Estimate(n, total / n if n else Fraction(0), variance)

    def merge(self, other: Joint) -> Joint:
        return Joint(
            {name: m.merge(other.each[name]) for name, m in self.each.items()},
            {pair: p + other.products[pair] for pair, p in self.products.items()},
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "each": {name: m.to_json() for name, m in self.each.items()},
            "products": [[a, b, p] for (a, b), p in self.products.items()],
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Joint:
        """Inverse of to_json; KeyError, TypeError or ValueError where `d` is not its form."""
        each = {str(name): Moments.from_json(m) for name, m in d["each"].items()}
        products = {(str(a), str(b)): integer(p) for a, b, p in d["products"]}
        if set(products) != set(combinations(sorted(each), 2)):
            raise ValueError("its products are not those of its quantities")
        for (a, b), product in products.items():
            x, y = each[a], each[b]
            if x.n != y.n or (x.n * product - x.total * y.total) ** 2 > x.scatter * y.scatter:
                raise ValueError(f"no samples have its products of {a} and {b}")
        return cls(each, products)


@dataclass(frozen=True)
class Estimate:
    """A quantity's mean over `n` samples with its exact variance (None for one sample)."""

    n: int
    exact: Fraction
    variance: Fraction | None

    @property
    def mean(self) -> float:
        return float(self.exact)

    @property
    def sd(self) -> float | None:
        return None if self.variance is None else math.sqrt(self.variance)

    @property
    def se(self) -> float | None:
        return None if self.variance is None else math.sqrt(self.variance / self.n)

    @property
    def ci95(self) -> tuple[float, float] | None:
        return interval(self.mean, self.se, self.n)


def interval(mean: float, se: float | None, n: int) -> tuple[float, float] | None:
    """95 % confidence interval of a mean, Student's t; None where there is no standard error."""
    if se is None:
        return None
    half = student_t(n - 1) * se
    return mean - half, mean + half


def student_t(df: int) -> float:
    """97.5 % quantile of Student's t: closed forms for 1 and 2, Abramowitz & Stegun 26.7.5 from 3 on (0.2 %)."""
    if df == 1:
        return math.tan(math.pi * 0.475)
    if df == 2:
        return 0.95 / math.sqrt(2 * 0.975 * 0.025)
    z = float(NormalDist().inv_cdf(0.975))
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum([z, *(term / df ** (i + 1) for i, term in enumerate(terms))])
