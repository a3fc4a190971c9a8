"""One function per operator of the catalogue: graph node in, ONNX nodes out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import TensorProto

from stdeploy.exporters.onnx.attention import emit_matmul
from stdeploy.exporters.onnx.check import Options
from stdeploy.exporters.onnx.elementwise import emit_affine, emit_binary, emit_scale
from stdeploy.exporters.onnx.emitter import Emitter
from stdeploy.exporters.onnx.int8 import Int8, takes
from stdeploy.exporters.onnx.layout import Form, Layouts, Lowered
from stdeploy.exporters.onnx.neuron import Fired, Stepper, emit_neuron, to_heads, to_real
from stdeploy.exporters.onnx.plan import Group, plan
from stdeploy.exporters.onnx.pool import emit_avgpool, emit_maxpool
from stdeploy.exporters.onnx.select import Selections
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.weight import Array


class Lowering:
    """Emits the nodes of one graph in order; `values` holds what has been lowered, by node name."""

    def __init__(self, graph: Graph, options: Options) -> None:
        self.graph = graph
        self.options = options
        self.emitter = Emitter(options.opset, half=options.precision == "fp16", sparse=options.sparse)
        self.layouts = Layouts(self.emitter, graph.steps)
        self.int8 = Int8(self.layouts)
        self.plan = plan(graph)
        self.users = graph.users()
        self.values: dict[str, Lowered] = {}
        self.outputs: dict[str, str] = {}
        self.selections = Selections(self.layouts)
        self.grouped: dict[str, Lowered] = {}

    def run(self) -> None:
        """Lower every node; the input and the outputs keep their public names."""
        labels = [n.op.label for n in self.graph if isinstance(n.op, ops.Output)]
        for name in (self.graph.inputs[0].name, *labels):
            self.emitter.fresh(name)
        for node in self.graph:
            args = [self.values[name] for name in node.inputs]
            self.values[node.name] = EMIT[type(node.op)](self, node, node.op, args)

    def read(self, node: Node, x: Lowered, form: Form) -> str:
        """Tensor of `x` for `node`, repeated over the steps where the node's own value has steps."""
        return self.layouts.read(x, form, node.name, step=node.value.time == "step")

    def signed(self, node: Node, values: Array) -> Array:
        """A product's weights or biases, negated where the plan says so."""
        return -values if node.name in self.plan.negated else values

    def quantises(self, node: Node) -> bool:
        """Whether the product at `node` gets int8 weights."""
        if self.options.weights != "int8" or not node.inputs:
            return False
        return takes(node, self.graph[node.inputs[0]].value.domain)

    def wants_codes(self, node: Node) -> bool:
        """Whether a product reads the neuron's spikes as uint8."""
        return any(self.quantises(reader) for reader in self.users[node.name])

    def gemm(self, nodes: tuple[Node, ...], x: Lowered, form: Form, name: str) -> str:
        """The Linears (or pointwise Convs) at `nodes`, which read `x`, as one product; biases per step left out."""
        weights, biases = [], []
        for node in nodes:
            if not isinstance(node.op, ops.Linear | ops.Conv):
                raise TypeError(f"{node.name} is not a product")
            weights.append(self.signed(node, node.op.weight.array().reshape(node.op.weight.shape[:2])))
            bias = None if node.op.bias is None or node.op.bias.ndim == 2 else self.signed(node, node.op.bias)
            biases.append(bias)
        weight = np.concatenate(weights)
        given = any(b is not None for b in biases)
        parts = [np.zeros(len(w)) if b is None else b for b, w in zip(biases, weights, strict=True)]
        bias = np.concatenate(parts) if given else None
        if self.quantises(nodes[0]):
            return self.int8.gemm(self.int8.rows(x, form, name), weight, bias, name)
        inputs = [self.layouts.read(x, form, name), self.emitter.weight(weight, f"{name}.weight")]
        if bias is not None:
            inputs.append(self.emitter.constant(bias, f"{name}.bias"))
        return self.emitter.op("Gemm", inputs, name, transB=1)


