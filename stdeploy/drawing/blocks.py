"""A graph's nodes gathered into the modules that they come from.

A block is a module: `block.0.attn` of `block.0.attn.q_lif`, that is the path to its first number and one more
name, or the first name where there is no number but at the end. Nodes that only combine values (sums, scales, norms,
readouts) and auxiliary ones of a lowering join what they read. A block never feeds itself through another: a
module that is left and entered again becomes two blocks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node

_MODULES = (ops.Linear, ops.Conv, ops.Neuron, ops.MatMul, ops.MaxPool, ops.AvgPool, ops.Select)
MODEL = "model"
REFUSED = "not expressible"


@dataclass(frozen=True, slots=True)
class Layer:
    """A neuron layer of the model: the last part of its name, its kind and shape."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def neurons(self) -> int:
        return math.prod(self.shape)


@dataclass(eq=False)
class Block:
    """`neurons`, `units` (neuron nodes) by role; `layers` of the model; input and output have only a `shape`."""

    name: str
    layers: list[Layer] = field(default_factory=list)
    neurons: Counter[str] = field(default_factory=Counter)
    units: Counter[str] = field(default_factory=Counter)
    weights: int = 0
    nonzero: int = 0
    others: Counter[str] = field(default_factory=Counter)
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """Values that go from one block to another: their number, and their shapes."""

    source: int
    target: int
    count: int
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Diagram:
    """Blocks in an order in which links point forward."""

    blocks: list[Block]
    links: list[Link]

    @property
    def roles(self) -> Counter[str]:
        """Neurons by role."""
        return sum((block.neurons for block in self.blocks), Counter[str]())


def diagram(
    graph: Graph, roles: Mapping[str, str] | None = None, kinds: Mapping[str, str] | None = None
) -> Diagram:
    """Blocks of `graph`. `roles` of auxiliary neurons (`attention`, `pooling`) by `Node.source`; `kinds`: what the
    nodes (by source) are that the graph only hands through, since it has no form for them."""
    gathering = _Gathering(graph)
    for node in graph:
        gathering.add(node, dict(roles or {}), dict(kinds or {}))
    return gathering.diagram()


def module_of(name: str) -> str:
    """The module that a node's name says it comes from."""
    parts = name.removeprefix("net.").split(".")
    while len(parts) > 1 and parts[-1].isdecimal():  # the second use of a name, or a module in a row of them
        parts.pop()
    for i, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[: i + 2] if len(parts) > i + 2 else parts[: i + 1])
    return parts[0]


@dataclass(eq=False)
class _Gathering:
    graph: Graph
    blocks: list[Block] = field(default_factory=list)
    place: dict[str, int] = field(default_factory=dict)
    reads: list[set[int]] = field(default_factory=list)

    def add(self, node: Node, roles: Mapping[str, str], kinds: Mapping[str, str]) -> None:
        sources = {self.place[name] for name in node.inputs}
        own = isinstance(node.op, _MODULES) and node.source not in roles
        block = self._block(node, sources, own or node.source in kinds)
        self.place[node.name] = block
        self.reads[block] |= sources - {block}
        self._count(self.blocks[block], node, roles, kinds)

    def _block(self, node: Node, sources: set[int], own: bool) -> int:
        if isinstance(node.op, ops.Input | ops.Output):
            return self._new(node.name)
        if not own:
            for place in sorted(sources, reverse=True):
                if self._may_join(place, sources):
                    return place
        name = module_of(node.name)
        for place in reversed(range(len(self.blocks))):
            block = self.blocks[place]
            if block.name == name and block.shape is None and self._may_join(place, sources):
                return place
        return self._new(name)

    def _new(self, name: str) -> int:
        self.blocks.append(Block(name))
        self.reads.append(set())
        return len(self.blocks) - 1

    def _may_join(self, place: int, sources: set[int]) -> bool:
        """Whether no source outside the block reads from it, directly or not."""
        seen: set[int] = set()
        waiting = list(sources - {place})
        while waiting:
            block = waiting.pop()
            if block == place:
                return False
            if block not in seen:
                seen.add(block)
                waiting += self.reads[block]
        return True

    def _count(self, block: Block, node: Node, roles: Mapping[str, str], kinds: Mapping[str, str]) -> None:
        op, shape, role = node.op, node.value.shape, roles.get(node.source, MODEL)
        if isinstance(op, ops.Input | ops.Output):
            block.shape = shape
        elif node.source in kinds and not isinstance(op, ops.Neuron):
            self._neurons(block, node, REFUSED, kinds[node.source])
        elif isinstance(op, ops.Neuron):
            self._neurons(block, node, role, op.kind)
        elif isinstance(op, ops.Linear | ops.Conv):
            block.weights += op.weight.size
            block.nonzero += op.weight.nnz
        elif isinstance(op, ops.MatMul):
            block.others["attention product"] += 1
        elif isinstance(op, ops.MaxPool | ops.AvgPool | ops.Reduce | ops.Select) and role == MODEL:
            block.others[node.kind] += 1

    def _neurons(self, block: Block, node: Node, role: str, kind: str) -> None:
        block.neurons[role] += math.prod(node.value.shape)
        block.units[role] += 1
        if role in (MODEL, REFUSED):
            block.layers.append(Layer(node.name.rsplit(".", 1)[-1], kind, node.value.shape))

    def diagram(self) -> Diagram:
        """Blocks in topological order (a later block may have taken in a node that an earlier one reads)."""
        order = list(self._ordered())
        number = {old: new for new, old in enumerate(order)}
        values: dict[tuple[int, int], dict[str, tuple[int, ...]]] = {}
        for node in self.graph:
            for name in node.inputs:
                ends = number[self.place[name]], number[self.place[node.name]]
                if ends[0] != ends[1]:
                    values.setdefault(ends, {})[name] = self.graph[name].value.shape
        links = [Link(*ends, len(v), tuple(dict.fromkeys(v.values()))) for ends, v in sorted(values.items())]
        return Diagram([self.blocks[i] for i in order], links)

    def _ordered(self) -> Iterator[int]:
        import graphlib

        yield from graphlib.TopologicalSorter(dict(enumerate(self.reads))).static_order()
