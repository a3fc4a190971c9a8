"""Counting a network's synaptic operations from its spikes, whoever ran it.

`count` takes a batch's inputs and spikes; `Counter` takes batch after batch; `count_executor` drives an executor
over a data set. Which graph is counted is the caller's choice: a target's own (what is deployed) or
the model's (what was trained). An operator that is not in layers.ROLES is refused, never skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from stdeploy.energy.layers import layers_of, network_of, require_counted
from stdeploy.energy.ledger import NETWORK, QUANTITIES, Class, LayerCount, Ledger
from stdeploy.energy.reach import Reach
from stdeploy.energy.signals import Signals
from stdeploy.energy.tally import JointTally, Tally
from stdeploy.errors import UserError
from stdeploy.graph import ops
from stdeploy.graph.execution import Executor, batch_size
from stdeploy.graph.graph import Graph, Node, rewrite
from stdeploy.graph.value import Domain
from stdeploy.graph.value import count as count_domain
from stdeploy.graph.weight import Array
from stdeploy.pairing import pairs, take

MEMORY_BYTES = 1 << 29
"""Working set that count_executor chooses its batch for."""

LARGEST_COUNT = (1 << 31) - 1
"""Bound of an input that is counted as integers (event frames)."""


class Counter:
    """Counts batches of one graph. `input_class` says how the input's values are to be taken.

    "real" takes them as they are; "count" and "binary" refuse (UserError) other values than integers from 0
    and 0 and 1: event frames. `facts` goes into Ledger.graph. Raises UnsupportedError that lists every operator
    that is not counted.
    """

    def __init__(
        self, graph: Graph, *, input_class: Class = "real", facts: Mapping[str, Any] | None = None
    ) -> None:
        self.graph = with_input_class(graph, input_class)
        require_counted(self.graph)
        self.samples = 0
        self._facts = {**facts_of(graph), "input": input_class, **(facts or {})}
        self._layers = layers_of(self.graph)
        steps = self.graph.steps
        self._rows = [
            (i, q, r)
            for i, layer in enumerate(self._layers)
            for q in QUANTITIES[layer.role]
            for r in range(layer.rows(steps))
        ]
        self._steps = Tally(len(self._rows))
        network = (*NETWORK, *(f"static.{name}" for name in NETWORK))
        self._totals = JointTally([*(tuple(QUANTITIES[layer.role]) for layer in self._layers), network])

    def add(
        self, inputs: Array, spikes: Mapping[str, Array], selections: Mapping[str, Array] | None = None
    ) -> None:
        """Count a batch: `inputs` in the Input's layout, `spikes [T, B, *shape]` by neuron name.

        `selections`: as Execution has them, where the network selects tokens by real-valued scores. UserError where
        anything does not fit the graph; then nothing of the batch was counted.
        """
        signals = Signals(self.graph, inputs, spikes, selections)
        if not signals.batch:
            return
        reach = Reach(signals)
        by_name: dict[str, Mapping[str, Array]] = {}
        for layer in self._layers:
            by_name[layer.name] = layer.count(signals, reach, by_name)
        counted = list(by_name.values())
        batch = signals.batch
        if self._rows:
            self._steps.add(np.stack([counted[i][q][r] for i, q, r in self._rows]))
        totals = [{q: array.sum(0) for q, array in quantities.items()} for quantities in counted]
        self._totals.add([*totals, network_of(self._layers, totals, batch)])
        self.samples += batch

    def ledger(self) -> Ledger:
        """What was counted so far; UserError where no sample was."""
        if not self.samples:
            raise UserError("there is no sample to count", hint="the data set is empty")
        steps: list[dict[str, list[Any]]] = [{} for _ in self._layers]
        for place, (i, quantity, _) in enumerate(self._rows):
            steps[i].setdefault(quantity, []).append(self._steps.moments(place))
        *totals, network = self._totals.joints()
        layers = tuple(
            LayerCount(
                layer.name,
                layer.kind,
                layer.source,
                layer.role,
                layer.time,
                layer.input_class,
                layer.scale,
                layer.constants,
                {q: tuple(rows) for q, rows in steps[i].items()},
                totals[i],
                layer.parts,
            )
            for i, layer in enumerate(self._layers)
        )
        return Ledger(self.samples, self.graph.steps, layers, network, self._facts)


def count(
    graph: Graph,
    inputs: Array,
    spikes: Mapping[str, Array],
    *,
    selections: Mapping[str, Array] | None = None,
    input_class: Class = "real",
) -> Ledger:
    """Count one batch from its inputs and its neurons' spikes; see Counter."""
    counter = Counter(graph, input_class=input_class)
    counter.add(inputs, spikes, selections)
    return counter.ledger()


