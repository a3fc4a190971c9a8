"""Q (Kᵀ V) with spikes, in unit neurons and average pools.

Channel p = (head, d, e) of a pair stack; N tokens on an H x W map; K = (2H-1)(2W-1):

    kv[p, m]   = k[d, m] AND v[e, m]                                    unit at 1.5
    sum[p, n]  = M[p] / K, M = sum_m kv, the same at every n            AvgPool2d(2H-1 x 2W-1, padding H-1, W-1)
    a_b[p, n]  = [M + 2^B q[d, n] - sum_{c>b} 2^c a_c >= 2^B + 2^b]     unit, b = B-1 .. 0 (everything over K)
    y[e, n]    = sum_{d, b} 2^b a_b[(h, d, e), n]                       1x1 convolution

a_b is digit b of M where q spikes; where it does not, the drive stays below 2^B because M < 2^B. A window of
2H-1 with padding H-1 sees the whole map from every position, so one pool both sums over the tokens and hands
the sum to each. Pairs are independent of each other: any partition of them into stacks is exact, and small
stacks keep the digit feedback (one diagonal convolution, stored dense) from growing with the square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stdeploy.exporters.nir.linear import convolve
from stdeploy.exporters.nir.neuron import unit
from stdeploy.exporters.nir.plan import PoolNode, Shape
from stdeploy.exporters.nir.signal import Lazy, Signal, Writer
from stdeploy.graph.weight import Array

FEEDBACK_WEIGHTS = 4_000_000
"""Stored feedback weights per product above which the pairs are split into stacks."""


@dataclass(frozen=True)
class Cost:
    """What a product of P pairs, N tokens, B digits in G stacks adds to the network.

    neurons P N (1 + B); weights P (2 Cq + (1 + B) Cv) + (B - 1) sum of stack²; nodes G (4 + 3 B).
    """

    pairs: int
    stack: int
    digits: int
    neurons: int
    weights: int
    nodes: int


def cost(heads_q: tuple[int, ...], heads_v: tuple[int, ...], tokens: int, stack: int | None = None) -> Cost:
    """Counts of one product; `stack` pairs per node (None: as few stacks as FEEDBACK_WEIGHTS allows)."""
    pairs = sum(a * b for a, b in zip(heads_q, heads_v, strict=True))
    digits = digits_for(tokens)
    if stack is None:
        stack = max(1, min(pairs, FEEDBACK_WEIGHTS // max(1, pairs * (digits - 1))))
    sizes = [min(stack, pairs - i) for i in range(0, pairs, stack)]
    queries, values = sum(heads_q), sum(heads_v)
    weights = pairs * (2 * queries + (1 + digits) * values) + (digits - 1) * sum(n * n for n in sizes)
    nodes = len(sizes) * (4 + 3 * digits)
    return Cost(pairs, stack, digits, pairs * tokens * (1 + digits), weights, nodes)


def digits_for(maximum: int) -> int:
    """Binary digits of 0..maximum."""
    return max(1, maximum.bit_length())


def lower_product(
    writer: Writer,
    name: str,
    q: Signal,
    k: Signal,
    v: Signal,
    heads_q: tuple[int, ...],
    heads_v: tuple[int, ...],
    stack: int,
) -> Signal:
    """y[e, n] in counts, from three spike signals (scale 1) on the same map."""
    pairs = pair_index(heads_q, heads_v)
    parts = [pairs[:, i : i + stack] for i in range(0, pairs.shape[1], stack)]
    convs: dict[Lazy, float] = {}
    for i, part in enumerate(parts):
        label = name if len(parts) == 1 else f"{name}.stack{i}"
        convs |= _stack(writer, label, q, k, v, part)
    return Signal(v.shape, convs=convs)


def pair_index(heads_q: tuple[int, ...], heads_v: tuple[int, ...]) -> Array:
    """[2, P]: q channel and v channel of every pair, in the order head, q dim, v dim."""
    columns, q0, v0 = [], 0, 0
    for a, b in zip(heads_q, heads_v, strict=True):
        grid = np.meshgrid(np.arange(q0, q0 + a), np.arange(v0, v0 + b), indexing="ij")
        columns.append(np.stack([g.ravel() for g in grid]))
        q0, v0 = q0 + a, v0 + b
    return np.concatenate(columns, axis=1)


def _stack(writer: Writer, name: str, q: Signal, k: Signal, v: Signal, pairs: Array) -> dict[Lazy, float]:
    count = pairs.shape[1]
    _, height, width = v.shape
    shape: Shape = (count, height, width)
    digits = digits_for(height * width)
    window = (2 * height - 1, 2 * width - 1)
    total = math.prod(window)
    keys = _repeat(writer, f"{name}.k", k, pairs[0], shape, 1.0)
    values = _repeat(writer, f"{name}.v", v, pairs[1], shape, 1.0)
    gate = _repeat(writer, f"{name}.q", q, pairs[0], shape, 2.0**digits / total)
    both = unit(writer, f"{name}.kv", keys + values, shape, 1.5, "attention")
    pool = PoolNode(window, (1, 1), (height - 1, width - 1), shape)
    summed = writer.plan.add(f"{name}.sum", pool, [both], "attention")
    feedback: list[str] = []
    convs: dict[Lazy, float] = {}
    for b in reversed(range(digits)):
        level = (2.0**digits + 2.0**b - 0.5) / total
        digit = unit(writer, f"{name}.digit{b}", [summed, *gate, *feedback], shape, level, "attention")
        if b:
            lower = _diagonal(count, -(2.0**b) / total)
            signal = Signal(shape, {digit: 1.0})
            back = convolve(writer, f"{name}.minus{b}", signal, lower, None, shape, role="attention")
            feedback += writer.edges(name, back, role="attention")
        weight = np.zeros((v.shape[0], count, 1, 1))
        weight[pairs[1], np.arange(count)] = 2.0**b
        bias = np.zeros(v.shape[0])
        out = Lazy(f"{name}.out{b}", (digit,), weight, bias, shape, v.shape, role="attention")
        convs[out] = 1.0
    return convs


def _repeat(
    writer: Writer, name: str, signal: Signal, channels: Array, shape: Shape, factor: float
) -> list[str]:
    weight = np.zeros((len(channels), signal.shape[0], 1, 1))
    weight[np.arange(len(channels)), channels] = factor
    lazy = convolve(writer, name, signal, weight, None, shape, role="attention")
    return writer.edges(name, lazy, role="attention")


def _diagonal(size: int, value: float) -> Array:
    return (np.eye(size) * value)[:, :, None, None]
