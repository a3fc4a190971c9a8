"""The readable text form of a graph: one line a node."""

from __future__ import annotations

import dataclasses

import numpy as np

from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.weight import Weight


def print_graph(graph: Graph) -> str:
    """Text with a header and, per node: name, value, operator with its attributes, inputs, module path."""
    lines = [f"graph steps={graph.steps} nodes={len(graph)} neurons={len(graph.neurons)}"]
    lines += [format_node(node) for node in graph]
    return "\n".join(lines)


def format_node(node: Node) -> str:
    """`%name: value = Kind(attributes)(%inputs)  # module path`."""
    attributes = ", ".join(
        f"{f.name}={_format(getattr(node.op, f.name))}"
        for f in dataclasses.fields(node.op)
        if getattr(node.op, f.name) is not None
    )
    inputs = ", ".join(f"%{name}" for name in node.inputs)
    source = f"  # {node.source}" if node.source and node.source != node.name else ""
    return f"%{node.name}: {node.value} = {node.kind}({attributes})({inputs}){source}"


def _format(attribute: object) -> str:
    if isinstance(attribute, Weight):
        form = "csr" if attribute.is_csr else "dense"
        return f"{form}{list(attribute.shape)} {attribute.dtype} density={attribute.density:.3g}"
    if isinstance(attribute, np.ndarray):
        if attribute.size == 1:
            return f"{attribute.reshape(-1)[0]:g}"
        return f"{list(attribute.shape)} in [{attribute.min():.4g}, {attribute.max():.4g}]"
    if isinstance(attribute, float):
        return f"{attribute:g}"
    return str(attribute)
