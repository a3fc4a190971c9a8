"""Per-head products joined again: code that loops over heads of unequal size becomes one product."""

from __future__ import annotations

from stdeploy.graph import Graph, GraphBuilder, Node, rewrite
from stdeploy.graph.ops import Concat, MatMul, Scale, Slice


def join_heads(graph: Graph) -> Graph:
    """Replace Concat over channels of per-head MatMuls of slices by MatMuls with ragged heads.

    Exact: a MatMul computes its heads apart, and its output axis lists them in order.
    """

    def visit(builder: GraphBuilder, node: Node, inputs: tuple[str, ...]) -> str | None:
        if not isinstance(node.op, Concat) or node.op.axis != 0 or len(inputs) < 2:
            return None
        return _joined(builder, list(inputs))

    return rewrite(graph, visit)


def _joined(builder: GraphBuilder, names: list[str]) -> str | None:
    """One node that yields the values `names` one after another on axis 0; None where there is no such node."""
    nodes = [builder.nodes[n] for n in names]
    first = nodes[0]
    if any(n.kind != first.kind for n in nodes):
        return None
    if isinstance(first.op, Slice):
        return _whole(builder, nodes)
    if isinstance(first.op, Scale):
        if any(isinstance(n.op, Scale) and n.op.factor != first.op.factor for n in nodes):
            return None
        inner = _joined(builder, [n.inputs[0] for n in nodes])
        return (
            None if inner is None else builder.add(first.op, (inner,), name=first.name, source=first.source)
        )
    if isinstance(first.op, MatMul):
        return _product(builder, nodes)
    return None


def _whole(builder: GraphBuilder, nodes: list[Node]) -> str | None:
    """The value that consecutive channel slices are cut from, or one slice that holds them all."""
    source = nodes[0].inputs[0]
    end: int | None = None
    for node in nodes:
        op = node.op
        if (
            not isinstance(op, Slice)
            or op.axis != 0
            or node.inputs[0] != source
            or end not in (None, op.start)
        ):
            return None
        end = op.stop
    start = nodes[0].op.start if isinstance(nodes[0].op, Slice) else 0
    if (start, end) == (0, builder.value(source).shape[0]):
        return source
    op = Slice(0, start, end or 0)
    return builder.add(op, (source,), name=nodes[0].name, source=nodes[0].source)


def _product(builder: GraphBuilder, nodes: list[Node]) -> str | None:
    ops = [n.op for n in nodes if isinstance(n.op, MatMul)]
    over = ops[0].over
    if any(op.over != over for op in ops):
        return None
    factors = [_joined(builder, [n.inputs[i] for n in nodes]) for i in (0, 1)]
    if factors[0] is None or factors[1] is None:
        return None
    merged = MatMul(over, sum((op.heads_a for op in ops), ()), sum((op.heads_b for op in ops), ()))
    first = nodes[0]
    return builder.add(merged, (factors[0], factors[1]), name=first.name, source=first.source)
