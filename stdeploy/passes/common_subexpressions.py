"""Two nodes with the same operator, the same numbers and the same inputs are one.

Neurons too: from the same drive with the same parameters they hold the same membrane at every step.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from stdeploy.graph import Graph, GraphBuilder, Node, Weight, rewrite
from stdeploy.graph.ops import Input, Op, Output
from stdeploy.passes.base import PassResult


class CommonSubexpressions:
    """Merge equal nodes into the first; notes name each merge."""

    name = "common-subexpressions"

    def run(self, graph: Graph) -> PassResult:
        """Exact: both computed the same number. Inputs and Outputs are never merged."""
        seen: dict[object, str] = {}
        notes: list[str] = []

        def visit(builder: GraphBuilder, node: Node, inputs: tuple[str, ...]) -> str | None:
            if isinstance(node.op, Input | Output):
                return None
            key = (_key(node.op), inputs)
            if key in seen:
                notes.append(f"{node.name} is {seen[key]}")
                return seen[key]
            name = builder.add(node.op, inputs, name=node.name, source=node.source)
            seen[key] = name
            return name

        out = rewrite(graph, visit)
        return PassResult(out if notes else graph, bool(notes), tuple(notes))


def _key(op: Op) -> object:
    return (type(op), *(_frozen(getattr(op, f.name)) for f in fields(op)))


def _frozen(value: Any) -> object:
    """Arrays and weights by shape, dtype and bytes; a CSR weight equals its dense form."""
    if isinstance(value, Weight):
        value = value.array()
    if isinstance(value, np.ndarray):
        return (value.shape, value.dtype.str, value.tobytes())
    return value
