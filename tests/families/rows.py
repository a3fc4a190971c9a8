"""One row of the README's table: what a family's model does in the trace, the passes and the targets."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stdeploy.errors import Unsupported, UnsupportedError
from stdeploy.exporters import load_target
from stdeploy.graph import Graph
from stdeploy.graph.execution import Executor
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.weight import Array
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.runtime.event.session import EventSession
from stdeploy.runtime.nir_readers import NirReader
from stdeploy.runtime.onnx_session import OnnxRuntimeExecutor
from stdeploy.trace import TracedModel
from stdeploy.verify import compare
from tests.families import FAMILIES, Family

BATCH = 3
HEAD = ("model", "trace", "interpreter = torch", "ONNX = torch", "NIR = torch", "SEV = torch")


def inputs(family: Family) -> Array:
    """A batch in the family's layout."""
    x = np.random.default_rng(5).standard_normal((BATCH, *family.shape))
    return x.astype(np.float32)


def exact(family: Family) -> tuple[TracedModel, int]:
    """The model traced in float64, and in how many neuron layers the graph, or what either pipeline makes
    of it, spikes otherwise than the model does (those that the passes keep whole are compared)."""
    traced = family.traced(family.build().double())
    x = inputs(family).astype(np.float64)
    wanted = traced.run(x)
    graphs = [traced.graph, *(run_pipeline(traced.graph, PIPELINES[t]).graph for t in ("onnx", "nir"))]
    wrong = 0
    for graph in graphs:
        found = interpret(graph, x).spikes
        for name, spikes in found.items():
            kept = getattr(graph[name].op, "kept", None)
            reference = wanted.spikes[name] if kept is None else wanted.spikes[name][:, :, kept]
            wrong += not np.array_equal(reference, spikes)
    return traced, wrong


def lowered(family: Family, target: str) -> tuple[TracedModel, Graph, list[Unsupported]]:
    """The model traced in float32, the graph after the target's passes, and what the target refuses of it."""
    traced = family.traced(family.build())
    graph = run_pipeline(traced.graph, PIPELINES[target]).graph
    return traced, graph, load_target(target).check(graph)


def verified(family: Family, traced: TracedModel, graph: Graph, target: str) -> list[str]:
    """What the comparison of the written file with the model finds wrong, by reader; nothing where all is well."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"net.{target}"
        load_target(target).export(graph, path)
        readers: Sequence[Executor] = {
            "onnx": lambda: [OnnxRuntimeExecutor(path, spikes=False)],
            "nir": lambda: [NirReader(path, name) for name in ("snntorch", "stdeploy")],
            "event": lambda: [EventSession(path)],
        }[target]()
        found = []
        for reader in readers:
            report = compare(traced, reader, traced.graph, inputs(family), exported=graph)
            found += [f"{reader.name}: {problem}" for problem in report.problems]
        return found


@functools.lru_cache
def row(name: str) -> tuple[str, ...]:
    """The cells of one family's row: everything is run."""
    family = FAMILIES[name]
    try:
        _, wrong = exact(family)
    except UnsupportedError as error:
        return (name, f"refused: {_reasons(error.items)}", "", "", "", "")
    cells = [name, "yes", "no" if wrong else "yes"]
    for target in ("onnx", "nir", "event"):
        traced, graph, refused = lowered(family, target)
        if refused:
            cells.append(f"refused: {_reasons(refused)}")
        else:
            cells.append("no" if verified(family, traced, graph, target) else "yes")
    return tuple(cells)


def _reasons(items: Sequence[Unsupported]) -> str:
    return "; ".join(dict.fromkeys(item.reason for item in items))


def table() -> str:
    """The markdown table of every family."""
    lines = [HEAD, tuple("---" for _ in HEAD), *(row(name) for name in FAMILIES)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
