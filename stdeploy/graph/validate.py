"""The graph's legality, checked after every pass."""

from __future__ import annotations

import re

import numpy as np

from stdeploy.graph.graph import Graph, GraphError, Node, ParameterError
from stdeploy.graph.ops import CATALOGUE, Affine, Constant, Conv, Input, Linear, Neuron, Output
from stdeploy.graph.weight import Array

_NAME = re.compile(r"[^\s/]+")


def validate(graph: Graph) -> Graph:
    """Return `graph`, or raise GraphError that lists every broken rule (ParameterError: only values are wrong).

    Rules: names are nonempty without blanks or '/' (NIR takes neither); a node reads earlier nodes
    only; every value is what its operator infers; every parameter is finite; tau >= 1 where the
    charge decays; at least one input and one output; nothing reads an output.
    """
    broken: list[str] = []
    senseless: list[str] = []
    seen: set[str] = set()
    for name, node in graph.nodes.items():
        broken += [f"{name}: {reason}" for reason in _check_node(graph, name, node, seen)]
        senseless += [f"{name}: {reason}" for reason in _check_parameters(node)]
        seen.add(name)
    if not graph.inputs:
        broken.append("the graph has no Input")
    if not graph.outputs:
        broken.append("the graph has no Output")
    if broken:
        raise GraphError("illegal graph:\n  " + "\n  ".join(broken + senseless))
    if senseless:
        raise ParameterError("parameters without meaning:\n  " + "\n  ".join(senseless))
    return graph


def _check_node(graph: Graph, name: str, node: Node, seen: set[str]) -> list[str]:
    out: list[str] = []
    if name != node.name or not _NAME.fullmatch(name):
        out.append(f"bad name {node.name!r}")
    if type(node.op).__name__ not in CATALOGUE:
        return [*out, f"{node.kind} is not in the catalogue"]
    late = [n for n in node.inputs if n not in seen]
    if late:
        return [*out, f"reads {late} before they exist"]
    if any(isinstance(graph[n].op, Output) for n in node.inputs):
        out.append("reads an Output")
    try:
        value = node.op.infer(graph.values(node), graph.steps)
        if value != node.value:
            out.append(f"carries {node.value}, but its operator yields {value}")
    except ValueError as error:
        out.append(str(error))
    if isinstance(node.op, Input) and len(node.op.shape) != len(node.op.axes):
        out.append("axes and shape differ in length")
    return out


def _check_parameters(node: Node) -> list[str]:
    out = [f"{label} is not finite" for label, array in parameters(node) if not np.all(np.isfinite(array))]
    if isinstance(node.op, Neuron) and node.op.tau is not None and np.any(node.op.tau < 1):
        out.append("tau < 1: the membrane would change sign every step")
    return out


def parameters(node: Node) -> list[tuple[str, Array]]:
    """Every numeric parameter of a node with its name; CSR weights give their data."""
    op = node.op
    out: list[tuple[str, Array | None]] = []
    if isinstance(op, Linear | Conv):
        out = [("weight", op.weight.data if op.weight.is_csr else op.weight.values), ("bias", op.bias)]
    elif isinstance(op, Affine):
        out = [("scale", op.scale), ("shift", op.shift)]
    elif isinstance(op, Neuron):
        out = [("tau", op.tau), ("v_threshold", op.v_threshold), ("v_reset", op.v_reset)]
    elif isinstance(op, Constant):
        out = [("value", op.value)]
    return [(label, array) for label, array in out if array is not None]
