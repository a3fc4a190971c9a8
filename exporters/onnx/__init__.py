"""ONNX: standard operators, T steps unrolled in the file, batch size free.

Loads unmodified in onnxruntime and OpenVINO. Layout and arithmetic: `layout.py` and `neuron.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stdeploy.errors import Unsupported, UnsupportedError
from stdeploy.exporters.artifact import Artifact
from stdeploy.exporters.onnx.check import Options, offenders
from stdeploy.exporters.onnx.int8 import sort_products
from stdeploy.exporters.onnx.lower import EMIT
from stdeploy.exporters.onnx.model import build_model, serialise, write
from stdeploy.graph.graph import Graph
from stdeploy.graph.ops import Select

SUFFIX = ".onnx"
TIES = "of tokens with equal scores the one with the lower index is kept; torch.topk leaves that undefined"


def check(graph: Graph, options: Mapping[str, Any] | None = None) -> list[Unsupported]:
    """Everything in `graph` that cannot be written as ONNX; UserError for an unknown option."""
    return offenders(graph, frozenset(EMIT), Options.parse(options))


def export(graph: Graph, path: Path | str, options: Mapping[str, Any] | None = None) -> Artifact:
    """Write `graph` as one ONNX file, which appears whole or not at all.

    Options: those of check.Options; `spikes` are `spikes:<neuron>`, uint8 [T, B, *shape]. Raises
    UnsupportedError listing every offender, UserError where an option is wrong, the file would exceed 2 GB
    or cannot be written.
    """
    parsed = Options.parse(options)
    items = offenders(graph, frozenset(EMIT), parsed)
    if items:
        raise UnsupportedError(f"{len(items)} parts of the model cannot be written as ONNX", items)
    model = build_model(graph, parsed)
    size = write(serialise(model), Path(path))
    nodes = len(model.graph.node)
    notes = [f"opset {parsed.opset}, {parsed.precision}, {nodes} nodes, T = {graph.steps} steps unrolled"]
    if parsed.sparse:
        notes.append(f"{len(model.graph.sparse_initializer)} weights stored as sparse initialisers")
    if parsed.weights == "int8":
        done, rest = sort_products(graph)
        kept = f"; {', '.join(rest)} stay float32" if rest else ""
        notes.append(f"int8 weights in {len(done)} of {len(done) + len(rest)} products{kept}")
    if graph.of(Select):
        notes.append(TIES)
    if parsed.approximate:
        notes.append(f"approximate ({parsed.approximate}): spikes may differ from the model's")
    return Artifact(Path(path), "onnx", size, tuple(notes), {"opset": parsed.opset, "nodes": nodes})
