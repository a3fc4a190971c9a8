"""What a pass is, what it returns, and running several in order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from stdeploy.graph import Graph, GraphError, validate


@dataclass(frozen=True, eq=False)
class PassResult:
    """The rewritten graph (the same object where nothing was `modified`) and what was done or refused, why."""

    graph: Graph
    modified: bool
    notes: tuple[str, ...] = ()


class Pass(Protocol):
    """A pure function of a graph that keeps its meaning: in float64 every remaining neuron's spikes are equal."""

    @property
    def name(self) -> str:
        """Name that notes and errors carry, e.g. `fold-affine`."""
        ...

    def run(self, graph: Graph) -> PassResult:
        """Rewrite `graph`; never edits it or its arrays."""
        ...


class PassError(RuntimeError):
    """A pass broke the graph: a bug in stdeploy; names the pass and those that ran before it."""


def run_pipeline(graph: Graph, passes: Iterable[Pass]) -> PassResult:
    """Run `passes` in order, validating after each; notes are prefixed by the pass's name.

    The result's metadata key "passes" lists the notes, after those of earlier pipelines. Raises
    GraphError where `graph` itself is illegal and PassError where a pass makes it so.
    """
    validate(graph)
    notes: list[str] = []
    done: list[str] = []
    modified = False
    for step in passes:
        try:
            result = step.run(graph)
            validate(result.graph)
        except GraphError as error:
            raise PassError(f"pass {step.name} (after {', '.join(done) or 'none'}): {error}") from error
        done.append(step.name)
        notes += [f"{step.name}: {note}" for note in result.notes]
        modified |= result.modified
        graph = result.graph
    recorded = [*graph.metadata.get("passes", []), *notes]
    return PassResult(graph.with_metadata(passes=recorded), modified, tuple(notes))
