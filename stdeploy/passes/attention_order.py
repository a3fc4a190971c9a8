"""(Q Kᵀ) V or Q (Kᵀ V), whichever multiplies less.

Both are sums of the same integer products, so both orders are exact where q, k, v are spikes or counts and
every partial sum is below 2**24 (float32). With N query and M key tokens and head dims d and e the first costs
N M (d + e) multiplications per head, the second (M + N) d e. A Scale between the products moves behind them,
which is exact for a power of two only; an Add (a constant attention), a neuron or a second reader keeps the
order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stdeploy.graph import Graph, GraphBuilder, Node, rewrite
from stdeploy.graph.ops import MatMul, Scale
from stdeploy.passes.arrays import is_power_of_two
from stdeploy.passes.base import PassResult

EXACT_IN_FLOAT32 = 2**24


@dataclass(frozen=True)
class Product:
    """Two chained MatMuls with Scales between: `first` reads two of (q, k, v), `second` the third."""

    first: Node
    scales: tuple[Node, ...]
    second: Node
    q: str
    k: str
    v: str
    head_q: tuple[int, ...]
    head_v: tuple[int, ...]

    @property
    def factor(self) -> float:
        factors = [n.op.factor for n in self.scales if isinstance(n.op, Scale)]
        return float(np.prod(factors)) if factors else 1.0


def products(graph: Graph) -> list[Product]:
    """Every attention product whose two MatMuls are joined by single-reader Scales only."""
    users = graph.users()
    out = []
    for second in graph.of(MatMul):
        op = second.op
        if not isinstance(op, MatMul) or op.over not in ("keys", "pairs"):
            continue
        between, scales = graph[second.inputs[0 if op.over == "keys" else 1]], []
        while isinstance(between.op, Scale) and len(users[between.name]) == 1:
            scales.append(between)
            between = graph[between.inputs[0]]
        first = between.op
        wanted = "channels" if op.over == "keys" else "tokens"
        if not isinstance(first, MatMul) or first.over != wanted or len(users[between.name]) != 1:
            continue
        a, b = between.inputs
        if op.over == "keys":
            roles = (a, b, second.inputs[1], first.heads_a, op.heads_b)
        else:
            roles = (second.inputs[0], a, b, op.heads_a, op.heads_b)
        out.append(Product(between, tuple(reversed(scales)), second, *roles))
    return out


class AttentionOrder:
    """Reorder each attention product that gets cheaper; notes give the multiplications and the refusals."""

    name = "attention-order"

    def run(self, graph: Graph) -> PassResult:
        """See the module's cost rule."""
        notes: list[str] = []
        modified = False
        for name in [p.second.name for p in products(graph)]:
            product = next(p for p in products(graph) if p.second.name == name)
            before, after = _costs(graph, product)
            if after >= before:
                continue
            why = _refusal(graph, product)
            if why:
                notes.append(f"{name}: order kept, {why}")
                continue
            graph, modified = _reorder(graph, product), True
            notes.append(f"{name}: {before} -> {after} multiplications per step and sample")
        joined = {p.second.name for p in products(graph)}
        for node in graph.of(MatMul):
            second = isinstance(node.op, MatMul) and node.op.over in ("keys", "pairs")
            if second and node.name not in joined:
                notes.append(f"{node.name}: order kept, its two products are not joined by Scales alone")
        return PassResult(graph, modified, tuple(notes))


def _costs(graph: Graph, product: Product) -> tuple[int, int]:
    """Multiplications now and in the other order."""
    n = int(np.prod(graph[product.q].value.shape[1:]))
    m = int(np.prod(graph[product.k].value.shape[1:]))
    heads = list(zip(product.head_q, product.head_v, strict=True))
    scores_first = sum(n * m * (d + e) for d, e in heads)
    values_first = sum((m + n) * d * e for d, e in heads)
    now = isinstance(product.second.op, MatMul) and product.second.op.over == "keys"
    return (scores_first, values_first) if now else (values_first, scores_first)


def _refusal(graph: Graph, product: Product) -> str | None:
    bound = int(np.prod(graph[product.k].value.shape[1:])) * max(product.head_q, default=0)
    for name in (product.q, product.k, product.v):
        domain = graph[name].value.domain
        if domain.maximum is None:
            return f"{name} is real, its sums would round differently"
        if not is_power_of_two(domain.scale):
            return f"{name} has the unit {domain.scale:g}, no power of two"
        bound *= max(domain.maximum, 1)
    if bound >= EXACT_IN_FLOAT32:
        return f"sums up to {bound} are not exact in float32"
    if product.scales and not is_power_of_two(product.factor):
        return f"the factor {product.factor:g} between the products is no power of two"
    return None


def _reorder(graph: Graph, product: Product) -> Graph:
    inside = {n.name for n in product.scales}
    keys_order = isinstance(product.second.op, MatMul) and product.second.op.over == "keys"

    def visit(builder: GraphBuilder, node: Node, inputs: tuple[str, ...]) -> str | None:
        if node is product.first or node.name in inside:
            return product.q  # placeholder: only nodes of this product read it
        if node is not product.second:
            return None
        q, k, v = product.q, product.k, product.v
        first, second, source = product.first, product.second, product.second.source
        if keys_order:
            op = MatMul("tokens", product.head_q, product.head_v)
            inner = builder.add(op, (k, v), name=first.name, source=first.source)
            outer_op, read = MatMul("pairs", product.head_q, product.head_v), (q, inner)
        else:
            op = MatMul("channels", product.head_q, product.head_q)
            inner = builder.add(op, (q, k), name=first.name, source=first.source)
            outer_op, read = MatMul("keys", (), product.head_v), (inner, v)
        name = builder.add(outer_op, read, name=second.name, source=source)
        if product.factor != 1.0:
            scale = product.scales[-1]
            name = builder.add(Scale(product.factor), (name,), name=scale.name, source=scale.source)
        return name

    return rewrite(graph, visit)
