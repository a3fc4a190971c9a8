"""A spiking network as nodes in topological order; immutable, so a pass builds a new graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from stdeploy.graph.ops import Input, Neuron, Op, Output
from stdeploy.graph.value import Value

OpT = TypeVar("OpT", bound=Op)


class GraphError(ValueError):
    """A node that does not fit its inputs, or a graph that breaks a rule; names the node."""


class ParameterError(GraphError):
    """A legal graph whose parameters have no meaning: not finite, or tau < 1."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operator applied to the values of the nodes named in `inputs`.

    A node yields exactly one value and lends it its name. `source` is the module path (or line) in
    the user's model. A neuron's name is its module's path.
    """

    name: str
    op: Op
    inputs: tuple[str, ...]
    value: Value
    source: str = ""

    @property
    def kind(self) -> str:
        return type(self.op).__name__


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes by name in topological order; `steps` is T; `metadata` travels into every artefact."""

    steps: int
    nodes: Mapping[str, Node]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def __len__(self) -> int:
        return len(self.nodes)

    def of(self, kind: type[OpT]) -> list[Node]:
        """Nodes whose operator is of `kind`, in order."""
        return [node for node in self if isinstance(node.op, kind)]

    @property
    def inputs(self) -> list[Node]:
        return self.of(Input)

    @property
    def outputs(self) -> list[Node]:
        return self.of(Output)

    @property
    def neurons(self) -> list[Node]:
        return self.of(Neuron)

    def users(self) -> dict[str, list[Node]]:
        """For every node the nodes that read it, each as often as it reads."""
        out: dict[str, list[Node]] = {name: [] for name in self.nodes}
        for node in self:
            for name in node.inputs:
                out[name].append(node)
        return out

    def values(self, node: Node) -> list[Value]:
        """Values that `node` reads."""
        return [self.nodes[name].value for name in node.inputs]

    def with_metadata(self, **items: Any) -> Graph:
        return replace(self, metadata={**self.metadata, **items})


class GraphBuilder:
    """Appends nodes, infers their values, and refuses what does not fit (GraphError)."""

    def __init__(self, steps: int, metadata: Mapping[str, Any] | None = None) -> None:
        if steps < 1:
            raise GraphError(f"a graph needs at least one step, not {steps}")
        self.steps = steps
        self.metadata = dict(metadata or {})
        self.nodes: dict[str, Node] = {}

    def unique(self, name: str) -> str:
        """`name`, or `name.1`, `name.2`, ... where it is taken."""
        candidate, k = name, 0
        while candidate in self.nodes:
            k += 1
            candidate = f"{name}.{k}"
        return candidate

    def add(self, op: Op, inputs: tuple[str, ...] | list[str] = (), *, name: str, source: str = "") -> str:
        """Append a node and return its (unique) name."""
        missing = [n for n in inputs if n not in self.nodes]
        if missing:
            raise GraphError(f"{name}: reads {missing}, which no earlier node yields")
        if (len(inputs) != op.arity) if op.arity >= 0 else (not inputs):
            raise GraphError(f"{name}: {type(op).__name__} takes {op.arity} inputs, not {len(inputs)}")
        try:
            value = op.infer([self.nodes[n].value for n in inputs], self.steps)
        except ValueError as error:
            raise GraphError(f"{source or name}: {type(op).__name__}: {error}") from error
        unique = self.unique(name)
        self.nodes[unique] = Node(unique, op, tuple(inputs), value, source)
        return unique

    def value(self, name: str) -> Value:
        return self.nodes[name].value

    def build(self) -> Graph:
        return Graph(self.steps, dict(self.nodes), self.metadata)


Rewrite = Callable[[GraphBuilder, Node, tuple[str, ...]], str | None]


def rewrite(graph: Graph, visit: Rewrite) -> Graph:
    """Rebuild `graph` node by node.

    `visit(builder, node, inputs)` gets the node with its inputs already renamed and returns the name
    that stands for it from now on, after adding whatever nodes it wants; None copies the node.
    """
    builder = GraphBuilder(graph.steps, graph.metadata)
    renamed: dict[str, str] = {}
    for node in graph:
        inputs = tuple(renamed[n] for n in node.inputs)
        name = visit(builder, node, inputs)
        if name is None:
            name = builder.add(node.op, inputs, name=node.name, source=node.source)
        renamed[node.name] = name
    return builder.build()
