"""A NIR network without refusals, node by node into a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import nir
import numpy as np

from stdeploy import __version__
from stdeploy.errors import UserError
from stdeploy.files import sha256
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, GraphBuilder, GraphError
from stdeploy.importers.nir.branches import merge
from stdeploy.importers.nir.contract import Contract
from stdeploy.importers.nir.document import Document
from stdeploy.importers.nir.network import Network
from stdeploy.importers.nir.nodes import AXES, BUILD, Build

Layout = Literal["B", "BT", "TB"]


@dataclass(frozen=True)
class Timing:
    """Steps, length of a step in the file's unit of time, and the order of the input's outer axes."""

    steps: int
    dt: float
    layout: Layout


def assemble(
    document: Document, network: Network, timing: Timing, passed: frozenset[str] = frozenset()
) -> Graph:
    """The graph, not validated; GraphError or UserError where parameters or the contract do not fit.

    Nodes in `passed` hand on what they read: a graph to look at, not to run.
    """
    contract = document.contract
    layers = {} if contract is None else contract.parts
    named: dict[str, str] = {}
    for layer, parts in layers.items():
        absent = sorted({part.node for part in parts} - set(network.nodes))
        if absent:
            raise UserError(f"its metadata names nodes that it does not have: {', '.join(absent)}")
        if len(parts) > 1 or parts[0].channels is not None:
            network = merge(network, layer, parts)
        else:
            named[parts[0].node] = layer
    b = Build(GraphBuilder(timing.steps, _metadata(document)), timing.dt, contract is not None, named)
    _nodes(b, network, timing, contract, passed)
    graph = b.builder.build()
    kinds = {node.name: node.kind for node in graph}
    lost = [layer for layer in layers if kinds.get(layer) != "Neuron"]
    if lost:
        raise UserError(f"its metadata calls nodes neuron layers that are none: {', '.join(lost)}")
    if contract is not None:
        _as_stated(graph, contract)
    return graph


def _as_stated(graph: Graph, contract: Contract) -> None:
    """UserError where the contract gives the input, a layer or the output another shape than the network."""
    stated = {**contract.shapes, **{node.name: contract.input["shape"] for node in graph.inputs}}
    stated |= {node.name: contract.output["shape"] for node in graph.outputs}
    for name, shape in stated.items():
        found = graph[name].value.shape
        if _map(shape) != _map(found):
            raise UserError(f"its metadata says that {name} has shape {list(shape)}; it has {list(found)}")


def _map(shape: Sequence[int]) -> tuple[int, ...]:
    """As the file holds it: vectors (C, 1, 1), tokens (C, N, 1)."""
    return (*shape, 1, 1)[: max(3, len(shape))]


def _nodes(
    b: Build, network: Network, timing: Timing, contract: Contract | None, passed: frozenset[str]
) -> None:
    values: dict[str, str] = {}
    sums: dict[tuple[str, ...], str] = {}
    inputs, outputs = network.inputs, network.outputs
    for name, node in network.nodes.items():
        try:
            if name in inputs:
                values[name] = _input(b, name, node, timing.layout)
                continue
            terms = tuple(values[s] for s in network.sources[name])
            x = sums[terms] = sums[terms] if terms in sums else _sum(b, name, terms)
            if name in outputs:
                _output(b, name, node, x, timing, contract)
            elif isinstance(node, nir.Input | nir.Output):  # of a nested graph
                values[name] = x
            elif name in passed:
                values[name] = b.add(ops.Scale(1.0), x, node=name)
            else:
                values[name] = BUILD[type(node)](b, name, node, x)
        except GraphError:
            raise  # names its node already
        except ValueError as error:
            raise UserError(f"{name}: {type(node).__name__}: {error}") from error


def _shape(stated: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in np.atleast_1d(np.asarray(stated)))


def _input(b: Build, name: str, node: Any, layout: Layout) -> str:
    shape = _shape(node.input_type["input"])
    if len(shape) not in AXES or min(shape) < 1:
        raise ValueError(f"its shape is {list(shape)}; a graph takes one to three axes, channels first")
    return b.add(ops.Input(shape, AXES[len(shape)], layout), node=name)


def _sum(b: Build, name: str, values: tuple[str, ...]) -> str:
    """NIR adds what several edges bring to a node."""
    if not values:
        raise ValueError("nothing feeds it")
    total = values[0]
    for value in values[1:]:
        shapes = b.value(total).shape, b.value(value).shape
        if shapes[0] != shapes[1]:
            raise ValueError(f"it sums values of shapes {list(shapes[0])} and {list(shapes[1])}")
        total = b.add(ops.Add(), total, value, node=name, part="added")
    return total


def _output(b: Build, name: str, node: Any, x: str, timing: Timing, contract: Contract | None) -> None:
    shape = b.value(x).shape
    stated = node.output_type["output"]
    if stated is not None and _shape(stated) != shape:
        raise ValueError(f"its shape is {list(_shape(stated))}, what reaches it {list(shape)}")
    if contract is None:
        layout: Layout = "BT" if timing.layout == "B" else timing.layout
        b.add(ops.Output(name, layout if b.value(x).time == "step" else "B"), x, node=name)
        return
    said = contract.output
    if said["over_steps"] != "each step":
        x = b.add(ops.Readout(said["over_steps"]), x, node=name, part="readout")
    if len(said["shape"]) == 1 < len(shape):
        x = b.add(ops.Flatten(), x, node=name, part="flat")
    b.add(ops.Output(str(said["label"]), cast(Layout, said["layout"])), x, node=name)


def _metadata(document: Document) -> dict[str, Any]:
    told = {} if document.contract is None else document.contract.metadata
    kept = {key: told[key] for key in ("model", "compression") if told.get(key) is not None}
    origin = {f"original_{key}": told[key] for key in ("source", "source_sha256") if key in told}
    return {
        **kept,
        **origin,
        "dtype": "float32",
        "stdeploy_version": __version__,
        "source": document.path.name,
        "source_sha256": sha256(document.path),
    }
