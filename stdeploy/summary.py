"""What a network consists of: layers, weights, neurons. The content of `stdeploy inspect`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stdeploy.graph import Graph, Node
from stdeploy.graph.ops import Conv, Linear, Neuron
from stdeploy.graph.validate import parameters
from stdeploy.graph.weight import Array

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Layer:
    """One node; `rows_kept` of `rows` output channels have a nonzero weight, likewise columns (inputs)."""

    name: str
    op: str
    shape: tuple[int, ...]
    time: str
    domain: str
    params: int
    nnz: int
    rows: int | None = None
    rows_kept: int | None = None
    columns: int | None = None
    columns_kept: int | None = None

    @property
    def density(self) -> float | None:
        return self.nnz / self.params if self.params else None


@dataclass(frozen=True, slots=True)
class NeuronLayer:
    """One neuron layer; ranges over its channels (equal ends where the layer has one value)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    tau: tuple[float, float] | None
    v_threshold: tuple[float, float]
    v_reset: tuple[float, float] | None
    decay_input: bool


@dataclass(frozen=True)
class Summary:
    """Layers and neurons of a graph; `params` counts weights, biases, affines and neurons' parameters."""

    steps: int
    layers: tuple[Layer, ...]
    neurons: tuple[NeuronLayer, ...]

    @property
    def params(self) -> int:
        return sum(layer.params for layer in self.layers)

    @property
    def nnz(self) -> int:
        return sum(layer.nnz for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"schema_version": SCHEMA_VERSION, "params": self.params, "nnz": self.nnz, **asdict(self)}


def summarise(graph: Graph) -> Summary:
    """Layers and neurons of `graph`, in its order."""
    neurons = tuple(_neuron(node, node.op) for node in graph if isinstance(node.op, Neuron))
    return Summary(graph.steps, tuple(_layer(node) for node in graph), neurons)


def _layer(node: Node) -> Layer:
    op = node.op
    arrays = parameters(node)
    params = sum(array.size for _, array in arrays)
    nnz = sum(int(np.count_nonzero(array)) for _, array in arrays)
    value = node.value
    common = (node.name, node.kind, value.shape, value.time, str(value.domain))
    if not isinstance(op, Linear | Conv):
        return Layer(*common, params, nnz)
    weight = op.weight
    if weight.is_csr:
        params += weight.size - (weight.data.size if weight.data is not None else 0)
    rows, columns = weight.zero_rows(), weight.zero_columns()
    return Layer(
        *common,
        params,
        nnz,
        rows.size,
        int(np.count_nonzero(~rows)),
        columns.size,
        int(np.count_nonzero(~columns)),
    )


def _neuron(node: Node, op: Neuron) -> NeuronLayer:
    return NeuronLayer(
        node.name,
        op.kind,
        node.value.shape,
        _range(op.tau),
        _range(op.v_threshold) or (0.0, 0.0),
        _range(op.v_reset),
        op.decay_input,
    )


def _range(array: Array | None) -> tuple[float, float] | None:
    return None if array is None else (float(array.min()), float(array.max()))
