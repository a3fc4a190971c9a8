"""Remove every node from which no Output can be reached; Inputs stay, they are the model's contract."""

from __future__ import annotations

from dataclasses import replace

from stdeploy.graph import Graph
from stdeploy.graph.ops import Input, Output
from stdeploy.passes.base import PassResult


def without_dead(graph: Graph) -> tuple[Graph, list[str]]:
    """The live part of `graph` and the names of the nodes that were dropped."""
    live: set[str] = set()
    for node in reversed(list(graph)):
        if node.name in live or isinstance(node.op, Input | Output):
            live.update((node.name, *node.inputs))
    dead = [name for name in graph.nodes if name not in live]
    if not dead:
        return graph, []
    return replace(graph, nodes={n: node for n, node in graph.nodes.items() if n in live}), dead


class DeadCode:
    """Remove what reaches no Output; notes name the removed neurons, whose spikes are no longer seen."""

    name = "dead-code"

    def run(self, graph: Graph) -> PassResult:
        """Exact: nothing that is removed was read."""
        out, dead = without_dead(graph)
        neurons = [n.name for n in graph.neurons if n.name in set(dead)]
        notes = [f"removed {len(dead)} nodes that reach no output"] if dead else []
        notes += [f"{name}: neuron removed, it reaches no output" for name in neurons]
        return PassResult(out, bool(dead), tuple(notes))
