"""NIR: one file of standard primitives that snnTorch, SpikingJelly and Norse run unmodified.

The dialect and the lowering, with equations and measured readers: docs/nir.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stdeploy.errors import Unsupported, UnsupportedError
from stdeploy.exporters.artifact import Artifact
from stdeploy.exporters.nir.dialect import load_dialect
from stdeploy.exporters.nir.lower import Lowering
from stdeploy.exporters.nir.options import Options
from stdeploy.graph.graph import Graph

SUFFIX = ".nir"


def read_options(options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options; UserError where one is unknown, or the dialect's file is none."""
    load_dialect(Options.parse(options).dialect)
    return dict(options or {})


def check(graph: Graph, options: Mapping[str, Any] | None = None) -> list[Unsupported]:
    """Everything in `graph` that the dialect cannot express; UserError for an unknown option."""
    return Lowering(graph, Options.parse(options)).run().refused


def export(graph: Graph, path: Path | str, options: Mapping[str, Any] | None = None) -> Artifact:
    """Write `graph` as one NIR file, which appears whole or not at all.

    Options: see `Options`. Raises UnsupportedError listing every offender, UserError where an option is
    wrong or the file cannot be written.
    """
    from stdeploy.exporters.nir.emit import describe, to_nir, write

    low = Lowering(graph, Options.parse(options)).run()
    if low.refused:
        raise UnsupportedError(f"{len(low.refused)} parts of the model cannot be written as NIR", low.refused)
    size = write(to_nir(low), Path(path))
    counts = low.plan.counts()
    auxiliary = counts["pooling_neurons"] + counts["attention_neurons"]
    made = (
        f"{counts['nodes']} nodes, {counts['edges']} edges, {counts['model_neurons']} model neurons,"
        f" {auxiliary} auxiliary, {counts['stored_weights']} stored weights"
    )
    use = (
        f"drive it with {describe(low)['input']['drive']}, T = {graph.steps}, dt = {low.rules.dt:g};"
        f" the output over the steps: {low.readout or 'each step'}"
    )
    return Artifact(Path(path), "nir", size, (made, use), counts)
