"""What a NIR file consists of: nodes, neurons by role, synapses, depth, bytes (`stdeploy inspect x.nir`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import nir
import numpy as np

from stdeploy.energy.synaptic import synapses
from stdeploy.energy.windows import pool_windows
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node
from stdeploy.importers.nir import Survey

SCHEMA_VERSION = 1

MEMORYLESS_TAU = 1.001
"""Steps up to which a neuron keeps nothing of its membrane that could matter: a unit, not a layer."""

_SPIKING = (nir.LIF, nir.IF, nir.CubaLIF, nir.Threshold)


@dataclass(frozen=True, slots=True)
class Depth:
    """Longest chains of spiking nodes: memoryless ones from one layer with memory to the next (or from the input,
    or to the output), memoryless ones and layers on one path from input to output."""

    units_between_layers: int
    units: int
    layers: int


@dataclass(frozen=True, slots=True)
class StoredNode:
    """What one node of the file takes on disk."""

    name: str
    type: str
    role: str
    neurons: int
    weights: int
    nonzero_weights: int
    size_bytes: int


@dataclass(frozen=True)
class NirSummary:
    """Counts of one file. `synapses`: connections with a nonzero weight, each at every position where it reads;
    `pool_connections`: those of pools; None where shapes are not known. `neurons` by role."""

    file: str
    size_bytes: int
    nir_version: str
    contract: dict[str, Any] | None
    types: dict[str, int]
    edges: int
    neurons: dict[str, int]
    synapses: int | None
    pool_connections: int | None
    weights: int
    nonzero_weights: int
    depth: Depth | None
    nodes: tuple[StoredNode, ...]
    refused: tuple[str, ...]

    @property
    def structure_bytes(self) -> int:
        """Bytes of the file beside its arrays: HDF5's tables, names, metadata."""
        return self.size_bytes - sum(node.size_bytes for node in self.nodes)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"schema_version": SCHEMA_VERSION, "structure_bytes": self.structure_bytes, **asdict(self)}


CONTRACT = ("stdeploy_version", "dialect", "source", "source_sha256", "steps", "dt", "input", "output")
"""Entries of stdeploy's metadata that a summary repeats."""


def summarise_nir(found: Survey) -> NirSummary:
    """Count a file that `stdeploy.importers.nir.survey` looked into."""
    document, network, graph = found.document, found.network, found.graph
    contract = document.contract
    roles = {} if contract is None else contract.roles
    nodes = tuple(_stored(name, node, roles, document.stored) for name, node in network.nodes.items())
    connections, pooled = _connections(found)
    neurons: Counter[str] = Counter()
    for node in nodes:
        if node.neurons:
            neurons[node.role] += node.neurons
    return NirSummary(
        file=str(document.path),
        size_bytes=document.path.stat().st_size,
        nir_version=document.version,
        contract=None
        if contract is None
        else {k: contract.metadata[k] for k in CONTRACT if k in contract.metadata},
        types=dict(Counter(type(node).__name__ for node in network.nodes.values()).most_common()),
        edges=network.edges,
        neurons=dict(neurons),
        synapses=connections,
        pool_connections=pooled,
        weights=sum(node.weights for node in nodes),
        nonzero_weights=sum(node.nonzero_weights for node in nodes),
        depth=depth(graph) if graph is not None and found.timed and not found.refused else None,
        nodes=nodes,
        refused=tuple(str(item) for item in found.refused),
    )


def _stored(name: str, node: Any, roles: Mapping[str, str], stored: Mapping[str, int]) -> StoredNode:
    spiking = isinstance(node, _SPIKING)
    weight = np.asarray(getattr(node, "weight", ()))
    level = node.threshold if isinstance(node, nir.Threshold) else getattr(node, "v_threshold", ())
    return StoredNode(
        name=name,
        type=type(node).__name__,
        role=roles.get(name, "model"),
        neurons=int(np.size(level)) if spiking else 0,
        weights=int(weight.size),
        nonzero_weights=int(np.count_nonzero(weight)),
        size_bytes=stored.get(name, 0),
    )


def _connections(found: Survey) -> tuple[int, int] | tuple[None, None]:
    """Nonzero connections of weights and those of pools, at every position."""
    graph, total = found.graph, Counter[bool]()
    if graph is None:
        return None, None
    for node in graph:
        pool = isinstance(found.network.nodes.get(node.source), nir.AvgPool2d | nir.SumPool2d)
        if isinstance(node.op, ops.Linear | ops.Conv):
            total[pool] += synapses(node, graph).constants["connections"]
        elif isinstance(node.op, ops.AvgPool):
            shape = graph[node.inputs[0]].value.shape
            total[True] += shape[0] * pool_windows(node, shape[1:]).pairs
    return total[False], total[True]


def depth(graph: Graph) -> Depth:
    """Longest chains of memoryless units and of neuron layers with memory."""
    since: dict[str, int] = {}
    units: dict[str, int] = {}
    layers: dict[str, int] = {}
    between = 0
    for node in graph:
        a, b, c = (max((d[n] for n in node.inputs), default=0) for d in (since, units, layers))
        if isinstance(node.op, ops.Neuron):
            unit = is_memoryless(node)
            a, b, c = (a + 1, b + 1, c) if unit else (0, b, c + 1)
        since[node.name], units[node.name], layers[node.name] = a, b, c
        between = max(between, a)
    return Depth(between, max(units.values(), default=0), max(layers.values(), default=0))


def is_memoryless(node: Node) -> bool:
    """Whether a neuron keeps nothing from step to step."""
    op = node.op
    return isinstance(op, ops.Neuron) and op.tau is not None and float(np.max(op.tau)) <= MEMORYLESS_TAU
