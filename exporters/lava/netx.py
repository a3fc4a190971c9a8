"""lava-dl's network exchange (netx): one HDF5 file of convolutions and dense layers in a row, each with its neurons.

The format is lava-dl 0.6.0's netx/hdf5.py. Integers throughout: with s integers per unit of the membrane

    weight = s unit(input) w, bias = s b (mantissa of exponent 6), vThMant = ceil(s threshold) - 1, vDecay = 4096 / tau

An input event is fed as it is (`input_message_bits` for counts). A token is a pixel of a one-column map, a token Linear a
1x1 convolution.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stdeploy.errors import Unsupported
from stdeploy.exporters.lava.fixed import BIAS_MANTISSA, LEAK_UNIT, SUM, THRESHOLD, WEIGHT
from stdeploy.exporters.lava.neuron import dynamics
from stdeploy.exporters.lava.plan import below
from stdeploy.exporters.refusal import Refusal
from stdeploy.files import atomic_write
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.weight import Array

SUFFIX = ".net"
METADATA = "stdeploy"
APPROXIMATE = "netx: 8-bit weights, 17-bit thresholds"

_SKIPPED = (ops.Scale, ops.Flatten, ops.Readout)
_REASONS: dict[type[ops.Op], str] = {
    ops.Add: "netx is a row of layers: it has no residual",
    ops.Mul: "netx is a row of layers: it has no product",
    ops.MatMul: "netx has no attention",
    ops.MaxPool: "netx's reader has no pooling",
    ops.AvgPool: "netx's reader has no pooling and no mean",
    ops.Reduce: "netx's reader has no pooling and no mean",
    ops.Concat: "netx's reader has no concatenation",
}
_HINT = "--format processes takes it"


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution (rank 4) or dense layer (rank 2) in integers, with the neuron behind it."""

    node: Node
    neuron: Node
    weight: Array
    bias: Array
    threshold: int
    decay: int
    shape: tuple[int, ...]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    flattened: bool


def check_netx(graph: Graph) -> list[Unsupported]:
    """Everything that keeps `graph` from being a netx file."""
    return _walk(graph)[1]


def write_netx(graph: Graph, path: Path) -> int:
    """Write the file whole or not at all; its size in bytes."""
    layers, _ = _walk(graph)
    with io.BytesIO() as packed, atomic_write(path) as temporary:
        with h5py.File(packed, "w") as file:
            _emit(graph, layers, file)
        temporary.write_bytes(packed.getvalue())
    return path.stat().st_size


def _walk(graph: Graph) -> tuple[list[Layer], list[Unsupported]]:
    refused: list[Unsupported] = []

    def refuse(node: Node, reason: str, hint: str | None = _HINT) -> None:
        refused.append(Unsupported(node.source or node.name, node.kind, reason, hint))

    for kind, nodes in (("Input", graph.inputs), ("Output", graph.outputs)):
        if len(nodes) != 1:
            refused.append(Unsupported("", kind, f"the graph has {len(nodes)}; netx takes one"))
    users = graph.users()
    layers: list[Layer] = []
    for node in graph:
        if type(node.op) in _REASONS:
            refuse(node, _REASONS[type(node.op)])
        elif isinstance(node.op, ops.Input):
            if node.value.domain.maximum is None:
                refuse(node, "the input is real; netx's layers are fed events")
        elif isinstance(node.op, ops.Linear | ops.Conv):
            readers = users[node.name]
            if len(readers) != 1 or not isinstance(readers[0].op, ops.Neuron):
                refuse(node, "no neuron follows it: every layer of netx has one")
                continue
            try:
                layers.append(_layer(graph, node, readers[0]))
            except Refusal as refusal:
                refuse(node, refusal.reason, refusal.hint or _HINT)
        elif isinstance(node.op, ops.Neuron):
            if not isinstance(graph[node.inputs[0]].op, ops.Linear | ops.Conv):
                refuse(node, "no layer feeds it: every neuron of netx belongs to one")
        elif not isinstance(node.op, ops.Output | ops.Scale | ops.Flatten | ops.Readout):
            refuse(node, "netx has no such layer")
        if len(users[node.name]) > 1:
            refuse(node, "several nodes read it: netx is a row of layers")
    if not layers and not refused:
        refused.append(Unsupported("", "graph", "it has no layer"))
    return layers, refused