def _input(low: Lowering, node: Node, op: ops.Input, args: list[Lowered]) -> Lowered:
    em, tensor = low.emitter, node.name
    low.layouts.batch = (tensor, 1 if op.layout == "TB" else 0)
    if em.real_type != TensorProto.FLOAT:
        tensor = em.op("Cast", [tensor], f"{node.name}/cast", to=em.real_type)
    if op.layout == "B":
        return Lowered(node.value, {"first": tensor})
    if op.layout == "BT" and low.graph.steps > 1:
        tensor = em.transpose(tensor, (1, 0, *range(2, len(op.shape) + 2)), node.name)
    return Lowered(node.value, {"first": em.reshape(tensor, (-1, *op.shape), node.name)})


def _constant(low: Lowering, node: Node, op: ops.Constant, args: list[Lowered]) -> Lowered:
    return Lowered(node.value, constant=op)


def _linear(low: Lowering, node: Node, op: ops.Linear | ops.Conv, args: list[Lowered]) -> Lowered:
    """Gemm over all positions of all steps; a bias per step is added behind it."""
    (x,) = args
    if node.name in low.plan.groups:
        return Lowered(node.value)  # its neuron emits it
    form: Form = "last" if len(node.value.shape) > 1 else "first"
    y = low.gemm((node,), x, form, node.name)
    if op.bias is not None and op.bias.ndim == 2:
        y = _step_bias(low, node, y, form, x, op.bias)
    return Lowered(node.value, {form: y})


def _step_bias(low: Lowering, node: Node, y: str, form: Form, x: Lowered, bias: Array | None) -> str:
    if bias is None:
        return y
    trailing = 0 if form == "last" else len(node.value.shape) - 1
    bias = low.signed(node, bias)
    terms = bias.reshape(*bias.shape, *([1] * trailing))
    return low.layouts.with_steps(y, form, node.value.shape, x.value.time == "static", terms, node.name)


def _conv(low: Lowering, node: Node, op: ops.Conv, args: list[Lowered]) -> Lowered:
    em, (x,) = low.emitter, args
    kernel = op.weight.shape[2:]
    pointwise = set(kernel) == {1} and set(op.stride) == {1} and not any(op.padding) and op.groups == 1
    if pointwise and (x.native == "last" or low.quantises(node)):
        return _linear(low, node, op, args)
    weight = low.signed(node, op.weight.array())
    bias = None if op.bias is None or op.bias.ndim == 2 else low.signed(node, op.bias)
    if low.quantises(node):
        return low.int8.conv(node, op, x, weight, bias)
    inputs = [low.layouts.read(x, "first", node.name), em.weight(weight, f"{node.name}.weight")]
    if bias is not None:
        inputs.append(em.constant(bias, f"{node.name}.bias"))
    y = em.op(
        "Conv",
        inputs,
        node.name,
        kernel_shape=list(kernel),
        strides=list(op.stride),
        pads=[*op.padding, *op.padding],
        dilations=list(op.dilation),
        group=op.groups,
    )
    if op.bias is not None and op.bias.ndim == 2:
        y = _step_bias(low, node, y, "first", x, op.bias)
    return Lowered(node.value, {"first": y})


def _neuron(low: Lowering, node: Node, op: ops.Neuron, args: list[Lowered]) -> Lowered:
    group = low.plan.groups.get(node.name)
    if group is not None:
        if node.name not in low.grouped:
            low.grouped.update(_group(low, group))
        return low.grouped[node.name]
    negated = bool({node.inputs[0]} & low.plan.negated)
    heads, real = low.plan.heads.get(node.name), not low.wants_codes(node)
    return emit_neuron(low.layouts, node, op, args[0], negated=negated, heads=heads, real=real)


def _group(low: Lowering, group: Group) -> dict[str, Lowered]:
    """Linears over one value as one Gemm, their neurons in one run of steps; spikes by neuron name."""
    first = group.linears[0]
    form: Form = "last" if len(first.value.shape) > 1 else "first"
    y = low.gemm(
        group.linears, low.values[first.inputs[0]], form, _shared_name([n.name for n in group.linears])
    )
    widths = [n.value.shape[0] for n in group.linears]
    value = replace(first.value, shape=(sum(widths), *first.value.shape[1:]))
    drive = Lowered(value, {form: y})
    negated = first.name in low.plan.negated
    real = not any(low.wants_codes(n) for n in group.neurons)
    stepper = Stepper(low.layouts, _shared_name([n.name for n in group.neurons]), drive, real=real)
    fired = stepper.run(group.unit, negated)
    return _members(low, group, fired, form, widths)


