"""Products of two spike-driven operands: attention's matrix products, in both orders, and elementwise gates.

A pair (left element, right element) that is multiplied and added costs an operation only where both are nonzero
(coincidence); hardware that is driven by one operand's events pays for every pair with that one nonzero.
Sums over pairs are products of sums along the shared axis, so no product is redone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stdeploy.energy.signals import Signals, float_for
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.interpreter import EVALUATE
from stdeploy.graph.weight import Array


@dataclass(frozen=True, eq=False)
class Order:
    """An attention of three operands that are all integers; `executed` is the order of the graph's products."""

    name: str
    source: str
    q: str
    k: str
    v: str
    executed: Literal["qk", "kv"]
    heads: tuple[int, ...]
    v_heads: tuple[int, ...]

    @property
    def products(self) -> dict[str, tuple[ops.MatMul, ops.MatMul]]:
        return {
            "qk": (ops.MatMul("channels", self.heads, self.heads), ops.MatMul("keys", (), self.v_heads)),
            "kv": (
                ops.MatMul("tokens", self.heads, self.v_heads),
                ops.MatMul("pairs", self.heads, self.v_heads),
            ),
        }


def orders(graph: Graph) -> Iterator[Order]:
    """Every attention whose two products could be made in the other order: Q, K, V of known units."""
    for node in graph.of(ops.MatMul):
        op = node.op
        if not isinstance(op, ops.MatMul) or op.over not in ("keys", "pairs"):
            continue
        first = graph[node.inputs[0 if op.over == "keys" else 1]]
        while isinstance(first.op, ops.Scale):
            first = graph[first.inputs[0]]
        wanted = "channels" if op.over == "keys" else "tokens"
        if not isinstance(first.op, ops.MatMul) or first.op.over != wanted:
            continue
        if op.over == "keys":
            q, k, v, executed = *first.inputs, node.inputs[1], "qk"
        else:
            q, k, v, executed = node.inputs[0], *first.inputs, "kv"
        if any(graph[n].value.domain.maximum is None or graph[n].value.time == "final" for n in (q, k, v)):
            continue
        name = f"{node.name}.order"
        if executed == "qk":
            yield Order(name, node.source, q, k, v, "qk", first.op.heads_a, op.heads_b)
        else:
            yield Order(name, node.source, q, k, v, "kv", op.heads_a, op.heads_b)


