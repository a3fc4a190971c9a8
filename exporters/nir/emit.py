"""Plan to NIR file: node classes, dtypes, thresholds and metadata."""

from __future__ import annotations

import io
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np

from stdeploy.exporters.nir.dialect import Rules
from stdeploy.exporters.nir.lower import Lowering
from stdeploy.exporters.nir.plan import INPUT, OUTPUT, ConvNode, LifNode, PlanNode, PoolNode
from stdeploy.files import atomic_write
from stdeploy.graph import ops
from stdeploy.graph.weight import Array

METADATA_KEY = "stdeploy"
_PAGE_BYTES = 512


def to_nir(low: Lowering) -> Any:
    """The nir.NIRGraph, type-checked by nir where the dialect passes that."""
    nodes = {INPUT: nir.Input({"input": np.array(low.input_shape)})}
    nodes |= {name: _node(node, low.rules) for name, node in low.plan.nodes.items()}
    nodes[OUTPUT] = nir.Output({"output": np.array(low.output_shape)})
    metadata = {METADATA_KEY: json.dumps(describe(low), default=_plain)}
    return nir.NIRGraph(nodes, list(low.plan.edges), metadata=metadata, type_check=low.rules.type_check)


def write(graph: Any, path: Path) -> int:
    """Write the file whole or not at all; its size in bytes."""
    with io.BytesIO() as plain, io.BytesIO() as packed, atomic_write(path) as temporary:
        nir.write(plain, graph, compression=None)
        # In memory first: HDF5 that cannot write (a full disk) fails again when it closes, and then crashes.
        with h5py.File(plain, "r") as source, h5py.File(packed, "w", libver="v110") as target:
            _repack(source, target, list(graph.nodes))
        temporary.write_bytes(packed.getvalue())
    return os.stat(path).st_size


def _repack(source: Any, target: Any, order: list[str]) -> None:
    """Copy groups and datasets, arrays above a page compressed, nodes in `order`.

    nir.write chunks every array under HDF5's first chunk index, about 2.5 kB each: most of a small network's file.
    nirtorch looks at a node again and again until its inputs exist, so nodes sorted by name, as HDF5 does it, load
    in a time that grows with the square of their number; those that come after their inputs are looked at once.
    """
    place = {name: i for i, name in enumerate(order)}
    for name, item in sorted(source.items(), key=lambda pair: place.get(pair[0], -1)):
        if isinstance(item, h5py.Group):
            _repack(item, target.create_group(name, track_order=name == "nodes"), order)
            continue
        packed = item.ndim > 0 and item.dtype.kind in "fiu" and item.nbytes > _PAGE_BYTES
        how = {"chunks": item.shape, "compression": "gzip", "shuffle": True} if packed else {}
        target.create_dataset(name, data=item[()], dtype=item.dtype, **how)


def describe(low: Lowering) -> dict[str, Any]:
    """What a user of the file has to know: time, input and output contract, where each neuron layer is."""
    graph, plan = low.graph, low.plan
    (source,), (sink,) = graph.inputs, graph.outputs
    shapes = {n.name: list(n.value.shape) for n in graph.neurons}
    layout = sink.op.layout if isinstance(sink.op, ops.Output) else "B"
    label = sink.op.label if isinstance(sink.op, ops.Output) else sink.name
    return {
        **graph.metadata,
        "dialect": f"{low.dialect.name} {low.dialect.version}",
        "dialect_rules": asdict(low.rules),
        "proven_in": [reader.name for reader in low.dialect.readers],
        "refused_by": dict(low.dialect.refused),
        "steps": graph.steps,
        "dt": low.rules.dt,
        "input": {
            "layout": source.op.layout if isinstance(source.op, ops.Input) else "B",
            "shape": list(source.value.shape),
            "drive": "the same input at every step"
            if source.value.time == "static"
            else "one input per step",
        },
        "output": {
            "label": label,
            "layout": layout,
            "shape": list(sink.value.shape),
            "over_steps": low.readout or "each step",
        },
        "neurons": {
            name: {
                "shape": shapes[name],
                "parts": [
                    {"node": p.node, "channels": None if p.channels is None else p.channels.tolist()}
                    for p in parts
                ],
            }
            for name, parts in plan.neurons.items()
        },
        "roles": {name: role for name, role in plan.roles.items() if role != "model"},
        "counts": plan.counts(),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return value.tolist() if isinstance(value, np.ndarray) else str(value)


def _node(node: PlanNode, rules: Rules) -> Any:
    if isinstance(node, ConvNode):
        return nir.Conv2d(
            node.in_shape[1:],
            node.weight.astype(np.float32),
            node.stride,
            node.padding,
            node.dilation,
            node.groups,
            node.bias.astype(np.float32),
        )
    if isinstance(node, PoolNode):
        return nir.AvgPool2d(np.array(node.kernel), np.array(node.stride), np.array(node.padding))
    return _lif(node, rules)


def _lif(node: LifNode, rules: Rules) -> Any:
    def full(value: float) -> Array:
        return np.full(node.shape, value, dtype=np.float32)

    # Readers compare with > (snnTorch, Norse) or >= (SpikingJelly); the float below the threshold suits both.
    level = np.float32(node.threshold)
    below = float(np.nextafter(level, np.float32(0)) if rules.nextafter else level)
    if node.memoryless and rules.threshold_node == "nir.Threshold":
        return nir.Threshold(full(below))
    # float64: SpikingJelly refuses a memoryless unit's tau once float32 has rounded it to dt.
    steps = np.asarray(node.tau, dtype=np.float64).reshape(-1, 1, 1)
    tau = np.broadcast_to(steps * rules.dt, node.shape).copy()
    return nir.LIF(tau=tau, r=full(1), v_leak=full(0), v_threshold=full(below), v_reset=full(0))
