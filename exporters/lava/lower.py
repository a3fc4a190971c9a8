"""Graph to plan, one function per operator; what cannot be expressed is collected, not raised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stdeploy.errors import Unsupported
from stdeploy.exporters.lava import linear_map
from stdeploy.exporters.lava.attention import joined_neurons, lower_product
from stdeploy.exporters.lava.fixed import input_range, quantise
from stdeploy.exporters.lava.neuron import lower_neuron, unit
from stdeploy.exporters.lava.options import Options
from stdeploy.exporters.lava.plan import Plan, Source
from stdeploy.exporters.lava.signal import Signal, Writer
from stdeploy.exporters.refusal import Refusal
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.ops import ReadoutMode
from stdeploy.graph.weight import Array
from stdeploy.passes.attention_order import Product, products


@dataclass
class Lowering:
    """Lowers one graph; `plan` holds the network where `refused` stays empty."""

    graph: Graph
    options: Options
    plan: Plan = field(default_factory=Plan)
    refused: list[Unsupported] = field(default_factory=list)
    signals: dict[str, Signal] = field(default_factory=dict)
    readout: ReadoutMode | None = None

    def __post_init__(self) -> None:
        self.writer = Writer(self.plan, self.options.fixed)
        found = products(self.graph)
        self.products: dict[str, Product] = {p.second.name: p for p in found}
        self.inside = {n.name for p in found for n in (p.first, *p.scales)}
        # q, k, v that nothing else reads wait for their product, which may make one population of them.
        self.joined = {name for p in found for name in joined_neurons(self.graph, p)}
        self.waiting: dict[str, Signal] = {}

    def run(self) -> Lowering:
        for kind, nodes in (("Input", self.graph.inputs), ("Output", self.graph.outputs)):
            if len(nodes) != 1:
                self.refused.append(
                    Unsupported("", kind, f"the graph has {len(nodes)}; one source and one sink are planned")
                )
        for node in self.graph:
            if node.name in self.inside:
                continue  # lowered with the second product of its attention
            try:
                self.signals[node.name] = self._lower(node)
            except Refusal as refusal:
                where = node.source or node.name
                self.refused.append(Unsupported(where, node.kind, refusal.reason, refusal.hint))
                # A source stands in for it, so that what follows is still checked; the plan is thrown away.
                port = self.plan.add(f"refused.{node.name}", Source(math.prod(node.value.shape)), {}, 1)
                self.signals[node.name] = Signal(node.value.shape, (port,), 1)
        if self.options.fixed and not self.refused:
            domain = self.graph.inputs[0].value.domain
            inputs = input_range(domain, self.options.input_unit, self.options.input_limit)
            self.plan, self.refused = quantise(self.plan, inputs)
        return self

    def _lower(self, node: Node) -> Signal:
        lower = LOWER.get(type(node.op))
        if lower is None:
            raise Refusal("no Lava lowering for this operator")
        args = [self.signals[n] for n in node.inputs if n not in self.inside]
        return lower(self, node, node.op, args)

    def bias(self, bias: Array | None, readout: ReadoutMode | None) -> Array | None:
        """A bias as the per-step network needs it: behind a sum over the steps it counts T times."""
        if bias is None or bias.ndim == 1:
            return bias / self.graph.steps if bias is not None and readout == "sum" else bias
        raise Refusal("a bias per step: a population's bias is constant", "run the 'lava' pass pipeline")


def _input(low: Lowering, node: Node, op: ops.Input, args: list[Signal]) -> Signal:
    name = low.plan.add(node.name, Source(math.prod(op.shape)), {}, 1)
    return Signal(op.shape, (name,), 1)


def _constant(low: Lowering, node: Node, op: ops.Constant, args: list[Signal]) -> Signal:
    if op.per_step:
        raise Refusal("a constant per step: a population's bias is constant")
    return Signal(node.value.shape, offset=op.value.astype(np.float64).ravel())


def _linear(low: Lowering, node: Node, op: ops.Linear, args: list[Signal]) -> Signal:
    (x,) = args
    linear = linear_map.linear(op.weight.array(), x.positions)
    return x.mapped(linear, node.value.shape, low.bias(op.bias, x.readout))


def _conv(low: Lowering, node: Node, op: ops.Conv, args: list[Signal]) -> Signal:
    (x,) = args
    weight = op.weight.array()
    nonzeros = int(np.count_nonzero(weight)) * math.prod(node.value.shape[1:])
    if nonzeros > low.options.max_synapses:
        raise Refusal(
            f"its {nonzeros} synapses exceed {low.options.max_synapses}", "prune it, or raise max_synapses"
        )
    linear = linear_map.convolution(weight, op.groups, x.shape, op.stride, op.padding, op.dilation)
    return x.mapped(linear, node.value.shape, low.bias(op.bias, x.readout))


def _affine(low: Lowering, node: Node, op: ops.Affine, args: list[Signal]) -> Signal:
    (x,) = args
    linear = linear_map.channelwise(op.scale, x.positions)
    return x.mapped(linear, x.shape, low.bias(op.shift, x.readout))


def _neuron(low: Lowering, node: Node, op: ops.Neuron, args: list[Signal]) -> Signal:
    if node.name in low.joined:
        low.waiting[node.name] = args[0]
        return args[0]  # stands in until the product, its only reader
    return lower_neuron(low.writer, node, args[0])


def _maxpool(low: Lowering, node: Node, op: ops.MaxPool, args: list[Signal]) -> Signal:
    """A maximum of spikes is an OR: a memoryless unit that one spike in the window fires."""
    (x,) = args
    domain = low.graph[node.inputs[0]].value.domain
    if domain.kind != "spike":
        raise Refusal(
            f"a maximum over {domain.kind} values has no exact form in Lava's processes",
            "pool the spikes, after the neuron",
        )
    spikes = x.divided(domain.scale)
    window = linear_map.window_sum(
        x.channels, x.shape[1:], node.value.shape[1:], op.kernel, op.stride, op.padding, op.dilation
    )
    pooled = unit(low.writer, node.name, [spikes.mapped(window, node.value.shape)], 0.5, "pooling")
    return pooled.scaled(domain.scale)


def _avgpool(low: Lowering, node: Node, op: ops.AvgPool, args: list[Signal]) -> Signal:
    if op.ceil_mode or (any(op.padding) and not op.count_include_pad):
        raise Refusal("a ceil-mode window, or padding left out of the mean")
    (x,) = args
    ones = (1,) * len(op.kernel)
    window = linear_map.window_sum(
        x.channels, x.shape[1:], node.value.shape[1:], op.kernel, op.stride, op.padding, ones
    )
    return x.mapped(window.scaled(1 / math.prod(op.kernel)), node.value.shape)


def _reduce(low: Lowering, node: Node, op: ops.Reduce, args: list[Signal]) -> Signal:
    (x,) = args
    kept = tuple(1 if a in op.over else n for a, n in enumerate(x.shape))
    target = np.broadcast_to(np.arange(math.prod(kept)).reshape(kept), x.shape)
    terms = x.size // math.prod(kept)
    return x.mapped(
        linear_map.total(target, math.prod(kept), 1 / terms if op.mean else 1.0), node.value.shape
    )


def _spread(x: Signal, shape: tuple[int, ...]) -> Signal:
    """Axes of size 1 repeated to `shape`."""
    if x.shape == shape:
        return x
    source = np.broadcast_to(np.arange(x.size).reshape(x.shape), shape)
    return x.mapped(linear_map.select(source, x.size), shape)


def _add(low: Lowering, node: Node, op: ops.Add, args: list[Signal]) -> Signal:
    a, b = (_spread(x, node.value.shape) for x in args)
    kinds = {x.readout for x in (a, b) if x.ports}
    if len(kinds) > 1:
        raise Refusal("it adds a value over all steps to one of another kind")
    if kinds == {"sum"}:
        a, b = (x if x.ports else x.divided(low.graph.steps) for x in (a, b))
    return low.writer.plus(node.name, a, b)


def _mul(low: Lowering, node: Node, op: ops.Mul, args: list[Signal]) -> Signal:
    """A product of spikes is an AND: a memoryless unit that only two spikes fire."""
    domains = [low.graph[n].value.domain for n in node.inputs]
    if any(d.kind != "spike" for d in domains):
        raise Refusal("a product of anything but two spike maps has no exact form in Lava's processes")
    if node.inputs[0] == node.inputs[1]:
        raise Refusal("a product of a value with itself")
    spikes = [_spread(x.divided(d.scale), node.value.shape) for x, d in zip(args, domains, strict=True)]
    product = unit(low.writer, node.name, spikes, 1.5, "product")
    return product.scaled(domains[0].scale * domains[1].scale)


def _scale(low: Lowering, node: Node, op: ops.Scale, args: list[Signal]) -> Signal:
    return args[0].scaled(op.factor)


def _matmul(low: Lowering, node: Node, op: ops.MatMul, args: list[Signal]) -> Signal:
    product = low.products.get(node.name)
    if product is None:
        raise Refusal(
            "a matrix product that is not Q Kᵀ V with only a scale inside has no lowering",
            "softmax, masks or neurons between the two products cannot be expressed",
        )
    domains = [low.graph[n].value.domain for n in (product.q, product.k, product.v)]
    if any(d.kind != "spike" for d in domains):
        kinds = ", ".join(d.kind for d in domains)
        raise Refusal(f"q, k, v are {kinds}: only spikes are multiplied", "put a neuron before each")
    counts = lower_product(low.writer, low.graph, product, low.signals, low.waiting, low.options)
    return replace(
        counts.scaled(product.factor * math.prod(d.scale for d in domains)), shape=node.value.shape
    )


def _flatten(low: Lowering, node: Node, op: ops.Flatten, args: list[Signal]) -> Signal:
    return replace(args[0], shape=node.value.shape)


def _concat(low: Lowering, node: Node, op: ops.Concat, args: list[Signal]) -> Signal:
    shape = node.value.shape
    place = np.arange(math.prod(shape)).reshape(shape)
    start, whole = 0, Signal(shape)
    for i, part in enumerate(args):
        here = place.take(range(start, start + part.shape[op.axis]), axis=op.axis)
        start += part.shape[op.axis]
        placed = part.mapped(linear_map.total(here, place.size), shape)
        whole = placed if i == 0 else low.writer.plus(f"{node.name}.part{i}", whole, placed)
    return whole


def _slice(low: Lowering, node: Node, op: ops.Slice, args: list[Signal]) -> Signal:
    (x,) = args
    source = np.arange(x.size).reshape(x.shape).take(range(op.start, op.stop), axis=op.axis)
    return x.mapped(linear_map.select(source, x.size), node.value.shape)


def _readout(low: Lowering, node: Node, op: ops.Readout, args: list[Signal]) -> Signal:
    return replace(args[0], readout=op.mode)


def _select(low: Lowering, node: Node, op: ops.Select, args: list[Signal]) -> Signal:
    raise Refusal("it keeps the tokens with the best scores: Lava's connections do not depend on values")


def _output(low: Lowering, node: Node, op: ops.Output, args: list[Signal]) -> Signal:
    x = low.writer.written(node.name, args[0])
    if not x.ports:
        raise Refusal("the output is a constant")
    low.plan.output, low.plan.output_offset = x.ports, x.offset
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
    ops.Readout: _readout,
    ops.Select: _select,
    ops.Output: _output,
}
