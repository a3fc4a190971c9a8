"""A factor pair into one weight: W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2).

Holds for Linear and for convolutions of kernel 1, stride 1, no padding. Folded only where nothing else
reads the inner factor and the product has no more nonzero weights than the two factors: a low-rank pair
whose rank pays stays a pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stdeploy.graph import Graph, GraphBuilder, Node, Weight, rewrite
from stdeploy.graph.ops import Conv, Linear
from stdeploy.graph.weight import Array
from stdeploy.passes.arrays import is_pointwise, matrix
from stdeploy.passes.base import PassResult


@dataclass(frozen=True)
class _Pair:
    inner: Node
    outer: Node
    weight: Array
    bias: Array | None


class FoldLowRank:
    """Fold each factor pair whose product is not larger; notes name the pairs that stay and why."""

    name = "fold-lowrank"

    def run(self, graph: Graph) -> PassResult:
        """See the module's algebra."""
        notes: list[str] = []
        modified = False
        while (pair := _find(graph)) is not None:
            notes.append(f"folded {pair.inner.name} into {pair.outer.name}")
            graph, modified = _fold(graph, pair), True
        users = graph.users()
        for inner, outer in _candidates(graph):
            readers = users[inner.name]
            why = "their product would be larger"
            if len(readers) > 1:
                why = f"{inner.name} has {len(readers)} readers"
            notes.append(f"{inner.name} and {outer.name} stay two factors: {why}")
        return PassResult(graph, modified, tuple(notes))


def _candidates(graph: Graph) -> list[tuple[Node, Node]]:
    pairs = ((graph[node.inputs[0]], node) for node in graph if is_pointwise(node.op))
    return [(inner, outer) for inner, outer in pairs if is_pointwise(inner.op)]


def _find(graph: Graph) -> _Pair | None:
    users = graph.users()
    for inner, outer in _candidates(graph):
        if len(users[inner.name]) == 1:
            pair = _product(inner, outer)
            if pair is not None:
                return pair
    return None


def _product(inner: Node, outer: Node) -> _Pair | None:
    if not (isinstance(inner.op, Linear | Conv) and isinstance(outer.op, Linear | Conv)):
        return None
    first, second = matrix(inner.op), matrix(outer.op)
    weight = second @ first
    if np.count_nonzero(weight) > np.count_nonzero(first) + np.count_nonzero(second):
        return None
    bias = None
    if inner.op.bias is not None:
        bias = np.asarray(inner.op.bias, dtype=np.float64) @ second.T
    if outer.op.bias is not None:
        outer_bias = np.asarray(outer.op.bias, dtype=np.float64)
        bias = outer_bias if bias is None else bias + outer_bias
    return _Pair(inner, outer, weight, bias)


def _fold(graph: Graph, pair: _Pair) -> Graph:
    def visit(builder: GraphBuilder, node: Node, inputs: tuple[str, ...]) -> str | None:
        if node is pair.inner:
            return inputs[0]
        if node is pair.outer:
            op = Linear(Weight.dense(pair.weight), pair.bias)
            return builder.add(op, inputs, name=node.name, source=node.source)
        return None

    return rewrite(graph, visit)
