"""Which layers of a graph are counted, as what, and what of them enters the network's totals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from stdeploy.energy.arithmetic import arithmetic_constants, count_arithmetic
from stdeploy.energy.attention import (
    Order,
    count_gate,
    count_matmul,
    count_order,
    order_constants,
    orders,
    pairs_of,
)
from stdeploy.energy.ledger import NETWORK, Class, Role
from stdeploy.energy.reach import Reach
from stdeploy.energy.signals import Signals
from stdeploy.energy.sums import per_sample
from stdeploy.energy.synaptic import Synapses, count_synapses, input_class, synapses
from stdeploy.errors import Unsupported, UnsupportedError
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.value import Time
from stdeploy.graph.weight import Array

ROLES: dict[type[ops.Op], Role | None] = {
    ops.Input: None,
    ops.Constant: None,
    ops.Linear: "synapse",
    ops.Conv: "synapse",
    ops.Affine: "arithmetic",
    ops.Neuron: "neuron",
    ops.MaxPool: "arithmetic",
    ops.AvgPool: "arithmetic",
    ops.Reduce: "arithmetic",
    ops.Add: "arithmetic",
    ops.Mul: "product",
    ops.Scale: "arithmetic",
    ops.MatMul: "attention",
    ops.Flatten: None,
    ops.Concat: None,
    ops.Slice: None,
    ops.Select: "arithmetic",
    ops.Readout: "arithmetic",
    ops.Output: None,
}
"""How every operator is counted; None moves or yields values and computes nothing."""

Counted = Mapping[str, Mapping[str, Array]]
"""Quantities of the layers that were counted before, by name."""

CountFunction = Callable[[Signals, Reach, Counted], Mapping[str, Array]]


@dataclass(frozen=True, eq=False)
class Layer:
    """One entry of the ledger to come: its facts, and what counts it on a batch's signals."""

    name: str
    kind: str
    source: str
    role: Role
    time: Time
    input_class: Class
    scale: float
    constants: dict[str, int]
    count: CountFunction = field(repr=False)
    parts: tuple[str, ...] = ()

    def rows(self, steps: int) -> int:
        return steps if self.time == "step" else 1


def require_counted(graph: Graph) -> None:
    strange = [
        Unsupported(node.source or node.name, node.kind, "its operations are not counted")
        for node in graph
        if type(node.op) not in ROLES
    ]
    if strange:
        raise UnsupportedError("the count would not be complete", strange)
    if len(graph.inputs) != 1:
        raise UnsupportedError(
            "only networks with one input are counted",
            [Unsupported(n.source or n.name, n.kind, "one input of several") for n in graph.inputs],
        )


def layers_of(graph: Graph) -> list[Layer]:
    found = [_layer(node, graph) for node in graph]
    return [layer for layer in found if layer is not None] + [_order(order, graph) for order in orders(graph)]


def _layer(node: Node, graph: Graph) -> Layer | None:
    role = ROLES[type(node.op)]
    if role is None:
        return None
    constants, counter = _COUNTERS[role](node, graph)
    return Layer(
        node.name,
        node.kind,
        node.source,
        role,
        graph[node.inputs[0]].value.time if role == "synapse" else node.value.time,  # a bias is no operation
        joint_class(graph, node.inputs),
        graph[node.inputs[0]].value.domain.scale,
        constants,
        counter,
    )


def joint_class(graph: Graph, names: tuple[str, ...]) -> Class:
    """The least restricted class among several inputs."""
    classes = {input_class(graph, name) for name in names}
    return "real" if "real" in classes else "count" if "count" in classes else "binary"


_Facts = tuple[dict[str, int], CountFunction]


def _synapse(node: Node, graph: Graph) -> _Facts:
    layer: Synapses = synapses(node, graph)
    return layer.constants, lambda signals, reach, counted: count_synapses(layer, signals)


