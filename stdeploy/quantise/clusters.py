"""Optimal clustering of numbers on a line."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stdeploy.graph.weight import Array


def best_clusters(values: Array, weights: Array, k: int) -> tuple[NDArray[np.int64], float]:
    """The cluster of every value, and the least sum of w (x - mean of its cluster)^2 with at most k clusters.

    `values` ascend strictly, `weights` are positive. Exact: an optimal partition of a line is one into
    intervals, so D[m, j] = min_i D[m-1, i] + cost(i..j) finds it in O(k n^2), for all m at once (Wang and Song,
    "Ckmeans.1d.dp", The R Journal 3/2, 2011). The sum never grows with k.
    """
    n = len(values)
    x = values - np.average(values, weights=weights)  # small numbers: the sums below cancel less
    sums = [np.concatenate([[0.0], np.cumsum(s)]) for s in (weights, weights * x, weights * x * x)]
    best = np.full((k + 1, n + 1), np.inf)
    best[:, 0] = 0.0
    first = np.zeros((k + 1, n + 1), dtype=np.int64)
    for j in range(1, n + 1):
        mass, moment, square = (s[j] - s[:j] for s in sums)
        cost = np.maximum(square - moment * moment / mass, 0.0)
        cost[j - 1] = 0.0  # one value alone
        total = best[:-1, :j] + cost
        first[1:, j] = total.argmin(axis=1)
        best[1:, j] = total.min(axis=1)
    cluster = np.zeros(n, dtype=np.int64)
    j, m = n, int(best[1:, n].argmin()) + 1
    error = float(best[m, n])
    while j:
        i = int(first[m, j])
        cluster[i:j] = m
        j, m = i, m - 1
    return np.unique(cluster, return_inverse=True)[1].astype(np.int64), error
