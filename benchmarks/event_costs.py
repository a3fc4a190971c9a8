"""What the event engine's kernels cost on this machine: seconds for each thing of exporters.event.cost.Costs, fitted.

Every Linear and Conv of some networks (event_engine.CALIBRATED) is timed with both kernels on one thread; costs are
the non-negative ones that make the relative errors smallest. `python -m benchmarks.event_engine --calibrate` writes
benchmarks/results/event_costs.json, with every layer's measured and predicted time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize

from benchmarks.event_profile import kernel_seconds, products, profile, unfoldings
from stdeploy import rates, workflow
from stdeploy.exporters.event.cost import Costs, estimate
from stdeploy.exporters.event.lower import KERNELS
from stdeploy.files import atomic_write
from stdeploy.graph.weight import Array
from stdeploy.runtime.bench.machine import examine_machine

RESULT = Path(__file__).parent / "results" / "event_costs.json"
CLOSE = 0.2
"""Relative error up to which a prediction counts as close."""
ROUNDS = 7
UNFOLD = "unfold"


@dataclass(frozen=True)
class Sample:
    """A layer with a kernel, or (`unfold`) the unfolding for it: `work` by name of a cost, and seconds, both per step."""

    network: str
    layer: str
    kernel: str
    work: Mapping[str, float]
    seconds: float

    def predicted(self, costs: Mapping[str, float]) -> float:
        """Seconds per step at these costs."""
        return sum(costs[name] * count for name, count in self.work.items())


def samples(path: Path, images: Array) -> list[Sample]:
    """Every layer of a network that both kernels can run, timed with each on the first image; unfoldings alone, too.

    Where weights are dense they are too small a share of a layer's time to be told from it.
    """
    source = workflow.open_source(path)
    graph = workflow.lower(source.graph, "event").graph
    inputs = rates.input_rates(source, graph, images[:1])
    out = []
    for kernel in KERNELS:
        stages = profile(graph, dict.fromkeys(products(graph), kernel), images[:1], ROUNDS)
        unfolding = unfoldings(graph, stages)
        for name, seconds in kernel_seconds(graph, kernel, stages).items():
            work = estimate(graph, graph[name], inputs[name], Costs()).work
            if len(work) < len(KERNELS):
                continue
            out.append(Sample(path.stem, name, kernel, work[kernel], seconds / graph.steps))
            if name in unfolding:
                shifts = {"column_shift": work[kernel]["column_shift"]}
                out.append(Sample(path.stem, name, UNFOLD, shifts, unfolding[name] / graph.steps))
    return out


def fit(found: list[Sample]) -> dict[str, float]:
    """Costs by name that make the sum of squared relative errors smallest, none below 0."""
    names = [f.name for f in fields(Costs) if f.name != "machine"]
    relative = np.array([[s.work.get(name, 0.0) / s.seconds for name in names] for s in found])
    scale = relative.max(axis=0, initial=1e-30)
    solution, _ = scipy.optimize.nnls(relative / scale, np.ones(len(found)))
    return {name: float(value) for name, value in zip(names, solution / scale, strict=True)}


def judged(found: list[Sample], costs: Mapping[str, float]) -> dict[str, Any]:
    """How well costs predict, and what choosing by them loses against choosing by the measured times."""
    errors = np.array([s.predicted(costs) / s.seconds - 1 for s in found])
    layers: dict[tuple[str, str], list[Sample]] = {}
    for sample in found:
        if sample.kernel in KERNELS:
            layers.setdefault((sample.network, sample.layer), []).append(sample)
    chosen = [min(both, key=lambda s: s.predicted(costs)).seconds for both in layers.values()]
    best = [min(s.seconds for s in both) for both in layers.values()]
    return {
        "layers_and_kernels": len(found),
        "median_error": float(np.median(abs(errors))),
        "largest_error": float(abs(errors).max()),
        "share_within_20_percent": float(np.mean(abs(errors) <= CLOSE)),
        "choices_not_fastest": int(sum(c > b for c, b in zip(chosen, best, strict=True))),
        "time_lost_by_choosing": float(sum(chosen) / sum(best) - 1),
    }


def calibrate(networks: list[Path], images: Array, path: Path = RESULT) -> dict[str, Any]:
    """Time, fit, and write what was found."""
    machine = examine_machine()
    found = [sample for network in networks for sample in samples(network, images)]
    costs = fit(found)
    shipped = {name: value for name, value in Costs().to_dict().items() if name != "machine"}
    document = {
        "machine": machine.to_dict(),
        "costs": costs,
        "fit": judged(found, costs),
        "shipped_costs": shipped,
        "fit_of_shipped_costs": judged(found, shipped),
        "samples": [
            {
                "network": s.network,
                "layer": s.layer,
                "kernel": s.kernel,
                "ms": 1e3 * s.seconds,
                "predicted_ms": 1e3 * s.predicted(costs),
                "shipped_ms": 1e3 * s.predicted(shipped),
            }
            for s in found
        ],
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")
    return document
