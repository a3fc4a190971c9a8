"""Inference BatchNorm, and plain factors, into the neighbouring Linear or Conv.

- behind:  a (W x + b) + d     =  (a W) x + (a b + d)       always, padding included
- ahead:   W (a x + d) + b     =  (W a) x + (b + W d)       Linear, and Conv where no padded zero
                                                            meets d (padding 0 or d = 0)
- chain:   a2 (a1 x + d1) + d2 =  (a2 a1) x + (a2 d1 + d2)

An Affine or Scale folds into what it reads where nothing else reads that, otherwise into its readers where
every one takes it; otherwise it stays. A weight shared by two nodes becomes each node's own.
A Scale between an attention product and its neuron has no such neighbour and stays.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stdeploy.graph import Graph, GraphBuilder, Node, Weight, rewrite
from stdeploy.graph.ops import Affine, Conv, Linear, Scale
from stdeploy.passes.arrays import f64, is_padded, matrix, scale_rows
from stdeploy.passes.base import PassResult


class FoldAffine:
    """Fold every Affine that folds exactly; notes name those that stay and why."""

    name = "fold-affine"

    def run(self, graph: Graph) -> PassResult:
        """See the module's algebra."""
        return _fold_all(graph, Affine)


class FoldScale:
    """Fold every Scale that has a Linear, Conv, Affine or Scale as neighbour."""

    name = "fold-scale"

    def run(self, graph: Graph) -> PassResult:
        """See the module's algebra; powers of two lose nothing, other factors round once per weight."""
        return _fold_all(graph, Scale)


def _fold_all(graph: Graph, kind: type[Affine | Scale]) -> PassResult:
    folded = 0
    while (smaller := _fold_one(graph, kind)) is not None:
        graph, folded = smaller, folded + 1
    notes = [f"folded {folded} {kind.__name__}"] if folded else []
    users = graph.users()
    for node in graph.of(kind):
        notes.append(f"{node.name} stays: {'; '.join(_refusals(graph, users, node))}")
    return PassResult(graph, bool(folded), tuple(notes))


def _fold_one(graph: Graph, kind: type[Affine | Scale]) -> Graph | None:
    users = graph.users()
    for node in graph.of(kind):
        producer = graph[node.inputs[0]]
        if _is_map(producer) and len(users[producer.name]) == 1:
            return _fold_behind(graph, producer, node)
        if users[node.name] and not any(_refusal(node, user) for user in users[node.name]):
            return _fold_ahead(graph, node)
    return None


def _is_map(node: Node) -> bool:
    return isinstance(node.op, Linear | Conv | Affine | Scale)


def _as_affine(node: Node) -> Affine:
    """The node's Affine, or Scale as one."""
    if isinstance(node.op, Scale):
        channels = node.value.shape[0] if node.value.shape else 1
        return Affine(np.full(channels, node.op.factor), np.zeros(channels))
    if isinstance(node.op, Affine):
        return node.op
    raise TypeError(f"{node.name} is neither an Affine nor a Scale")


def _fold_behind(graph: Graph, producer: Node, node: Node) -> Graph:
    affine = _as_affine(node)

    def visit(builder: GraphBuilder, this: Node, inputs: tuple[str, ...]) -> str | None:
        if this is node:
            return inputs[0]
        if this is not producer:
            return None
        op = producer.op
        if isinstance(op, Linear | Conv):
            merged: Affine | Linear | Conv | Scale = scale_rows(op, affine.scale, affine.shift)
        elif isinstance(op, Scale) and isinstance(node.op, Scale):
            merged = Scale(op.factor * node.op.factor)
        else:
            merged = _chain(_as_affine(producer), affine)
        return builder.add(merged, inputs, name=producer.name, source=producer.source)

    return rewrite(graph, visit)


def _chain(first: Affine, second: Affine) -> Affine:
    scale = f64(second.scale) * f64(first.scale)
    return Affine(scale, f64(second.scale) * f64(first.shift) + f64(second.shift))


def _fold_ahead(graph: Graph, node: Node) -> Graph:
    affine = _as_affine(node)

    def visit(builder: GraphBuilder, this: Node, inputs: tuple[str, ...]) -> str | None:
        if this is node:
            return inputs[0]
        if node.name not in this.inputs:
            return None
        op = this.op
        if isinstance(op, Linear | Conv):
            merged: Affine | Linear | Conv | Scale = _scale_columns(affine, op)
        elif isinstance(op, Scale) and isinstance(node.op, Scale):
            merged = Scale(op.factor * node.op.factor)
        else:
            merged = _chain(affine, _as_affine(this))
        return builder.add(merged, inputs, name=this.name, source=this.source)

    return rewrite(graph, visit)


def _scale_columns(affine: Affine, op: Linear | Conv) -> Linear | Conv:
    groups = op.groups if isinstance(op, Conv) else 1
    values = f64(op.weight.array())
    out, per_group = op.weight.shape[0], op.weight.shape[1]
    group = np.repeat(np.arange(groups), out // groups)
    columns = group[:, None] * per_group + np.arange(per_group)[None, :]
    scale = f64(affine.scale)[columns].reshape(out, per_group, *([1] * (values.ndim - 2)))
    bias = op.bias
    if np.any(affine.shift):
        shift = (matrix(op) * f64(affine.shift)[columns]).sum(axis=1)
        bias = shift if bias is None else f64(bias) + shift
    return replace(op, weight=Weight.dense(values * scale), bias=bias)


def _refusal(node: Node, user: Node) -> str | None:
    """Why `user` cannot take the Affine or Scale `node` that it reads; None where it can."""
    if not _is_map(user):
        return f"{user.name} ({user.kind}) reads it"
    shifts = isinstance(node.op, Affine) and np.any(node.op.shift)
    if isinstance(user.op, Conv) and is_padded(user.op) and shifts:
        return f"{user.name} pads with zeros, which the shift would have to miss"
    return None


def _refusals(graph: Graph, users: dict[str, list[Node]], node: Node) -> list[str]:
    producer = graph[node.inputs[0]]
    out = [reason for user in users[node.name] if (reason := _refusal(node, user))]
    if _is_map(producer):
        others = ", ".join(u.name for u in users[producer.name] if u is not node)
        return [f"{producer.name} is also read by {others}", *out]
    return [f"{producer.name} ({producer.kind}) before it has no weight", *out]