def _members(low: Lowering, group: Group, fired: Fired, form: Form, widths: list[int]) -> dict[str, Lowered]:
    """Each neuron's part of the group's spikes; equal heads are split once for all."""
    neurons, heads = group.neurons, [low.plan.heads.get(n.name) for n in group.neurons]
    em, name = low.emitter, f"{_shared_name([n.name for n in neurons])}/fired"
    alike = heads[0]
    if alike is not None and all(h == alike for h in heads):
        (h, d), n = alike, math.prod(neurons[0].value.shape[1:])
        parts = em.split(
            low.layouts.split_heads(fired.tensor, form, (h * len(neurons), n, d), name), len(neurons), 1, name
        )
        spikes = [replace(fired, tensor=part) for part in parts]
        return {
            node.name: Lowered(node.value, {"heads": to_real(low.layouts, node, part)}, sizes=(h, n, d))
            for node, part in zip(neurons, spikes, strict=True)
        }
    out = {}
    spikes = [replace(fired, tensor=part) for part in em.split(fired.tensor, widths, 1, name)]
    for node, part, split in zip(neurons, spikes, heads, strict=True):
        if split is None:
            out[node.name] = Lowered(node.value, {form: to_real(low.layouts, node, part)})
        else:
            sizes = (split[0], math.prod(node.value.shape[1:]), split[1])
            out[node.name] = to_heads(low.layouts, node, part, form, sizes)
    return out


def _shared_name(names: list[str]) -> str:
    """`block.attn.q_lif`, `block.attn.k_lif` as `block.attn.q_lif+k_lif`."""
    stem = names[0].rpartition(".")[0]
    same = stem and all(n.rpartition(".")[0] == stem for n in names)
    return "+".join([names[0], *(n.rpartition(".")[2] if same else n for n in names[1:])])


def _reduce(low: Lowering, node: Node, op: ops.Reduce, args: list[Lowered]) -> Lowered:
    em, (x,) = low.emitter, args
    kind, shape = "ReduceMean" if op.mean else "ReduceSum", x.value.shape
    if x.native == "last" and op.over == tuple(range(1, len(shape))):
        rows = em.reshape(x.tensors["last"], (-1, math.prod(shape[1:]), shape[0]), node.name)
        y = em.reduce(kind, rows, [1], False, node.name)
        return Lowered(node.value, {"last" if op.keepdims else "first": y})
    tensor = low.layouts.read(x, "first", node.name)
    if op.over == (1,) and len(shape) == 2 and _scaled_or_shifted(low, node):
        # OpenVINO 2026.4 takes numbers per channel behind [B, C, N] -> [B, C] as numbers per sample
        tensor = em.reshape(tensor, (-1, shape[0], 1, shape[1]), node.name)
        y = em.reduce(kind, tensor, [3] if op.keepdims else [2, 3], False, node.name)
        return Lowered(node.value, {"first": y})
    y = em.reduce(kind, tensor, [a + 1 for a in op.over], op.keepdims, node.name)
    return Lowered(node.value, {"first": y})


def _scaled_or_shifted(low: Lowering, node: Node) -> bool:
    """Whether a reader of `node` may turn into a product or sum with numbers per channel."""
    harmless = (ops.Linear, ops.Neuron, ops.Readout, ops.Output)
    return any(not isinstance(reader.op, harmless) for reader in low.graph if node.name in reader.inputs)


def _matmul(low: Lowering, node: Node, op: ops.MatMul, args: list[Lowered]) -> Lowered:
    a, b = args
    return emit_matmul(low.layouts, node, op, a, b, low.plan.factors.get(node.name))


def _scale(low: Lowering, node: Node, op: ops.Scale, args: list[Lowered]) -> Lowered:
    if node.name in low.plan.absorbed:
        return replace(args[0], value=node.value)
    return emit_scale(low.layouts, node, op, args[0])


def _flatten(low: Lowering, node: Node, op: ops.Flatten, args: list[Lowered]) -> Lowered:
    (x,) = args
    if op.tokens and x.native == "last":  # rows are positions either way
        return Lowered(node.value, {"last": x.tensors["last"]})
    tensor = low.layouts.read(x, "first", node.name)
    if len(x.value.shape) == len(node.value.shape):
        return Lowered(node.value, {"first": tensor})
    return Lowered(node.value, {"first": low.emitter.reshape(tensor, (-1, *node.value.shape), node.name)})