def count_executor(
    graph: Graph,
    executor: Executor,
    inputs: Array,
    *,
    source: Graph | None = None,
    batch: int | None = None,
    input_class: Class = "real",
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Ledger:
    """Run `executor` over a data set, `batch` samples at a time (None: as fit MEMORY_BYTES), and count `graph`.

    `source`: the graph whose neurons the executor reports, where it is not `graph` itself (the model's, when a
    target's graph is counted). `progress` is called with the number of samples after every batch. UserError as
    in Counter, and where `batch` < 1.
    """
    batch = batch_for(graph) if batch is None else batch
    if batch < 1:
        raise UserError(f"a batch of {batch} samples", hint="choose 1 or more")
    counter = Counter(graph, input_class=input_class, facts=facts)
    (node,) = graph.inputs
    if not isinstance(node.op, ops.Input):
        raise TypeError(f"{node.name} is not an Input")
    total = batch_size(inputs, node.op.layout, node.op.shape, graph.steps)
    axis = 1 if node.op.layout == "TB" else 0
    for start in range(0, total, batch):
        part = inputs[(slice(None),) * axis + (slice(start, start + batch),)]
        run = executor.run(part)
        counter.add(
            part, run.spikes if source is None else spikes_of(graph, source, run.spikes), run.selections
        )
        if progress is not None:
            progress(part.shape[axis])
    return counter.ledger()


def batch_for(graph: Graph) -> int:
    """Samples whose spikes, masks and one layer's float copies fit MEMORY_BYTES; at least 1, at most 256."""
    sizes = [int(np.prod(node.value.shape)) for node in graph if node.value.time != "final"]
    per_sample = graph.steps * (3 * sum(sizes) + 8 * max(sizes, default=1))
    return max(1, min(256, MEMORY_BYTES // max(1, per_sample)))


def spikes_of(graph: Graph, source: Graph, spikes: Mapping[str, Array]) -> dict[str, Array]:
    """Spikes of `graph`'s neurons, out of those of the model that it was made from (UserError as pairing.pairs)."""
    return {
        pair.exported.name: take(spikes[pair.source.name], pair.channels)
        for pair in pairs(source, graph)
        if pair.exported is not None
    }


def facts_of(graph: Graph) -> dict[str, Any]:
    """What a ledger says about its graph: where it came from."""
    names = ("source", "source_sha256", "stdeploy_version", "compression")
    return {name: graph.metadata[name] for name in names if name in graph.metadata}


def with_input_class(graph: Graph, wanted: Class) -> Graph:
    """The graph with its Input's domain as asked for, and every domain that follows from it."""
    if wanted == "real":
        return graph
    domain: Domain = count_domain(1.0, 1 if wanted == "binary" else LARGEST_COUNT)

    def visit(builder: Any, node: Node, inputs: tuple[str, ...]) -> str | None:
        op = node.op
        if not isinstance(op, ops.Input):
            return None
        known = ops.Input(op.shape, op.axes, op.layout, domain)
        return str(builder.add(known, inputs, name=node.name, source=node.source))

    return rewrite(graph, visit)
