"""From a file to a count: which network is counted, on whose spikes, over which samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stdeploy import running, workflow
from stdeploy.errors import ParityError, UserError
from stdeploy.graph import Graph
from stdeploy.graph.execution import Execution, Executor
from stdeploy.graph.weight import Array
from stdeploy.verify import batch_axis

if TYPE_CHECKING:
    from stdeploy.energy.ledger import Class, Ledger

Which = Literal["deployed", "source"]


@dataclass(frozen=True, eq=False)
class Subject:
    """What is counted: a graph, the executor whose spikes are counted, and the graph that names its neurons.

    `by` says it in words, for the report.
    """

    graph: Graph
    executor: Executor
    names: Graph | None
    by: str


def subject(
    source: workflow.Source,
    artefact: Path | None = None,
    readers: Sequence[str] = (),
    which: Which = "deployed",
) -> Subject:
    """The network to count: a model's as deployed or as written, or an artefact's on the artefact's own spikes.

    UserError where the artefact is not one of the model, or `which` asks for the model's graph of an artefact.
    """
    if artefact is None:
        graph = source.graph if which == "source" else workflow.lower(source.graph, "default").graph
        words = "as written" if which == "source" else "after the exact passes"
        names = None if graph is source.graph else source.graph
        return Subject(graph, source.reference, names, f"{words}; spikes of {source.reference.name}")
    if which == "source":
        raise UserError(
            f"{artefact} has only the deployed network",
            hint="leave out --artefact to count the model as written",
        )
    graph = workflow.exported_graph(source, artefact)
    executor = running.spiking_executor(artefact, readers)
    workflow.require_same_network(source, graph, executor)
    if hasattr(executor, "synops"):
        executor = OwnCount(executor)
    return Subject(graph, executor, None, f"as exported to {artefact.name}; spikes of {executor.name}")


class OwnCount:
    """An executor that counts what it does itself (`synops` of its last call); sums it by node, over all calls."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.name = engine, str(engine.name)
        self.synops: Counter[str] = Counter()

    def compile(self) -> None:
        """See running.compile_first."""
        self.engine.compile()

    def run(self, inputs: Array, forced: Mapping[str, Array] | None = None) -> Execution:
        """See Executor."""
        found: Execution = self.engine.run(inputs, forced)
        self.synops.update({name: int(counts.sum()) for name, counts in self.engine.synops.items()})
        return found


def require_own_count(target: Subject, ledger: Ledger) -> str | None:
    """What the executor counted itself has to be what the ledger counted, product by product; ParityError if not.

    Returns the finding in words, None where the executor does not count.
    """
    own = target.executor
    if not isinstance(own, OwnCount):
        return None
    quantities = {"synapse": "synops", "attention": "coincidence", "product": "coincidence"}
    counted = {
        layer.name: layer.total[quantities[layer.role]].total
        for layer in ledger.layers
        if layer.role in quantities
    }
    wrong = [name for name in {**counted, **own.synops} if counted.get(name) != own.synops.get(name)]
    if wrong:
        listed = "; ".join(f"{n}: {own.synops.get(n)} done, {counted.get(n)} counted" for n in wrong[:3])
        raise ParityError(
            f"{own.name} did other synaptic operations than the network has in {len(wrong)} products: {listed}",
            hint="this is a bug in stdeploy: please report it with the file",
        )
    return f"{own.synops.total():,} synaptic operations in {len(counted)} products: the engine's own count agrees"


def shard(inputs: Array, graph: Graph, part: tuple[int, int]) -> Array:
    """Part `i` of `n` (from 1) of the samples, in order; parts differ by at most one sample.

    UserError where there are fewer samples than parts.
    """
    index, parts = part
    axis = batch_axis(graph)
    total = inputs.shape[axis]
    if parts > total:
        raise UserError(f"{total} samples do not make {parts} shards", hint=f"at most {total}")
    start, stop = ((index - 1) * total // parts, index * total // parts)
    return np.take(inputs, range(start, stop), axis=axis)


def count(
    target: Subject,
    inputs: Array,
    *,
    batch: int,
    input_class: Class = "real",
    progress: Callable[[int], None] | None = None,
) -> Ledger:
    """Run the samples in batches and count; `progress` is told how many are done."""
    from stdeploy.energy.counting import count_executor

    done = 0

    def advance(samples: int) -> None:
        nonlocal done
        done += samples
        if progress is not None:
            progress(done)

    return count_executor(
        target.graph,
        target.executor,
        inputs,
        source=target.names,
        batch=batch,
        input_class=input_class,
        facts={"counted": target.by},
        progress=advance,
    )
