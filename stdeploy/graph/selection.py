"""Which tokens a Select keeps, in numpy: the definition of its order and of its tie rule."""

from __future__ import annotations

import numpy as np

from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.ops import Select
from stdeploy.graph.value import Domain
from stdeploy.graph.weight import Array


def select_of(node: Node) -> Select:
    """The node's operator; TypeError where it is no Select."""
    if not isinstance(node.op, Select):
        raise TypeError(f"{node.name} is not a Select")
    return node.op


def score_domain(graph: Graph, node: Node) -> Domain:
    """Domain of the scores that a Select reads."""
    return graph[node.inputs[1]].value.domain


def shared(graph: Graph) -> dict[str, str]:
    """For every Select the first one that keeps the same tokens: the same scores, count and order."""
    first: dict[tuple[object, ...], str] = {}
    out = {}
    for node in graph.of(Select):
        op = select_of(node)
        key = (node.inputs[1], op.count, op.largest, op.order, node.value.time)
        out[node.name] = first.setdefault(key, node.name)
    return out


def compared(scores: Array, domain: Domain) -> Array:
    """`[..., N]` what the order is decided on: integers where the domain counts, else the scores."""
    if domain.maximum is None:
        return scores
    return np.asarray(np.rint(scores / scores.dtype.type(domain.scale)))


def ranked(op: Select, scores: Array, domain: Domain) -> Array:
    """`[..., count]` int64: the positions that `op` keeps, by its order, of scores `[..., N]`."""
    keys = compared(scores, domain)
    order = np.argsort(-keys if op.largest else keys, axis=-1, kind="stable")[..., : op.count]
    return arranged(op, order)


def arranged(op: Select, positions: Array) -> Array:
    """Positions that are given best first, in the order of `op`, int64."""
    order = np.sort(positions, axis=-1) if op.order == "index" else positions
    return np.ascontiguousarray(order, dtype=np.int64)


def pick(x: Array, positions: Array) -> Array:
    """`x [B, C, N]` at `positions [B, k]`: `[B, C, k]`; either batch may be 1."""
    batch = max(x.shape[0], positions.shape[0])
    x = np.broadcast_to(x, (batch, *x.shape[1:]))
    index = np.broadcast_to(positions[:, None], (batch, x.shape[1], positions.shape[1]))
    return np.take_along_axis(x, index, axis=2)
