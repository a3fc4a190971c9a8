"""Products of two spike-driven operands: attention's matrix products, in both orders, and elementwise gates.

A pair (left element, right element) that is multiplied and added costs an operation only where both are nonzero
(coincidence); hardware that is driven by one operand's events pays for every pair with that one nonzero.
Sums over pairs are products of sums along the shared axis, so no product is redone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stdeploy.energy.signals import Signals, float_for
from stdeploy.energy.sums import over_last, over_second_last, per_sample
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
    nodes: tuple[str, str]

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
            yield Order(
                name, node.source, q, k, v, "qk", first.op.heads_a, op.heads_b, (first.name, node.name)
            )
        else:
            yield Order(name, node.source, q, k, v, "kv", op.heads_a, op.heads_b, (first.name, node.name))


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
        "left_events": per_sample(a != 0),
        "right_events": per_sample(b != 0),
        "left_several": per_sample(a if a.dtype == np.bool_ else a > 1),
        "right_several": per_sample(b if b.dtype == np.bool_ else b > 1),
        "coincidence": _paired(left, right),
        "left_driven": _paired(left, all_right),
        "right_driven": _paired(all_left, right),
        "unary": _paired(total_left, total_right),
    }


def _paired(left: Array, right: Array) -> Array:
    return np.asarray((left * right).reshape(*np.broadcast_shapes(left.shape, right.shape)[:2], -1).sum(-1))


def sums(op: ops.MatMul, a: Array, b: Array) -> tuple[Array, Array]:
    """Each operand `[rows, B, *shape]` summed along what only it has; sum(left * right) is over all pairs."""
    left, right = _flat(a), _flat(b)
    if op.over == "channels":
        return over_last(left), over_last(right)
    if op.over == "keys":
        tokens = int(np.prod(b.shape[3:]))
        return over_second_last(a.reshape(*a.shape[:3], -1, tokens)), _by_head(right, op.heads_b)
    if op.over == "tokens":
        return _by_head(left, op.heads_a), _by_head(right, op.heads_b)
    widths = tuple(n for m, n in zip(op.heads_a, op.heads_b, strict=True) for _ in range(m))
    return over_last(left), _by_head(right, widths)[..., 0]


def _flat(x: Array) -> Array:
    return x.reshape(*x.shape[:3], -1)


def _by_head(x: Array, heads: tuple[int, ...]) -> Array:
    """`[rows, B, H, n]` sums of `x [rows, B, C, n]` over each head's channels; a head may be empty."""
    if len(set(heads)) == 1 and heads[0]:
        split = x.reshape(*x.shape[:2], len(heads), heads[0], x.shape[3])
        return over_second_last(split)
    ends = np.cumsum(heads)
    parts = [over_second_last(x[:, :, e - n : e]) for n, e in zip(heads, ends, strict=True)]
    return np.stack(parts, axis=2)


def count_order(
    order: Order, signals: Signals, counted: Mapping[str, Mapping[str, Array]]
) -> dict[str, Array]:
    """Quantities of role "order", `[rows, B]` int64; `counted` are those of the executed products, by node."""
    names = order.q, order.k, order.v
    rows = max(signals.rows(n) for n in names)
    q, k, v = (signals.operand(n, rows, signals.units(n)) for n in names)
    (scores, keys), (tokens, pairs) = order.products["qk"], order.products["kv"]
    if order.executed == "qk":
        state = _product(tokens, k, v, signals)
        other = count_matmul(tokens, k, v), count_matmul(pairs, q, state)
    else:
        other = count_matmul(scores, q, k), count_matmul(keys, _product(scores, q, k, signals), v)
    done = tuple(counted[n] for n in order.nodes)
    sides = {"qk": done, "kv": other} if order.executed == "qk" else {"qk": other, "kv": done}
    return {
        f"{label}.{name}": np.broadcast_to(first[name] + second[name], (rows, signals.batch))
        for label, (first, second) in sides.items()
        for name in ("coincidence", "left_driven", "right_driven", "unary")
    }


def _product(op: ops.MatMul, a: Array, b: Array, signals: Signals) -> Array:
    terms = int(np.prod(a.shape[3:])) if op.over == "tokens" else max(op.heads_a, default=1)
    kind = float_for(max(1, terms * int(a.max(initial=0)) * int(b.max(initial=0))))
    merged = [x.reshape(-1, *x.shape[2:]).astype(kind) for x in (a, b)]
    y = np.asarray(EVALUATE[ops.MatMul](op, merged, np.dtype(kind), 0))
    return y.astype(
        np.uint8 if terms < 256 and a.max(initial=0) <= 1 and b.max(initial=0) <= 1 else np.int64
    ).reshape(*a.shape[:2], *y.shape[1:])


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


def _several(signals: Signals, name: str, mask: Array) -> Array:
    if signals.is_real(name):
        return per_sample(mask)
    return per_sample(np.broadcast_to(signals.units(name) > 1, mask.shape))


def count_gate(node: Node, signals: Signals) -> dict[str, Array]:
    """Quantities of an elementwise product (role "product"), `[rows, B]` int64; a size-1 axis spreads."""
    rows = signals.rows(node.name)
    left, right = (signals.operand(n, rows, signals.nonzero(n)) for n in node.inputs)
    spread = np.broadcast_shapes(left.shape, right.shape)
    out = {
        "left_events": per_sample(left),
        "right_events": per_sample(right),
        "left_several": _several(signals, node.inputs[0], left),
        "right_several": _several(signals, node.inputs[1], right),
        "coincidence": per_sample(left & right),
        "left_driven": per_sample(np.broadcast_to(left, spread)),
        "right_driven": per_sample(np.broadcast_to(right, spread)),
    }
    if any(signals.is_real(n) for n in (*node.inputs, node.name)):
        return {**out, "unary": out["coincidence"]}
    product = signals.units(node.name)
    return {**out, "unary": per_sample(product)}
