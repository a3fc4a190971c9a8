"""The ONNX model around the lowered nodes: inputs, outputs, metadata, and the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

import stdeploy
from stdeploy.errors import UserError
from stdeploy.exporters.onnx.check import Options
from stdeploy.exporters.onnx.layout import Lowered
from stdeploy.exporters.onnx.lower import Lowering, by_step
from stdeploy.files import atomic_write
from stdeploy.graph.execution import leading
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.ops import Input, Output

IR_VERSIONS = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10}
"""The oldest file format that has each operator set, so that older runtimes read it too."""

PROTOBUF_LIMIT = 2**31 - 1
SPIKES = "spikes:"


def build_model(graph: Graph, options: Options) -> onnx.ModelProto:
    """The graph as a ModelProto; batch size free, one call = T steps from reset membranes."""
    low = Lowering(graph, options)
    low.run()
    em, input_node = low.emitter, graph.inputs[0]
    spikes = [_spike_output(low, node) for node in graph.neurons] if options.spikes else []
    outputs = [*(_named_output(low, node) for node in graph.outputs), *spikes]
    op = input_node.op
    if not isinstance(op, Input):
        raise TypeError(f"{input_node.name} is not an Input")
    dims = _dims(op.layout, graph.steps, op.shape)
    onnx_graph = helper.make_graph(
        em.nodes,
        str(graph.metadata.get("model") or "stdeploy"),
        [helper.make_tensor_value_info(input_node.name, TensorProto.FLOAT, dims)],
        outputs,
        list(em.initializers.values()),
        sparse_initializer=list(em.sparse_initializers.values()),
    )
    model = helper.make_model(
        onnx_graph,
        opset_imports=[helper.make_opsetid("", options.opset)],
        ir_version=IR_VERSIONS[options.opset],
        producer_name="stdeploy",
        producer_version=stdeploy.__version__,
    )
    props = {
        **metadata(graph, low, op),
        **({"approximate": options.approximate} if options.approximate else {}),
    }
    helper.set_model_props(model, {k: _text(v) for k, v in props.items()})
    return model


def _dims(layout: str, steps: int, shape: tuple[int, ...]) -> list[str | int]:
    return [*leading(layout, "B", steps), *shape]


def _named_output(low: Lowering, node: Node) -> onnx.ValueInfoProto:
    """Give the tensor the Output's label; one that is an input or another output gets an Identity."""
    op, em = node.op, low.emitter
    if not isinstance(op, Output):
        raise TypeError(f"{node.name} is not an Output")
    tensor = low.outputs[op.label]
    shared = [label for label, name in low.outputs.items() if name == tensor]
    if tensor == low.graph.inputs[0].name or len(shared) > 1:
        em.nodes.append(helper.make_node("Identity", [tensor], [op.label], name=f"{node.name}/identity"))
    else:
        em.rename(tensor, op.label)
    return helper.make_tensor_value_info(
        op.label, TensorProto.FLOAT, _dims(op.layout, low.graph.steps, _returned_shape(op, node))
    )


def _returned_shape(op: Output, node: Node) -> tuple[int, ...]:
    """The value's shape in the order in which the model returns its axes."""
    return tuple(node.value.shape[a] for a in op.order) or node.value.shape


def _spike_output(low: Lowering, node: Node) -> onnx.ValueInfoProto:
    """`spikes:<neuron>`, [T, B, *shape], uint8."""
    name = f"{SPIKES}{node.name}"
    tensor = low.layouts.read(low.values[node.name], "first", name)
    tensor = by_step(low, tensor, node.value.shape, "TB", name)
    low.emitter.op("Cast", [tensor], f"{name}/cast", output=name, to=TensorProto.UINT8)
    dims = _dims("TB", low.graph.steps, node.value.shape)
    return helper.make_tensor_value_info(name, TensorProto.UINT8, dims)


def metadata(graph: Graph, low: Lowering, op: Input) -> dict[str, Any]:
    """What the file says about itself, by key."""
    neurons = {node.name: _neuron_entry(low.values[node.name]) for node in graph.neurons}
    contract = {
        "name": graph.inputs[0].name,
        "layout": op.layout,
        "shape": list(op.shape),
        "axes": list(op.axes),
        "dtype": "float32",
    }
    outputs = {
        node.op.label: {"layout": node.op.layout, "shape": list(_returned_shape(node.op, node))}
        for node in graph.outputs
        if isinstance(node.op, Output)
    }
    selections = {
        name: {"tensor": tensor, "steps": graph.steps if step else 1, "count": graph[name].value.shape[1]}
        for name, (tensor, step) in low.selections.tensors.items()
    }
    known = {key: value for key, value in graph.metadata.items() if value is not None}
    return {
        **known,
        "stdeploy_version": stdeploy.__version__,
        "steps": graph.steps,
        "input": contract,
        "outputs": outputs,
        "neurons": neurons,
        **({"selections": selections} if selections else {}),
        "state": "every call starts from reset membranes",
    }


def _neuron_entry(x: Lowered) -> dict[str, Any]:
    """Where a layer's spikes are: tensor [lead, *dims] in a form of layout.py, and the layer's shape."""
    form, shape = x.native, list(x.value.shape)
    dims = {"first": shape, "last": shape[:1]}.get(form, list(x.sizes))
    return {"tensor": x.tensors[form], "form": form, "dims": dims, "shape": shape}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def serialise(model: onnx.ModelProto) -> bytes:
    """Bytes of the model; UserError above protobuf's 2 GB, which a single ONNX file cannot exceed."""
    size = model.ByteSize()
    if size > PROTOBUF_LIMIT:
        raise UserError(
            f"the model has {size / 2**30:.2f} GiB; a single ONNX file holds at most 2 GiB",
            hint="compress the model further before exporting it",
        )
    return bytes(model.SerializeToString())


def write(data: bytes, path: Path) -> int:
    """Write the bytes whole or not at all; returns their number."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)
    return len(data)
