"""Graph to plan, one function per operator; what cannot be expressed is collected, not raised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stdeploy.errors import Unsupported
from stdeploy.exporters.nir.attention import Size, lower_product, partition
from stdeploy.exporters.nir.dialect import load_dialect
from stdeploy.exporters.nir.linear import (
    area,
    average,
    convolve,
    map_of,
    pair,
    spread,
    square,
    whole,
)
from stdeploy.exporters.nir.neuron import lower_neuron, unit
from stdeploy.exporters.nir.options import Options
from stdeploy.exporters.nir.plan import INPUT, OUTPUT, Pair, Plan, Shape
from stdeploy.exporters.nir.signal import Signal, Writer, ungrouped
from stdeploy.exporters.refusal import Refusal
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.ops import ReadoutMode
from stdeploy.passes.attention_order import Product, products


@dataclass
class Lowering:
    """Lowers one graph; `plan` holds the network where `refused` stays empty."""

    graph: Graph
    options: Options
    plan: Plan = field(default_factory=Plan)
    refused: list[Unsupported] = field(default_factory=list)
    signals: dict[str, Signal] = field(default_factory=dict)
    input_shape: Shape = (0, 0, 0)
    output_shape: Shape = (0, 0, 0)
    readout: ReadoutMode | None = None

    def __post_init__(self) -> None:
        self.dialect = load_dialect(self.options.dialect)
        self.rules = self.dialect.switches
        self.writer = Writer(self.plan, self.rules)
        self.readers = {name: len(users) for name, users in self.graph.users().items()}
        found = products(self.graph)
        self.products: dict[str, Product] = {p.second.name: p for p in found}
        self.inside = {n.name for p in found for n in (p.first, *p.scales)}

    def run(self) -> Lowering:
        for kind, nodes in (("Input", self.graph.inputs), ("Output", self.graph.outputs)):
            if len(nodes) != 1:
                reason = f"the graph has {len(nodes)}; readers run one input and one edge into one output"
                self.refused.append(Unsupported("", kind, reason))
        for node in self.graph:
            if node.name in self.inside:
                continue  # lowered with the second product of its attention
            try:
                self.signals[node.name] = self._lower(node)
            except Refusal as refusal:
                where = node.source or node.name
                self.refused.append(Unsupported(where, node.kind, refusal.reason, refusal.hint))
                self.signals[node.name] = self._placeholder(node)
        return self

    def _lower(self, node: Node) -> Signal:
        args = [self.signals[n] for n in node.inputs if n not in self.inside]
        lower = LOWER.get(type(node.op))
        if lower is None:
            raise Refusal("no NIR lowering for this operator")
        if any(a.flat for a in args) and not isinstance(node.op, _TAKE_FLAT):
            raise Refusal("it reads a flattened map", "only a Linear layer may follow the flattening")
        return lower(self, node, node.op, args)

    def _placeholder(self, node: Node) -> Signal:
        """Stands in for a refused node, so that what follows is still checked; the plan is thrown away."""
        shape = (*node.value.shape, 1, 1, 1)[:3]
        return Signal((shape[0], shape[1], shape[2]), {f"refused.{node.name}": 1.0})


JOINED_TERMS = 3
"""Nodes in a sum with several readers from which one node adds them up for all."""

_TAKE_FLAT = (ops.Linear, ops.Flatten, ops.Scale, ops.Readout)


def _input(low: Lowering, node: Node, op: ops.Input, args: list[Signal]) -> Signal:
    low.input_shape = map_of(op.shape)
    return Signal(low.input_shape, {INPUT: 1.0})


def _constant(low: Lowering, node: Node, op: ops.Constant, args: list[Signal]) -> Signal:
    shape = map_of(node.value.shape)
    if op.per_step:
        raise Refusal("a constant per step: NIR parameters do not change over time")
    values = op.value.reshape(shape[0], -1).astype(np.float64)
    if np.any(values != values[:, :1]):
        raise Refusal("a constant that differs between positions: NIR's biases are per channel")
    return Signal(shape, offset=values[:, 0])


def _bias(low: Lowering, bias: Any, readout: ReadoutMode | None) -> Any:
    if bias is None or bias.ndim == 1:
        return bias / low.graph.steps if bias is not None and readout == "sum" else bias
    raise Refusal("a bias per step: NIR parameters do not change over time", "run the 'nir' pass pipeline")


def _linear(low: Lowering, node: Node, op: ops.Linear, args: list[Signal]) -> Signal:
    (x,) = args
    weight = op.weight.array().astype(np.float64)
    shape = (weight.shape[0], *map_of(node.value.shape)[1:])
    kernel: tuple[int, int] = (1, 1)
    if x.flat:
        kernel, shape = (x.shape[1], x.shape[2]), (weight.shape[0], 1, 1)
    weight = weight.reshape(weight.shape[0], -1, *kernel)
    padding, stride = (0, 0), (1, 1)
    if x.flat and low.rules.square_kernels:
        weight, padding, stride = whole(weight)
    bias, x = _bias(low, op.bias, x.readout), replace(x, flat=False)
    return convolve(low.writer, node.name, x, weight, bias, shape, stride=stride, padding=padding)


def _conv(low: Lowering, node: Node, op: ops.Conv, args: list[Signal]) -> Signal:
    (x,) = args
    weight = op.weight.array().astype(np.float64)
    weight = weight.reshape(*weight.shape, *([1] * (4 - weight.ndim)))
    stride, dilation = pair(op.stride, 1), pair(op.dilation, 1)
    groups, padding = (op.groups if low.rules.groups else 1), pair(op.padding, 0)
    if groups != op.groups:
        weight = ungrouped(weight, op.groups)
    if low.rules.square_kernels:
        weight, padding = square(weight, padding, dilation)
    stored = weight.size
    if stored > low.options.max_weights:
        raise Refusal(
            f"{op.groups} groups written out are {stored} weights", "the dialect compact keeps the groups"
        )
    return convolve(
        low.writer,
        node.name,
        x,
        weight,
        _bias(low, op.bias, x.readout),
        map_of(node.value.shape),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )


def _affine(low: Lowering, node: Node, op: ops.Affine, args: list[Signal]) -> Signal:
    weight, groups = low.writer.diagonal(op.scale.astype(np.float64))
    shift = _bias(low, op.shift, args[0].readout)
    return convolve(low.writer, node.name, args[0], weight, shift, args[0].shape, groups=groups)


def _neuron(low: Lowering, node: Node, op: ops.Neuron, args: list[Signal]) -> Signal:
    return lower_neuron(low.writer, node, args[0])


def _maxpool(low: Lowering, node: Node, op: ops.MaxPool, args: list[Signal]) -> Signal:
    """A maximum of spikes is an OR: the mean over the window against half a spike."""
    (x,) = args
    domain = low.graph[node.inputs[0]].value.domain
    if domain.kind != "spike":
        raise Refusal(
            f"a maximum over {domain.kind} values has no exact form in NIR",
            "pool the spikes, after the neuron",
        )
    if any(d != 1 for d in op.dilation) or op.ceil_mode:
        raise Refusal("a dilated or ceil-mode window: nir.AvgPool2d has neither")
    shape, kernel = map_of(node.value.shape), pair(op.kernel, 1)
    inner = x.divided(domain.scale)
    pooled = average(
        low.writer,
        f"{node.name}.mean",
        inner,
        kernel,
        pair(op.stride, 1),
        pair(op.padding, 0),
        shape,
        "pooling",
    )
    sources = low.writer.edges(node.name, pooled, role="pooling")
    spike = unit(low.writer, node.name, sources, shape, 0.5 / math.prod(kernel), "pooling")
    return Signal(shape, {spike: domain.scale})


def _avgpool(low: Lowering, node: Node, op: ops.AvgPool, args: list[Signal]) -> Signal:
    if op.ceil_mode or (any(op.padding) and not op.count_include_pad):
        raise Refusal("a ceil-mode window, or padding left out of the mean: nir.AvgPool2d has neither")
    kernel, stride, padding = pair(op.kernel, 1), pair(op.stride, 1), pair(op.padding, 0)
    return average(low.writer, node.name, args[0], kernel, stride, padding, map_of(node.value.shape))


def _reduce(low: Lowering, node: Node, op: ops.Reduce, args: list[Signal]) -> Signal:
    (x,) = args
    rank = len(low.graph[node.inputs[0]].value.shape)
    if op.over == (0,) and (op.keepdims or rank == 1):
        weight = np.full((1, x.shape[0], 1, 1), 1 / x.shape[0] if op.mean else 1.0)
        return convolve(low.writer, node.name, x, weight, None, (1, *x.shape[1:]))
    if rank < 2 or tuple(sorted(op.over)) != tuple(range(1, rank)):
        raise Refusal(f"a reduction over axes {op.over}", "over all positions, or over the channels alone")
    space: Pair = (x.shape[1], x.shape[2])
    mean = average(low.writer, node.name, x, space, space, (0, 0), (x.shape[0], 1, 1))
    return mean if op.mean else mean.scaled(float(area(x.shape)))


def _add(low: Lowering, node: Node, op: ops.Add, args: list[Signal]) -> Signal:
    a, b = args
    if not (a.nodes or a.convs):
        a, b = b, a
    constant = not (b.nodes or b.convs)
    shape = map_of(node.value.shape)
    a = spread(low.writer, f"{node.name}.spread", a, shape)
    if not (constant and b.shape[0] == shape[0]):
        b = spread(low.writer, f"{node.name}.spread", b, shape)
    if {a.readout, b.readout} not in ({None}, {"mean"}, {"last"}, {"sum"}):
        if not constant or b.readout is not None:
            raise Refusal("it adds a value over all steps to one of another kind")
        b = b.divided(low.graph.steps) if a.readout == "sum" else b
    total = a.plus(b)
    if len(total.nodes) < JOINED_TERMS or low.readers[node.name] < 2 or len(set(total.nodes.values())) > 1:
        return total
    scale = next(iter(total.nodes.values()))
    joined = low.writer.join(f"{node.name}.join", list(total.nodes), shape)
    return replace(total, nodes={joined: scale})


def _mul(low: Lowering, node: Node, op: ops.Mul, args: list[Signal]) -> Signal:
    """A product of spikes is an AND: a unit at 1.5."""
    domains = [low.graph[n].value.domain for n in node.inputs]
    if any(d.kind != "spike" for d in domains):
        raise Refusal("a product of anything but two spike maps has no exact form in NIR")
    shape = map_of(node.value.shape)
    inner = [
        spread(low.writer, f"{node.name}.spread", a.divided(d.scale), shape)
        for a, d in zip(args, domains, strict=True)
    ]
    if set(inner[0].nodes) & set(inner[1].nodes) or set(inner[0].convs) & set(inner[1].convs):
        raise Refusal("a product of a value with itself")
    sources = [s for a in inner for s in low.writer.edges(node.name, a, role="attention")]
    name = unit(low.writer, node.name, sources, shape, 1.5, "attention")
    return Signal(shape, {name: domains[0].scale * domains[1].scale})


def _scale(low: Lowering, node: Node, op: ops.Scale, args: list[Signal]) -> Signal:
    return args[0].scaled(op.factor)


def _matmul(low: Lowering, node: Node, op: ops.MatMul, args: list[Signal]) -> Signal:
    product = low.products.get(node.name)
    if product is None:
        raise Refusal(
            "a matrix product that is not Q Kᵀ V with only a scale inside has no lowering",
            "softmax, masks or neurons between the two products cannot be expressed",
        )
    names = (product.q, product.k, product.v)
    q, k, v = (low.signals[n] for n in names)
    domains = [low.graph[n].value.domain for n in names]
    if any(d.kind != "spike" for d in domains):
        kinds = ", ".join(d.kind for d in domains)
        raise Refusal(
            f"q, k, v are {kinds}: only spikes can be multiplied by AND", "put a neuron before each"
        )
    if not q.shape[1:] == k.shape[1:] == v.shape[1:]:
        raise Refusal("queries and keys lie on different maps; only self-attention is lowered")
    most = area(v.shape) * min(d.maximum or 0 for d in domains[1:])
    size = Size(product.head_q, product.head_v, area(v.shape), most, low.rules.groups)
    spent = partition(size, low.options.max_nodes, low.options.pairs_per_node)
    for label, count, most in (
        ("neurons", spent.neurons, low.options.max_neurons),
        ("weights", spent.weights, low.options.max_weights),
        ("nodes", spent.nodes, low.options.max_nodes),
    ):
        if count > most:
            raise Refusal(
                f"{spent.pairs} pairs x {area(v.shape)} tokens x {spent.digits} digits need {count} {label},"
                f" more than {most}",
                f"prune more head dims (DSP), or raise max_{label}",
            )
    scaled = [s.divided(d.scale) for s, d in zip((q, k, v), domains, strict=True)]
    counts = lower_product(low.writer, node.name, scaled[0], scaled[1], scaled[2], size, spent.stacks)
    return counts.scaled(product.factor * math.prod(d.scale for d in domains))


def _select(low: Lowering, node: Node, op: ops.Select, args: list[Signal]) -> Signal:
    raise Refusal(
        "it keeps the tokens with the best scores: NIR's edges do not depend on values",
        "--target onnx takes it",
    )


def _flatten(low: Lowering, node: Node, op: ops.Flatten, args: list[Signal]) -> Signal:
    if op.tokens and area(args[0].shape) > 1:
        raise Refusal("it lists the positions of a map as tokens")
    return replace(args[0], flat=area(args[0].shape) > 1)


def _concat(low: Lowering, node: Node, op: ops.Concat, args: list[Signal]) -> Signal:
    if op.axis != 0:
        raise Refusal("a concatenation along positions")
    shape, start = map_of(node.value.shape), 0
    out = Signal(shape)
    for i, part in enumerate(args):
        weight = np.zeros((shape[0], part.shape[0], 1, 1))
        weight[start + np.arange(part.shape[0]), np.arange(part.shape[0])] = 1.0
        out = out.plus(convolve(low.writer, f"{node.name}.part{i}", part, weight, None, shape))
        start += part.shape[0]
    return out


def _slice(low: Lowering, node: Node, op: ops.Slice, args: list[Signal]) -> Signal:
    if op.axis != 0:
        raise Refusal("a slice along positions")
    weight = np.eye(args[0].shape[0])[op.start : op.stop, :, None, None]
    return convolve(low.writer, node.name, args[0], weight, None, map_of(node.value.shape))


def _readout(low: Lowering, node: Node, op: ops.Readout, args: list[Signal]) -> Signal:
    return replace(args[0], readout=op.mode)


def _output(low: Lowering, node: Node, op: ops.Output, args: list[Signal]) -> Signal:
    (x,) = args
    if op.order:
        raise Refusal("the model returns channels last; NIR yields them first", "permute what it returns")
    sources = low.writer.edges(node.name, x)
    if len(sources) > 1 or sources[0] == INPUT:  # one edge into Output: readers drop the others
        sources = [low.writer.join(f"{node.name}.join", sources, x.shape)]
    low.plan.edges.append((sources[0], OUTPUT))
    low.output_shape = x.shape
    low.readout = x.readout or ("last" if op.layout == "B" else None)
    return x


LOWER: dict[type[ops.Op], Callable[[Lowering, Node, Any, list[Signal]], Signal]] = {
    ops.Input: _input,
    ops.Constant: _constant,
    ops.Linear: _linear,
    ops.Conv: _conv,
    ops.Affine: _affine,
    ops.Neuron: _neuron,
    ops.MaxPool: _maxpool,
    ops.AvgPool: _avgpool,
    ops.Reduce: _reduce,
    ops.Add: _add,
    ops.Mul: _mul,
    ops.Scale: _scale,
    ops.MatMul: _matmul,
    ops.Flatten: _flatten,
    ops.Concat: _concat,
    ops.Slice: _slice,
    ops.Select: _select,
    ops.Readout: _readout,
    ops.Output: _output,
}
