"""A model or an artefact against a chip's budget: lowered to NIR, since that is the network that would be placed."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stdeploy import workflow
from stdeploy.chips import Budget, Chip, judge, measure_network, read_network
from stdeploy.energy.synaptic import synapses
from stdeploy.errors import UserError
from stdeploy.graph import Graph, ops


@dataclass(frozen=True)
class ModelPart:
    """The model without what NIR adds: `layers` of Linear and Conv, with their synapses over all positions."""

    neurons: int
    neuron_layers: int
    layers: dict[str, dict[str, int]]

    @property
    def synapses(self) -> int:
        """Nonzero weights at every position where they read inside the map."""
        return sum(layer["synapses"] for layer in self.layers.values())


@dataclass(frozen=True)
class Placement:
    """The budget of the NIR network; `model` None: an artefact, which does not say it."""

    budget: Budget
    model: ModelPart | None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        model = None
        if self.model is not None:
            model = {**vars(self.model), "synapses": self.model.synapses}
        return {**self.budget.to_dict(), "model": model}


def place(path: Path, chip: Chip, options: workflow.SourceOptions | None = None) -> Placement:
    """Count a .nir file, or what a checkpoint or graph becomes in NIR; UnsupportedError where it cannot."""
    if not path.is_file():
        raise UserError(f"{path} is a folder" if path.is_dir() else f"{path} does not exist")
    if path.suffix == ".onnx":
        raise UserError(
            f"{path}: an ONNX file has no neurons to place", hint="give the checkpoint, the graph or its .nir"
        )
    if path.suffix == ".nir":
        return Placement(judge(chip, measure_network(read_network(path))), None)
    source = workflow.open_source(path, options)
    lowered = workflow.lower(source.graph, "nir")
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / f"{path.stem}.nir"
        workflow.export(source, lowered, written)
        network = read_network(written)
    return Placement(judge(chip, measure_network(network)), model_part(lowered.graph))


def model_part(graph: Graph) -> ModelPart:
    """Neurons, and the synapses of every Linear and Conv."""
    layers = {}
    for node in graph:
        if isinstance(node.op, ops.Linear | ops.Conv):
            found = synapses(node, graph).constants
            layers[node.name] = {"synapses": found["connections"], "weights": found["nonzero_weights"]}
    return ModelPart(sum(math.prod(n.value.shape) for n in graph.neurons), len(graph.neurons), layers)
