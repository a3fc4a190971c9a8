"""From a graph to an event program: which stage does what, and in which format every value is handed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from stdeploy.errors import Unsupported, UnsupportedError
from stdeploy.exporters.event.attention import matmul
from stdeploy.exporters.event.draft import Draft, TooLargeError
from stdeploy.exporters.event.elementwise import add, affine, gate, neuron
from stdeploy.exporters.event.formats import Format
from stdeploy.exporters.event.lowering import Lowering
from stdeploy.exporters.event.moves import concat, constant, cut, flatten, given, returned, select
from stdeploy.exporters.event.pools import empty_window, pool, readout, reduce
from stdeploy.exporters.event.products import product
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, GraphBuilder, Node, rewrite
from stdeploy.graph.selection import select_of
from stdeploy.graph.weight import Array

KERNELS = ("rows", "columns")
"""How a product is done: dense `rows` of weights for every set bit, or sparse `columns` under a mask of bits (cost)."""


def refusal(graph: Graph, node: Node) -> str | None:
    """Why the engine does not run a node; None where it does."""
    return empty_window(graph, node) if type(node.op) in LOWER else "the engine has no stage for it"


def lower(graph: Graph, kernels: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Array]]:
    """The program of `graph`: a header of plain data, and its arrays `weights` (float32) and `indices` (int32).

    `kernels`: by the name of a Linear or Conv, rows or columns; rows where a product is not named. UnsupportedError that
    names a node whose tables are too large for `indices`.
    """
    graph = _biases_apart(graph)
    work = Lowering(Draft(graph), kernels, graph.users(), set(), {})
    for node in graph:
        if node.name in work.done:
            continue
        try:
            LOWER[type(node.op)](work, node)
        except TooLargeError as error:
            item = Unsupported(node.source or node.name, node.kind, str(error))
            raise UnsupportedError("a layer is too large for the engine", [item]) from error
    draft = work.draft
    header = {
        "steps": graph.steps,
        "timed": any(s["fields"].get("bias_stride") or s["fields"].get("stride") for s in draft.stages),
        "buffers": draft.buffers,
        "stages": draft.stages,
        "neurons": {n.name: _shown(draft, n) for n in graph.neurons},
        "selections": {n.name: _chosen(graph, n) for n in graph.of(ops.Select)},
        "input": _input(draft, graph.inputs[0]),
        "outputs": [_output(draft, n) for n in graph.outputs],
    }
    return header, {"weights": draft.floats.array(), "indices": draft.ints.array()}


def _biases_apart(graph: Graph) -> Graph:
    """A product of a static value under a bias per step as a product, which is done once, and a sum."""

    def visit(builder: GraphBuilder, node: Node, inputs: tuple[str, ...]) -> str | None:
        op = node.op
        if not isinstance(op, ops.Linear | ops.Conv) or op.bias is None or op.bias.ndim == 1:
            return None
        if builder.value(inputs[0]).time != "static":
            return None
        product = builder.add(replace(op, bias=None), inputs, name=node.name, source=node.source)
        value = op.bias.reshape(*op.bias.shape, *([1] * (len(node.value.shape) - 1)))
        bias = builder.add(ops.Constant(value, node.value.axes, True), name=f"{node.name} bias")
        return builder.add(ops.Add(), (product, bias), name=f"{node.name} with its bias")

    return rewrite(graph, visit)


def _shown(draft: Draft, node: Node) -> dict[str, Any]:
    form: Format = next(iter(draft.held[node.name]))
    return {"buffer": draft.held[node.name][form], "format": form, "shape": list(node.value.shape)}


def _chosen(graph: Graph, node: Node) -> dict[str, Any]:
    tokens = graph[node.inputs[0]].value.shape[1]
    stepped = node.value.time == "step"
    return {
        "buffer": f"{node.name} chosen",
        "count": select_of(node).count,
        "tokens": tokens,
        "stepped": stepped,
    }


def _input(draft: Draft, node: Node) -> dict[str, Any]:
    op = node.op
    if not isinstance(op, ops.Input):
        raise TypeError(f"{node.name} is not an Input")
    return {
        "name": node.name,
        "buffer": draft.held[node.name]["channel floats"],
        "shape": list(op.shape),
        "layout": op.layout,
        "unit": node.value.domain.scale,
        "most": node.value.domain.maximum,
    }


def _output(draft: Draft, node: Node) -> dict[str, Any]:
    op = node.op
    if not isinstance(op, ops.Output):
        raise TypeError(f"{node.name} is not an Output")
    return {
        "label": op.label,
        "buffer": draft.held[node.inputs[0]]["channel floats"],
        "shape": list(node.value.shape),
        "layout": op.layout,
        "order": list(op.order),
        "stepped": node.value.time == "step",
    }


LOWER: dict[type[ops.Op], Callable[[Lowering, Node], None]] = {
    ops.Input: given,
    ops.Output: returned,
    ops.Constant: constant,
    ops.Linear: product,
    ops.Conv: product,
    ops.Affine: affine,
    ops.Scale: affine,
    ops.Neuron: neuron,
    ops.MaxPool: pool,
    ops.AvgPool: pool,
    ops.Reduce: reduce,
    ops.Add: add,
    ops.Mul: gate,
    ops.MatMul: matmul,
    ops.Flatten: flatten,
    ops.Concat: concat,
    ops.Slice: cut,
    ops.Select: select,
    ops.Readout: readout,
}
"""What each operator of the catalogue becomes."""