def _layer(graph: Graph, node: Node, neuron: Node) -> Layer:
    op, op_neuron = node.op, neuron.op
    if not isinstance(op, ops.Linear | ops.Conv) or not isinstance(op_neuron, ops.Neuron):
        raise TypeError(f"{node.name} is no layer")
    if op.bias is not None and op.bias.ndim == 2:
        raise Refusal("a bias per step: netx's are constant")
    before = _source(graph, node)
    inputs = graph[node.inputs[0]].value
    domain = inputs.domain
    if domain.maximum is None:
        raise Refusal("its input is real; netx's layers are fed events")
    rules = dynamics(op_neuron, op.weight.shape[0], 1.0)
    if np.unique(rules.leak).size > 1:
        raise Refusal("its neurons have several tau: netx has one for a layer")
    gain = np.ones(op.weight.shape[0]) if rules.gain is None else rules.gain
    weight = op.weight.array().astype(np.float64) * gain.reshape(-1, *([1] * (len(op.weight.shape) - 1)))
    bias = np.zeros(len(gain)) if op.bias is None else op.bias.astype(np.float64) * gain
    dense = isinstance(op, ops.Linear) and len(inputs.shape) == 1
    if isinstance(op, ops.Linear) and not dense:
        weight = weight[:, :, None, None]
    step = _step(weight, bias, rules.threshold, domain.scale, domain.maximum)
    scale = step / domain.scale
    integers = _integers(weight, step)
    if not integers.any():
        raise Refusal("all its weights round to zero in 8 bits")
    conv = op if isinstance(op, ops.Conv) else None
    if not dense:
        integers = integers.reshape(*integers.shape, *([1] * (4 - integers.ndim)))
    return Layer(
        node,
        neuron,
        integers,
        np.round(bias * scale).astype(np.int64),
        math.ceil(below(rules.threshold) * scale) - 1,
        round(float(rules.leak[0]) * LEAK_UNIT),
        (*neuron.value.shape, 1, 1)[:3] if not dense else neuron.value.shape,
        _pair(conv.stride if conv else (), 1),
        _pair(conv.padding if conv else (), 0),
        _pair(conv.dilation if conv else (), 1),
        conv.groups if conv else 1,
        any(isinstance(n.op, ops.Flatten) for n in before),
    )


def _source(graph: Graph, node: Node) -> list[Node]:
    """What stands between a layer and the neuron or input before it."""
    between, at = [], graph[node.inputs[0]]
    while isinstance(at.op, _SKIPPED):
        between.append(at)
        at = graph[at.inputs[0]]
    if any(isinstance(n.op, ops.Readout) for n in between):
        raise Refusal("it follows the readout over the steps")
    return between


def _step(weight: Array, bias: Array, threshold: float, unit: float, most: int) -> float:
    """Integers per unit of the weight: 8 bits, the sum's 18, the threshold's 17 and the bias's 13 bound it."""
    largest = float(np.abs(weight).max(initial=0.0))
    rows = float(np.abs(weight).reshape(len(weight), -1).sum(1).max()) * most
    bounds = [WEIGHT / largest] if largest else [1.0]
    bounds += [(SUM - 1) / (1.01 * rows)] if rows else []
    bounds += [THRESHOLD * unit / threshold]
    if bias.any():
        bounds.append(BIAS_MANTISSA * unit / float(np.abs(bias).max()))
    return min(bounds)


def _integers(weight: Array, step: float) -> Array:
    """Even where the reader takes the signs as mixed (zeros beside negative weights too)."""
    if np.all(weight >= 0) or np.all(weight < 0):
        return np.clip(np.round(weight * step), -255, 255).astype(np.int64)
    return 2 * np.clip(np.round(weight * step / 2), -128, 127).astype(np.int64)


def _pair(values: tuple[int, ...], fill: int) -> tuple[int, int]:
    first, second = (*values, fill, fill)[:2]
    return first, second


def _emit(graph: Graph, layers: list[Layer], file: Any) -> None:
    (source,), (sink,) = graph.inputs, graph.outputs
    groups = file.create_group("layer")
    first = groups.create_group("0")
    first["type"] = np.array([b"input"])
    first["shape"] = np.array((*source.value.shape, 1, 1)[: 3 if layers[0].weight.ndim == 4 else 1])
    for layer in layers:
        if layer.flattened:
            groups.create_group(str(len(groups)))["type"] = np.array([b"flatten"])
        _emit_layer(groups.create_group(str(len(groups))), layer)
    out = sink.op if isinstance(sink.op, ops.Output) else ops.Output()
    readouts = [n.op.mode for n in graph.of(ops.Readout) if isinstance(n.op, ops.Readout)]
    file.attrs[METADATA] = json.dumps(
        {
            **graph.metadata,
            "approximate": APPROXIMATE,
            "steps": graph.steps,
            "input": {
                "layout": source.op.layout if isinstance(source.op, ops.Input) else "B",
                "shape": list(source.value.shape),
                "unit": source.value.domain.scale,
                "message_bits": 0 if (source.value.domain.maximum or 0) <= 1 else 8,
            },
            "output": {
                "label": out.label,
                "layout": out.layout,
                "shape": list(sink.value.shape),
                "over_steps": readouts[0] if readouts else "each step",
                "scale": sink.value.domain.scale * (graph.steps if readouts == ["mean"] else 1),
            },
            "reset_interval": graph.steps,
            "reset_offset": 1,
            "neurons": {la.neuron.name: list(la.neuron.value.shape) for la in layers},
        },
        default=lambda item: item.item() if isinstance(item, np.generic) else str(item),
    )


def _emit_layer(group: Any, layer: Layer) -> None:
    dense = layer.weight.ndim == 2
    group["type"] = np.array([b"dense" if dense else b"conv"])
    group["shape"] = np.array(layer.shape)
    group.create_dataset("weight", data=layer.weight.astype(np.float32), compression="gzip")
    group["bias"] = layer.bias.astype(np.float32)
    if dense:
        group["inFeatures"], group["outFeatures"] = layer.weight.shape[1], layer.weight.shape[0]
    else:
        for name in ("stride", "padding", "dilation"):
            group[name] = np.array(getattr(layer, name))
        group["groups"] = layer.groups
    neuron = group.create_group("neuron")
    neuron["type"] = np.array([b"CUBA"])
    neuron["iDecay"], neuron["vDecay"] = LEAK_UNIT, layer.decay
    neuron["vThMant"], neuron["refDelay"] = layer.threshold, 1
    neuron["gradedSpike"] = False
