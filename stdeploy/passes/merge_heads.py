"""Attention written head by head becomes one product.

Models with ragged heads cut q, k, v into slices, multiply each head on its own and concatenate:

    concat_h ((q[h] k[h]^T) v[h])  =  (Q K^T) V with heads of those sizes

and likewise in the order q (k^T v). Holds where each of q, k, v is cut without gap or overlap, in the order
of the heads, and every head is scaled alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stdeploy.graph import Graph, GraphBuilder, Node, rewrite
from stdeploy.graph.ops import Concat, MatMul, Scale, Slice
from stdeploy.passes.attention_order import Product, products
from stdeploy.passes.base import PassResult
from stdeploy.passes.dead_code import without_dead


@dataclass(frozen=True)
class _Heads:
    """The products that a Concat joins and what q, k and v are cut from."""

    parts: tuple[Product, ...]
    q: str
    k: str
    v: str


class MergeHeads:
    """Merge each Concat of per-head products; notes name those that stay and why."""

    name = "merge-heads"

    def run(self, graph: Graph) -> PassResult:
        """Exact: every head's sums keep their terms and order."""
        notes: list[str] = []
        modified = False
        for name in [n.name for n in graph.of(Concat)]:
            found = _match(graph, graph[name])
            if isinstance(found, _Heads):
                graph, modified = _merge(graph, graph[name], found), True
                notes.append(f"{name}: {len(found.parts)} heads merged into one product")
            elif found:
                notes.append(f"{name}: heads stay apart, {found}")
        return PassResult(graph, modified, tuple(notes))


def _match(graph: Graph, concat: Node) -> _Heads | str:
    """The heads that `concat` joins; a reason where they cannot merge, empty where it joins no heads."""
    by_end = {p.second.name: p for p in products(graph)}
    if not isinstance(concat.op, Concat) or concat.op.axis != 0:
        return ""
    parts = tuple(by_end[n] for n in concat.inputs if n in by_end)
    if len(parts) != len(concat.inputs):
        return ""
    users = graph.users()
    if any(len(users[p.second.name]) != 1 for p in parts):
        return "one of them is also read by something else"
    if len({(_over(p.second), tuple(_factors(p))) for p in parts}) != 1:
        return "they differ in order or scale"
    bases = [_base(graph, [getattr(p, role) for p in parts]) for role in ("q", "k", "v")]
    if None in bases:
        return "q, k and v are not each cut without gap in the order of the heads"
    q, k, v = (base or "" for base in bases)
    return _Heads(parts, q, k, v)


def _over(node: Node) -> str:
    return node.op.over if isinstance(node.op, MatMul) else ""


def _factors(product: Product) -> list[float]:
    return [n.op.factor for n in product.scales if isinstance(n.op, Scale)]


def _base(graph: Graph, names: list[str]) -> str | None:
    """The value whose channels the slices `names` tile in order."""
    stop, bases = 0, set()
    for name in names:
        op = graph[name].op
        if not isinstance(op, Slice) or op.axis != 0 or op.start != stop:
            return None
        stop = op.stop
        bases.add(graph[name].inputs[0])
    base = bases.pop()
    return base if not bases and stop == graph[base].value.shape[0] else None


def _merge(graph: Graph, concat: Node, heads: _Heads) -> Graph:
    sizes_q = tuple(n for p in heads.parts for n in p.head_q)
    sizes_v = tuple(n for p in heads.parts for n in p.head_v)
    head = heads.parts[0]

    def visit(builder: GraphBuilder, node: Node, inputs: tuple[str, ...]) -> str | None:
        if node is not concat:
            return None
        first, second = head.first, head.second
        if not (isinstance(first.op, MatMul) and isinstance(second.op, MatMul)):
            raise TypeError(f"{concat.name} joins no products")
        scores = _over(second) == "keys"
        read = (heads.q, heads.k) if scores else (heads.k, heads.v)
        op = replace(first.op, heads_a=sizes_q, heads_b=sizes_q if scores else sizes_v)
        name = builder.add(op, read, name=f"{concat.name}.{first.name}", source=first.source)
        for scale in head.scales:
            name = builder.add(scale.op, (name,), name=f"{concat.name}.{scale.name}", source=scale.source)
        op = replace(second.op, heads_a=() if scores else sizes_q, heads_b=sizes_v)
        read = (name, heads.v) if scores else (heads.q, name)
        return builder.add(op, read, name=concat.name, source=concat.source)

    return without_dead(rewrite(graph, visit))[0]