def _concat(low: Lowering, node: Node, op: ops.Concat, args: list[Lowered]) -> Lowered:
    rows = op.axis == 0 and any(a.native == "last" for a in args)
    form: Form = "last" if rows else "first"
    parts = [low.read(node, a, form) for a in args]
    return Lowered(node.value, {form: low.emitter.op("Concat", parts, node.name, axis=op.axis + 1)})


def _slice(low: Lowering, node: Node, op: ops.Slice, args: list[Lowered]) -> Lowered:
    em, (x,) = low.emitter, args
    form: Form = "last" if op.axis == 0 and x.native == "last" else "first"
    bounds = [em.integers([v]) for v in (op.start, op.stop, op.axis + 1)]
    return Lowered(
        node.value, {form: em.op("Slice", [low.layouts.read(x, form, node.name), *bounds], node.name)}
    )


def _readout(low: Lowering, node: Node, op: ops.Readout, args: list[Lowered]) -> Lowered:
    em, (x,), steps = low.emitter, args, low.graph.steps
    form: Form = "last" if x.native == "last" else "first"
    tensor = low.layouts.read(x, form, node.name)
    if x.value.time == "static" and op.mode == "sum" and steps > 1:
        factor = em.constant(np.asarray(steps), f"{node.name}.steps")
        return Lowered(node.value, {form: em.op("Mul", [tensor, factor], node.name)})
    if x.value.time == "static" or steps == 1:
        return Lowered(node.value, {form: tensor})
    rest = x.value.shape[:1] if form == "last" else x.value.shape
    view = em.reshape(tensor, (steps, -1, *rest), node.name)
    if op.mode == "last":
        index = em.array(np.asarray(steps - 1), f"{node.name}.last_step")
        return Lowered(node.value, {form: em.op("Gather", [view, index], node.name, axis=0)})
    kind = "ReduceMean" if op.mode == "mean" else "ReduceSum"
    return Lowered(node.value, {form: em.reduce(kind, view, [0], False, node.name)})


def _output(low: Lowering, node: Node, op: ops.Output, args: list[Lowered]) -> Lowered:
    (x,) = args
    tensor = low.layouts.read(x, "first", node.name)
    if low.emitter.real_type != TensorProto.FLOAT:
        tensor = low.emitter.op("Cast", [tensor], f"{node.name}/cast", to=TensorProto.FLOAT)
    tensor = by_step(low, tensor, x.value.shape, op.layout, node.name)
    if op.order:
        tensor = low.emitter.transpose(tensor, op.permutation(len(op.order)), node.name)
    low.outputs[op.label] = tensor
    return x


def by_step(low: Lowering, tensor: str, shape: tuple[int, ...], layout: str, name: str) -> str:
    """A `first` tensor as [B, *shape], [T, B, *shape] or [B, T, *shape]."""
    if layout == "B":
        return tensor
    tensor = low.emitter.reshape(tensor, (low.graph.steps, -1, *shape), name)
    if layout == "TB":
        return tensor
    return low.emitter.transpose(tensor, (1, 0, *range(2, len(shape) + 2)), name)


EMIT: dict[type[ops.Op], Callable[[Lowering, Node, Any, list[Lowered]], Lowered]] = {
    ops.Input: _input,
    ops.Constant: _constant,
    ops.Linear: _linear,
    ops.Conv: _conv,
    ops.Affine: lambda low, node, op, args: emit_affine(low.layouts, node, op, args[0]),
    ops.Neuron: _neuron,
    ops.MaxPool: lambda low, node, op, args: emit_maxpool(low.layouts, node, op, args[0]),
    ops.AvgPool: lambda low, node, op, args: emit_avgpool(low.layouts, node, op, args[0]),
    ops.Reduce: _reduce,
    ops.Add: lambda low, node, op, args: emit_binary(low.layouts, node, "Add", args),
    ops.Mul: lambda low, node, op, args: emit_binary(low.layouts, node, "Mul", args),
    ops.Scale: _scale,
    ops.MatMul: _matmul,
    ops.Flatten: _flatten,
    ops.Concat: _concat,
    ops.Slice: _slice,
    ops.Select: lambda low, node, op, args: low.selections.emit(node, op, *args),
    ops.Readout: _readout,
    ops.Output: _output,
}
"""What each operator of the catalogue becomes."""