def pairs_of(op: ops.MatMul, a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """How many pairs a product of operands of shapes `a` and `b` multiplies."""
    left, right = sums(op, np.ones((1, 1, *a), np.uint8), np.ones((1, 1, *b), np.uint8))
    return int((left * right).sum())


def count_matmul(op: ops.MatMul, a: Array, b: Array) -> dict[str, Array]:
    """Quantities of role "attention" of operands `[rows, B, *shape]`: integers, or masks of real ones; int64."""
    left, right = sums(op, a != 0, b != 0)
    all_left, all_right = sums(
        op, np.ones((1, 1, *a.shape[2:]), np.uint8), np.ones((1, 1, *b.shape[2:]), np.uint8)
    )
    masks = a.dtype == np.bool_ or b.dtype == np.bool_
    total_left, total_right = (left, right) if masks else sums(op, a, b)
    return {
        "left_events": size_of(a != 0),
        "right_events": size_of(b != 0),
        "coincidence": _paired(left, right),
        "left_driven": _paired(left, all_right),
        "right_driven": _paired(all_left, right),
        "unary": _paired(total_left, total_right),
    }


def size_of(mask: Array) -> Array:
    """`[rows, B]` number of True of a mask, int64."""
    return np.asarray(np.count_nonzero(mask.reshape(*mask.shape[:2], -1), axis=-1), dtype=np.int64)


def _paired(left: Array, right: Array) -> Array:
    return np.asarray((left * right).reshape(*np.broadcast_shapes(left.shape, right.shape)[:2], -1).sum(-1))


def sums(op: ops.MatMul, a: Array, b: Array) -> tuple[Array, Array]:
    """Each operand `[rows, B, *shape]` summed along what only it has; sum(left * right) is over all pairs."""
    left, right = _flat(a), _flat(b)
    if op.over == "channels":
        return _sum(left, -1), _sum(right, -1)
    if op.over == "keys":
        tokens = int(np.prod(b.shape[3:]))
        return _sum(a.reshape(*a.shape[:3], -1, tokens), -2), _by_head(right, op.heads_b)
    if op.over == "tokens":
        return _by_head(left, op.heads_a), _by_head(right, op.heads_b)
    widths = tuple(n for m, n in zip(op.heads_a, op.heads_b, strict=True) for _ in range(m))
    return _sum(left, -1), _by_head(right, widths)[..., 0]


def _flat(x: Array) -> Array:
    return x.reshape(*x.shape[:3], -1)


def _sum(x: Array, axis: int) -> Array:
    return np.asarray(x.sum(axis, dtype=np.int64))


def _by_head(x: Array, heads: tuple[int, ...]) -> Array:
    """`[rows, B, H, n]` sums of `x [rows, B, C, n]` over each head's channels; a head may be empty."""
    if len(set(heads)) == 1 and heads[0]:
        split = x.reshape(*x.shape[:2], len(heads), heads[0], x.shape[3])
        return np.asarray(split.sum(3, dtype=np.int64))
    ends = np.cumsum(heads)
    parts = [x[:, :, e - n : e].sum(2, dtype=np.int64) for n, e in zip(heads, ends, strict=True)]
    return np.stack(parts, axis=2)


def count_order(order: Order, signals: Signals) -> dict[str, Array]:
    """Quantities of role "order", `[rows, B]` int64: both products of both orders."""
    names = order.q, order.k, order.v
    rows = max(signals.rows(n) for n in names)
    q, k, v = (signals.operand(n, rows, signals.units(n)) for n in names)
    (scores, keys), (tokens, pairs) = order.products["qk"], order.products["kv"]
    maximum = [signals.graph[n].value.domain.maximum or 0 for n in names]
    bound = maximum[0] * maximum[1] * maximum[2] * max(int(np.prod(q.shape[3:])), max(order.heads, default=1))
    score = _product(scores, q, k, bound)
    state = _product(tokens, k, v, bound)
    out: dict[str, Array] = {}
    for label, parts in {
        "qk": (count_matmul(scores, q, k), count_matmul(keys, score, v)),
        "kv": (count_matmul(tokens, k, v), count_matmul(pairs, q, state)),
    }.items():
        for name in ("coincidence", "left_driven", "right_driven", "unary"):
            out[f"{label}.{name}"] = parts[0][name] + parts[1][name]
    return out


def _product(op: ops.MatMul, a: Array, b: Array, bound: int) -> Array:
    kind = float_for(max(1, bound))
    merged = [x.reshape(-1, *x.shape[2:]).astype(kind) for x in (a, b)]
    y = EVALUATE[ops.MatMul](op, merged, np.dtype(kind), 0)
    return np.asarray(y).reshape(*a.shape[:2], *y.shape[1:])


def order_constants(order: Order, graph: Graph) -> dict[str, int]:
    """Constants of role "order"."""
    q, k, v = (graph[n].value.shape for n in (order.q, order.k, order.v))
    (scores, keys), (tokens, pairs) = order.products["qk"], order.products["kv"]
    attention = (len(order.heads), *q[1:], *k[1:])
    state = (sum(m * n for m, n in zip(order.heads, order.v_heads, strict=True)),)
    return {
        "qk.dense": pairs_of(scores, q, k) + pairs_of(keys, attention, v),
        "kv.dense": pairs_of(tokens, k, v) + pairs_of(pairs, q, state),
    }


def count_gate(node: Node, signals: Signals) -> dict[str, Array]:
    """Quantities of an elementwise product (role "product"), `[rows, B]` int64; a size-1 axis spreads."""
    rows = signals.rows(node.name)
    left, right = (signals.operand(n, rows, signals.nonzero(n)) for n in node.inputs)
    spread = np.broadcast_shapes(left.shape, right.shape)
    out = {
        "left_events": size_of(left),
        "right_events": size_of(right),
        "coincidence": size_of(left & right),
        "left_driven": size_of(np.broadcast_to(left, spread)),
        "right_driven": size_of(np.broadcast_to(right, spread)),
    }
    if any(signals.is_real(n) for n in (*node.inputs, node.name)):
        return {**out, "unary": out["coincidence"]}
    product = signals.units(node.name)
    return {**out, "unary": product.reshape(*product.shape[:2], -1).sum(-1, dtype=np.int64)}