def _attention(node: Node, graph: Graph) -> _Facts:
    op = node.op
    if not isinstance(op, ops.MatMul):
        raise TypeError(f"{node.name} is not a MatMul")
    a, b = (value.shape for value in graph.values(node))
    constants = _product_constants(node, graph, pairs_of(op, a, b))

    def counter(signals: Signals, reach: Reach, counted: Counted) -> Mapping[str, Array]:
        real = any(signals.is_real(n) for n in node.inputs)
        left, right = (signals.nonzero(n) if real else signals.units(n) for n in node.inputs)
        rows = signals.rows(node.name)
        return count_matmul(
            op, signals.operand(node.inputs[0], rows, left), signals.operand(node.inputs[1], rows, right)
        )

    return constants, counter


def _product(node: Node, graph: Graph) -> _Facts:
    constants = _product_constants(node, graph, int(np.prod(node.value.shape)))
    return constants, lambda signals, reach, counted: count_gate(node, signals)


def _product_constants(node: Node, graph: Graph, dense: int) -> dict[str, int]:
    left, right = (int(np.prod(value.shape)) for value in graph.values(node))
    units = (value.domain.maximum is not None and value.domain.scale == 1.0 for value in graph.values(node))
    left_unit, right_unit = map(int, units)
    return {
        "left": left,
        "right": right,
        "left_unit": left_unit,
        "right_unit": right_unit,
        "outputs": int(np.prod(node.value.shape)),
        "dense": dense,
    }


def _neuron(node: Node, graph: Graph) -> _Facts:
    op = node.op
    if not isinstance(op, ops.Neuron):
        raise TypeError(f"{node.name} is not a Neuron")
    parameters = [p for p in (op.tau, op.v_threshold, op.v_reset) if p is not None]
    constants = {
        "clocked": int(np.prod(node.value.shape)),
        "decay": int(op.tau is not None),
        "parameters": sum(p.size for p in parameters if p.ndim),
    }

    def counter(signals: Signals, reach: Reach, counted: Counted) -> Mapping[str, Array]:
        fired = signals.nonzero(node.name)
        return {"touched": reach.count(node), "spikes": per_sample(fired)}

    return constants, counter


def _arithmetic(node: Node, graph: Graph) -> _Facts:
    constants = arithmetic_constants(node, graph)
    return constants, lambda signals, reach, counted: count_arithmetic(node, signals, constants["operations"])


def _order(order: Order, graph: Graph) -> Layer:
    names = (order.q, order.k, order.v)
    steps = any(graph[n].value.time == "step" for n in names)
    return Layer(
        order.name,
        order.executed,
        order.source,
        "order",
        "step" if steps else "static",
        joint_class(graph, names),
        1.0,
        order_constants(order, graph),
        lambda signals, reach, counted: count_order(order, signals, counted),
        order.nodes,
    )


_COUNTERS: dict[Role, Callable[[Node, Graph], _Facts]] = {
    "synapse": _synapse,
    "attention": _attention,
    "product": _product,
    "neuron": _neuron,
    "arithmetic": _arithmetic,
}


def network_of(layers: list[Layer], totals: list[dict[str, Array]], batch: int) -> dict[str, Array]:
    """NETWORK's quantities of every sample, `[B]`."""
    out = {
        name: np.zeros(batch, dtype=np.int64)
        for prefix in ("", "static.")
        for name in (prefix + n for n in NETWORK)
    }
    for layer, quantities in zip(layers, totals, strict=True):
        prefix = "static." if layer.time == "static" else ""
        for name, source in _parts(layer):
            out[prefix + name] = out[prefix + name] + quantities[source]
    return out


def _parts(layer: Layer) -> list[tuple[str, str]]:
    """Which quantities of a layer enter which of the network's."""
    if layer.role == "synapse":
        parts = [(f"synops.{layer.input_class}", "synops")]
        parts += [("unary.count", "unary")] if layer.input_class == "count" else []
        return parts + ([("indexed", "synops")] if layer.constants["csr"] else [])
    if layer.role in ("attention", "product"):
        return [(f"attention.{q}", q) for q in ("coincidence", "left_driven", "right_driven", "unary")]
    if layer.role == "neuron":
        return [("neuron.touched", "touched"), ("neuron.spikes", "spikes")]
    return [("arithmetic.active", "active")] if layer.role == "arithmetic" else []
