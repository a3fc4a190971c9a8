"""A NIR graph as one level of named nodes in topological order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import nir

from stdeploy.errors import Unsupported, UserError


@dataclass(eq=False)
class Network:
    """Nodes in topological order with the nodes they sum, each as often as there are edges.

    `loops`: nodes on or between cycles; they come last and have no order.
    """

    nodes: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    loops: tuple[str, ...] = ()

    @property
    def inputs(self) -> list[str]:
        """Input nodes of the outermost graph; those of nested graphs are fed."""
        return [n for n, node in self.nodes.items() if isinstance(node, nir.Input) and not self.sources[n]]

    @property
    def outputs(self) -> list[str]:
        """Output nodes of the outermost graph."""
        read = {s for sources in self.sources.values() for s in sources}
        return [n for n, node in self.nodes.items() if isinstance(node, nir.Output) and n not in read]

    def readers(self) -> dict[str, list[str]]:
        """For every node the nodes that read it, each as often as it reads."""
        out: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, sources in self.sources.items():
            for source in sources:
                out[source].append(name)
        return out

    @property
    def edges(self) -> int:
        return sum(len(sources) for sources in self.sources.values())


def flatten(graph: Any) -> Network:
    """One level of a nir.NIRGraph: inner nodes are named `graph.node`, inner Inputs and Outputs pass through.

    Raises UserError for an edge to a node that is not there, or to or from a nested graph that does not have
    exactly one Input or Output.
    """
    nodes: dict[str, Any] = {}
    edges: list[tuple[str, str]] = []
    _collect(graph, "", nodes, edges)
    sources: dict[str, list[str]] = {name: [] for name in nodes}
    for source, target in edges:
        sources[target].append(source)
    return ordered(nodes, sources)


def ordered(nodes: dict[str, Any], sources: dict[str, list[str]]) -> Network:
    """Topological order, as close to the given one as it can be."""
    readers: dict[str, list[str]] = {name: [] for name in nodes}
    for name, found in sources.items():
        for source in found:
            readers[source].append(name)
    missing = {name: len(found) for name, found in sources.items()}
    ready = [name for name in nodes if not missing[name]]
    order: list[str] = []
    while ready:
        name = ready.pop(0)
        order.append(name)
        for reader in readers[name]:
            missing[reader] -= 1
            if not missing[reader]:
                ready.append(reader)
    placed = set(order)
    rest = [name for name in nodes if name not in placed]
    loops = _between_loops(rest, readers)
    return Network({n: nodes[n] for n in order + rest}, {n: sources[n] for n in order + rest}, loops)


def _between_loops(rest: list[str], readers: dict[str, list[str]]) -> tuple[str, ...]:
    """`rest` without what merely follows a cycle."""
    left = set(rest)
    while True:
        ends = {name for name in left if not any(r in left for r in readers[name])}
        if not ends:
            return tuple(name for name in rest if name in left)
        left -= ends


def _collect(graph: Any, prefix: str, nodes: dict[str, Any], edges: list[tuple[str, str]]) -> None:
    unknown = sorted({n for edge in graph.edges for n in edge} - set(graph.nodes))
    if unknown:
        raise UserError(
            f"edges name nodes that {prefix or 'the network'} does not have: {', '.join(unknown)}"
        )
    for name, node in graph.nodes.items():
        if isinstance(node, nir.NIRGraph):
            _collect(node, f"{prefix}{name}.", nodes, edges)
            continue
        if f"{prefix}{name}" in nodes:
            raise UserError(f"two nodes are called {prefix}{name} once nested graphs are flattened")
        nodes[f"{prefix}{name}"] = node
    edges += [
        (_port(graph, prefix, source, nir.Output), _port(graph, prefix, target, nir.Input))
        for source, target in graph.edges
    ]


def _port(graph: Any, prefix: str, name: str, kind: type) -> str:
    """The flat name of an edge's end: of a nested graph, its Input or Output."""
    node = graph.nodes[name]
    if not isinstance(node, nir.NIRGraph):
        return f"{prefix}{name}"
    ports = [inner for inner, item in node.nodes.items() if isinstance(item, kind)]
    if len(ports) != 1:
        raise UserError(f"the nested graph {prefix}{name} has {len(ports)} {kind.__name__} nodes, not one")
    return f"{prefix}{name}.{ports[0]}"


def structure(network: Network) -> list[Unsupported]:
    """What a graph without recurrence, with one input, cannot be."""
    out = []
    if network.loops:
        what = "recurrence: a graph computes each step's values in one order"
        out.append(Unsupported(", ".join(network.loops), "cycle", what))
    if len(network.inputs) != 1:
        where = ", ".join(network.inputs)
        out.append(Unsupported(where, "Input", f"{len(network.inputs)} inputs; a graph has one"))
    return out
