"""How much of each layer's input is not zero, on a user's data: what the event target chooses its kernels by."""

from __future__ import annotations

from typing import Any

import numpy as np

from stdeploy.energy.counting import batch_for, spikes_of
from stdeploy.energy.signals import Signals
from stdeploy.exporters import load_target
from stdeploy.exporters.event.cost import Rate
from stdeploy.exporters.event.plan import Rates
from stdeploy.graph import Graph
from stdeploy.graph.ops import Conv, Linear
from stdeploy.graph.weight import Array
from stdeploy.verify import batch_axis
from stdeploy.workflow import Source

SAMPLES = 16
"""Samples that rates are measured on at most: they differ between layers by far more than between samples."""


def wants_rates(target: str) -> bool:
    """Whether the target takes measured rates as an option."""
    return target != "graph" and bool(getattr(load_target(target), "TAKES_RATES", False))


def input_rates(source: Source, lowered: Graph, inputs: Array) -> dict[str, Rate]:
    """Rates of the inputs of every Linear and Conv of `lowered`, by name, on the source's own spikes."""
    axis = batch_axis(source.graph)
    layers = [node for node in lowered if isinstance(node.op, Linear | Conv)]
    totals = {node.name: np.zeros(3, np.int64) for node in layers}
    batch = batch_for(lowered)
    for start in range(0, inputs.shape[axis], batch):
        part = np.take(inputs, range(start, min(start + batch, inputs.shape[axis])), axis=axis)
        run = source.reference.run(part)
        signals = Signals(lowered, part, spikes_of(lowered, source.graph, run.spikes), run.selections)
        for node in layers:
            totals[node.name] += _counted(signals, node.inputs[0])
    return {
        name: Rate(nonzero / max(1, size), bits / max(1, size))
        for name, (nonzero, bits, size) in ((n, t.tolist()) for n, t in totals.items())
    }


def _counted(signals: Signals, name: str) -> Array:
    """Elements of a value that are not zero, bits that are set in its counts, and elements."""
    there, domain = signals.nonzero(name), signals.graph[name].value.domain
    nonzero = bits = int(np.count_nonzero(there))
    if domain.maximum is not None and domain.maximum > 1:
        units = signals.units(name)
        bits = sum(int(np.count_nonzero(units >> k & 1)) for k in range(domain.maximum.bit_length()))
    return np.array([nonzero, bits, there.size])


def rate_option(source: Source, lowered: Graph, inputs: Array, data: str) -> dict[str, Any]:
    """The option `rates` of a target that takes it, from at most SAMPLES of `inputs`; `data` says what they are."""
    axis = batch_axis(source.graph)
    few = np.take(inputs, range(min(SAMPLES, inputs.shape[axis])), axis=axis)
    return {"rates": Rates(input_rates(source, lowered, few), data, few.shape[axis])}
