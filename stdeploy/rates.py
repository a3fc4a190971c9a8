"""How much of each layer's input is not zero, on a user's data: what the event target chooses its kernels by."""

from __future__ import annotations

from typing import Any

import numpy as np

from stdeploy.energy.counting import batch_for, spikes_of
from stdeploy.energy.signals import Signals
from stdeploy.exporters import load_target
from stdeploy.exporters.event.cost import Rate
from stdeploy.exporters.event.plan import Rates
from stdeploy.exporters.event.stages import STEPS_TOGETHER
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
    """Shares of nonzero input elements of every Linear and Conv of `lowered`, by name, on the source's own spikes."""
    axis = batch_axis(source.graph)
    layers = [node for node in lowered if isinstance(node.op, Linear | Conv)]
    totals = {node.name: np.zeros(4, np.int64) for node in layers}
    batch = batch_for(lowered)
    for start in range(0, inputs.shape[axis], batch):
        part = np.take(inputs, range(start, min(start + batch, inputs.shape[axis])), axis=axis)
        run = source.reference.run(part)
        signals = Signals(lowered, part, spikes_of(lowered, source.graph, run.spikes), run.selections)
        for node in layers:
            totals[node.name] += _shares(signals.nonzero(node.inputs[0]))
    return {
        name: Rate(each / max(1, size), together / max(1, groups))
        for name, (each, size, together, groups) in ((n, t.tolist()) for n, t in totals.items())
    }


def _shares(nonzero: Array) -> Array:
    """Of `[rows, ...]`: how many are true and how many there are, at a step and in any of STEPS_TOGETHER steps."""
    starts = np.arange(0, nonzero.shape[0], STEPS_TOGETHER)
    together = np.logical_or.reduceat(nonzero, starts, axis=0)
    return np.array([np.count_nonzero(nonzero), nonzero.size, np.count_nonzero(together), together.size])


def rate_option(source: Source, lowered: Graph, inputs: Array, data: str) -> dict[str, Any]:
    """The option `rates` of a target that takes it, from at most SAMPLES of `inputs`; `data` says what they are."""
    axis = batch_axis(source.graph)
    few = np.take(inputs, range(min(SAMPLES, inputs.shape[axis])), axis=axis)
    return {"rates": Rates(input_rates(source, lowered, few), data, few.shape[axis])}
