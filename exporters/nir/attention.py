"""Q (Kᵀ V) with spikes, in unit neurons and average pools.

Channel p = (head, d, e) of a pair stack; N tokens on an H x W map; K = (2H-1)(2W-1):

    kv[p, m]   = k[d, m] AND v[e, m]                                    unit at 1.5
    sum[p, n]  = M[p] / K, M = sum_m kv, the same at every n            AvgPool2d(2H-1 x 2W-1, padding H-1, W-1)
    a_b[p, n]  = [M + 2^B q[d, n] - sum_{c>b} 2^c a_c >= 2^B + 2^b]     unit, b = B-1 .. 0 (everything over K)
    y[e, n]    = sum_{d, b} 2^b a_b[(h, d, e), n]                       1x1 convolution

a_b is digit b of M where q spikes; where it does not, the drive stays below 2^B because M < 2^B. A window of
2H-1 with padding H-1 sees the whole map from every position, so one pool both sums over the tokens and hands
the sum to each. Pairs are independent of each other: any partition of them into stacks is exact, and smaller
stacks keep the digit feedback (diagonal, but stored dense where a dialect has no groups) from growing with the
square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stdeploy.exporters.nir.linear import convolve
from stdeploy.exporters.nir.neuron import unit
from stdeploy.exporters.nir.plan import PoolNode, Shape
from stdeploy.exporters.nir.signal import Lazy, Signal, Writer, blocks
from stdeploy.graph.weight import Array

WEIGHTS_PER_NODE = 40_000
"""What a node costs a reader at batch 1, in stored weights: 46 us a step against 1.2 ns (docs/nir.md)."""


@dataclass(frozen=True)
class Size:
    """What fixes the cost of a product: dims per head, tokens, the largest M, and whether kernels have groups."""

    heads_q: tuple[int, ...]
    heads_v: tuple[int, ...]
    tokens: int
    maximum: int
    groups: bool = False

    @property
    def pairs(self) -> int:
        return sum(a * b for a, b in zip(self.heads_q, self.heads_v, strict=True))

    @property
    def digits(self) -> int:
        """Binary digits of 0..maximum."""
        return max(1, self.maximum.bit_length())

    @property
    def blocks(self) -> bool:
        """Whether the selections are block-diagonal in equal blocks, so that groups express them."""
        return self.groups and len(set(self.heads_q)) == 1 and len(set(self.heads_v)) == 1


@dataclass(frozen=True)
class Cost:
    """What a product of P pairs, N tokens, B digits in `stacks` of s pairs adds to the network.

    neurons P N (1 + B); nodes G (4 + 3 B); weights P (2 Cq + (1 + B) Cv) + (B - 1) sum of s². With groups the
    feedback is (B - 1) P, and with equal heads of e value dims the rest of one stack is P (2 + (1 + B) e).
    """

    pairs: int
    stacks: tuple[int, ...]
    digits: int
    neurons: int
    weights: int
    nodes: int

    @property
    def objective(self) -> int:
        """What the partition minimises; the neurons are the same in all."""
        return self.weights + WEIGHTS_PER_NODE * self.nodes


def cost(size: Size, stacks: int) -> Cost:
    """Counts of one product with its pairs in `stacks` nearly equal stacks."""
    pairs, digits = size.pairs, size.digits
    share, larger = divmod(pairs, stacks)
    sizes = (share + 1,) * larger + (share,) * (stacks - larger)
    blocked = size.blocks and stacks == 1
    queries, values = (1, size.heads_v[0]) if blocked else (sum(size.heads_q), sum(size.heads_v))
    feedback = pairs if size.groups else sum(n * n for n in sizes)
    weights = pairs * (2 * queries + (1 + digits) * values) + (digits - 1) * feedback
    nodes = len(sizes) * (4 + 3 * digits)
    return Cost(pairs, sizes, digits, pairs * size.tokens * (1 + digits), weights, nodes)


def partition(size: Size, most_nodes: int, most_pairs: int | None = None) -> Cost:
    """The partition of the least objective that has at most `most_nodes` nodes and `most_pairs` in a stack.

    One stack where none fits. In G the objective is a / G + b G: convex, so that the first rise ends the search.
    """
    least = 1 if most_pairs is None else max(1, math.ceil(size.pairs / most_pairs))
    best = cost(size, least)
    if most_pairs is not None:
        return best
    for stacks in range(2, size.pairs + 1):
        other = cost(size, stacks)
        if other.nodes > most_nodes or other.objective > best.objective:
            break
        best = other
    return best


def lower_product(
    writer: Writer, name: str, q: Signal, k: Signal, v: Signal, size: Size, stacks: tuple[int, ...]
) -> Signal:
    """y[e, n] in counts, from three spike signals (scale 1) on the same map."""
    pairs = pair_index(size.heads_q, size.heads_v)
    convs: dict[Lazy, float] = {}
    for i, part in enumerate(np.split(pairs, np.cumsum(stacks)[:-1], axis=1)):
        label = name if len(stacks) == 1 else f"{name}.stack{i}"
        convs |= _Stack(writer, label, part, size, size.blocks and len(stacks) == 1).lower(q, k, v)
    return Signal(v.shape, convs=convs)


def pair_index(heads_q: tuple[int, ...], heads_v: tuple[int, ...]) -> Array:
    """[2, P]: q channel and v channel of every pair, in the order head, q dim, v dim."""
    columns, q0, v0 = [], 0, 0
    for a, b in zip(heads_q, heads_v, strict=True):
        grid = np.meshgrid(np.arange(q0, q0 + a), np.arange(v0, v0 + b), indexing="ij")
        columns.append(np.stack([g.ravel() for g in grid]))
        q0, v0 = q0 + a, v0 + b
    return np.concatenate(columns, axis=1)


@dataclass(frozen=True, eq=False)
class _Stack:
    """Some pairs of a product, `[2, s]`: q channel and v channel of each; `blocked`: in groups."""

    writer: Writer
    name: str
    pairs: Array
    size: Size
    blocked: bool

    def lower(self, q: Signal, k: Signal, v: Signal) -> dict[Lazy, float]:
        writer, name, digits = self.writer, self.name, self.size.digits
        count = self.pairs.shape[1]
        _, height, width = v.shape
        shape: Shape = (count, height, width)
        window = (2 * height - 1, 2 * width - 1)
        total = math.prod(window)
        of_q = q.shape[0] if self.blocked else 1
        of_v = len(self.size.heads_v) if self.blocked else 1
        keys = self._repeat("k", k, self.pairs[0], shape, 1.0, of_q)
        values = self._repeat("v", v, self.pairs[1], shape, 1.0, of_v)
        gate = self._repeat("q", q, self.pairs[0], shape, 2.0**digits / total, of_q)
        both = unit(writer, f"{name}.kv", keys + values, shape, 1.5, "attention")
        pool = PoolNode(window, (1, 1), (height - 1, width - 1), shape)
        summed = writer.plan.add(f"{name}.sum", pool, [both], "attention")
        feedback: list[str] = []
        convs: dict[Lazy, float] = {}
        for b in reversed(range(digits)):
            level = (2.0**digits + 2.0**b - 0.5) / total
            digit = unit(writer, f"{name}.digit{b}", [summed, *gate, *feedback], shape, level, "attention")
            if b:
                lower, groups = writer.diagonal(np.full(count, -(2.0**b) / total))
                signal = Signal(shape, {digit: 1.0})
                back = convolve(
                    writer, f"{name}.minus{b}", signal, lower, None, shape, role="attention", groups=groups
                )
                feedback += writer.edges(name, back, role="attention")
            weight = np.zeros((v.shape[0], count, 1, 1))
            weight[self.pairs[1], np.arange(count)] = 2.0**b
            weight, bias = blocks(weight, of_v), np.zeros(v.shape[0])
            out = Lazy(
                f"{name}.out{b}", (digit,), weight, bias, shape, v.shape, role="attention", groups=of_v
            )
            convs[out] = 1.0
        return convs

    def _repeat(
        self, label: str, signal: Signal, channels: Array, shape: Shape, factor: float, groups: int
    ) -> list[str]:
        weight = np.zeros((len(channels), signal.shape[0], 1, 1))
        weight[np.arange(len(channels)), channels] = factor
        name = f"{self.name}.{label}"
        lazy = convolve(
            self.writer,
            name,
            signal,
            blocks(weight, groups),
            None,
            shape,
            role="attention",
            groups=groups,
        )
        return self.writer.edges(name, lazy, role="attention")
