"""Convolutions that meet without a neuron between them, composed into one.

    pointwise ahead:   W2 * (W1 x + b1) + b2  =  W * x + b,   W[o, i, k] = sum_m W2[o, m, k] W1[m, i],
                       b = b2 + sum_{m, k} W2[o, m, k] b1[m]; where W2 pads with zeros, only for b1 = 0
    pointwise behind:  W2 (W1 * x + b1) + b2  =  W * x + b,   W[o, i, k] = sum_m W2[o, m] W1[m, i, k],
                       b = W2 b1 + b2

(W2 or W1 grouped: m runs over all channels, the weights outside a group are zeros.) A pair is composed where
nothing else reads the inner map and the product has no more nonzero weights than both. A depthwise
convolution between two pointwise ones that do not narrow (the re-parametrised convolution of
Spike-driven Transformer V2) is composed in any case: the three only exist for training,
and as one the map reads spikes, where two of the three read real values.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stdeploy.graph import Graph, GraphBuilder, Node, Weight, rewrite
from stdeploy.graph.ops import Conv, Linear
from stdeploy.graph.weight import Array
from stdeploy.passes.arrays import f64, is_padded, is_pointwise, matrix
from stdeploy.passes.base import PassResult


class FoldConvChain:
    """Compose what the module's rule names; notes say what became one."""

    name = "fold-conv-chain"

    def run(self, graph: Graph) -> PassResult:
        """See the module's algebra."""
        notes: list[str] = []
        while (found := _find(graph)) is not None:
            inner, outer, op = found
            notes.append(f"composed {inner.name} and {outer.name}")
            graph = _compose(graph, inner, outer, op)
        return PassResult(graph, bool(notes), tuple(notes))


def _find(graph: Graph) -> tuple[Node, Node, Conv] | None:
    users = graph.users()
    for outer in graph:
        if not isinstance(outer.op, Linear | Conv):
            continue
        inner = graph[outer.inputs[0]]
        if not isinstance(inner.op, Linear | Conv) or len(users[inner.name]) != 1:
            continue
        if is_pointwise(inner.op) == is_pointwise(outer.op):
            continue  # two pointwise maps are a pair of factors (FoldLowRank)
        op = _product(inner.op, outer.op)
        if op is None:
            continue
        around = [graph[inner.inputs[0]], inner, outer, *users[outer.name]]
        if _smaller(inner.op, outer.op, op) or _reparametrised(around, users):
            return inner, outer, op
    return None


def _smaller(inner: Linear | Conv, outer: Linear | Conv, op: Conv) -> bool:
    both = sum(int(np.count_nonzero(o.weight.array())) for o in (inner, outer))
    return int(np.count_nonzero(op.weight.array())) <= both


def _reparametrised(around: list[Node], users: dict[str, list[Node]]) -> bool:
    """Whether pointwise, depthwise, pointwise are among `around`, each the only reader of the one before."""
    for first, middle, last in zip(around, around[1:], around[2:], strict=False):
        a, b, c = first.op, middle.op, last.op
        if not (isinstance(a, Linear | Conv) and isinstance(b, Conv) and isinstance(c, Linear | Conv)):
            continue
        chained = users[first.name] == [middle] and users[middle.name] == [last]
        depthwise = b.groups > 1 and b.weight.shape[1] == 1
        narrowest = min(a.weight.shape[1], c.weight.shape[0])
        if chained and depthwise and is_pointwise(a) and is_pointwise(c) and b.groups >= narrowest:
            return True
    return False


def _product(inner: Linear | Conv, outer: Linear | Conv) -> Conv | None:
    """The composition; None where the inner bias would meet a padded zero."""
    if is_pointwise(inner) and isinstance(outer, Conv):
        if inner.bias is not None and np.any(inner.bias) and is_padded(outer):
            return None
        kernel = _ungrouped(outer)
        weight = np.einsum("om...,mi->oi...", kernel, matrix(inner))
        bias = _sum(_through(inner.bias, kernel.reshape(*kernel.shape[:2], -1).sum(axis=2)), outer.bias)
        return replace(outer, weight=Weight.dense(weight), bias=bias, groups=1)
    if isinstance(inner, Conv) and is_pointwise(outer):
        second = matrix(outer)
        weight = np.einsum("om,mi...->oi...", second, _ungrouped(inner))
        bias = _sum(_through(inner.bias, second), outer.bias)
        return replace(inner, weight=Weight.dense(weight), bias=bias, groups=1)
    return None


def _through(bias: Array | None, weight: Array) -> Array | None:
    return None if bias is None else f64(bias) @ weight.T


def _sum(a: Array | None, b: Array | None) -> Array | None:
    if a is None or b is None:
        return b if a is None else a
    return f64(a) + f64(b)


def _ungrouped(op: Conv) -> Array:
    """`[out, in, *kernel]` with the zeros outside the groups."""
    values = f64(op.weight.array())
    out, per_group = values.shape[:2]
    full = np.zeros((out, per_group * op.groups, *values.shape[2:]))
    for g in range(op.groups):
        rows = slice(g * out // op.groups, (g + 1) * out // op.groups)
        full[rows, g * per_group : (g + 1) * per_group] = values[rows]
    return full


def _compose(graph: Graph, inner: Node, outer: Node, op: Conv) -> Graph:
    def visit(builder: GraphBuilder, node: Node, inputs: tuple[str, ...]) -> str | None:
        if node is inner:
            return inputs[0]
        if node is outer:
            return builder.add(op, inputs, name=node.name, source=node.source)
        return None

    return rewrite(graph, visit)
