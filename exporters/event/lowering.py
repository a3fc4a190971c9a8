"""A graph on its way to an event program: what is drafted, and what an earlier stage does already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stdeploy.exporters.event import pack
from stdeploy.exporters.event.draft import Draft
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node


@dataclass
class Lowering:
    """The draft that grows, and what of the graph is done already by an earlier node's stage."""

    draft: Draft
    kernels: Mapping[str, str]
    users: dict[str, list[Node]]
    done: set[str]
    unfolded: dict[tuple[Any, ...], str]

    @property
    def graph(self) -> Graph:
        return self.draft.graph

    def next_alone(self, node: Node, kind: type[ops.Op]) -> Node | None:
        """The only reader of a node's value, where it is of `kind`."""
        readers = self.users[node.name]
        return readers[0] if len(readers) == 1 and isinstance(readers[0].op, kind) else None


def once(node: Node) -> bool:
    """Whether a node's value is the same at every step, so that a stream computes it for the first one only."""
    return node.value.time == "static"


def stepped(work: Lowering, name: str) -> bool:
    """Whether a node has a value per step."""
    return work.draft.layout(name).stepped


def fused(work: Lowering, node: Node) -> tuple[Node, ops.Neuron | None]:
    """The node whose value the product's stage writes: the neuron behind it, or itself.

    What is the same at every step stays apart from its neuron: it is done once, also in a stream.
    """
    behind = None if once(node) else work.next_alone(node, ops.Neuron)
    if behind is None or not isinstance(behind.op, ops.Neuron):
        return node, None
    work.done.add(behind.name)
    return behind, behind.op


def neuron_by_channel(draft: Draft, op: ops.Neuron, channels: int) -> dict[str, int]:
    """Fields of a neuron whose parameters lie channel by channel: tau, rest, threshold."""
    values, kind = pack.neuron(op, channels)
    return {"neuron": draft.floats.add(np.ascontiguousarray(values.T)), "kind": kind}
