"""What is the same at every step is computed once.

A value is `static` where nothing it depends on changes over the steps (for a repeated image everything
before the first neuron); whoever lowers the graph computes it outside the step loop. This pass finds numbers
that are stored per step and do not change, b[t] = b, and stores them once, so that static values spread.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stdeploy.graph import Graph, GraphBuilder, GraphError, Node, rewrite
from stdeploy.graph.ops import Constant, Conv, Linear, Op
from stdeploy.passes.base import PassResult


class HoistStatic:
    """Store per-step numbers that do not change once; notes say what runs once for all steps."""

    name = "hoist-static"

    def run(self, graph: Graph) -> PassResult:
        """Exact. A value that an Output yields per step stays per step."""
        notes: list[str] = []

        def visit(builder: GraphBuilder, node: Node, inputs: tuple[str, ...]) -> str | None:
            op = _once(node.op)
            if op is None:
                return None
            notes.append(f"{node.name}: the same at every step, stored once")
            return builder.add(op, inputs, name=node.name, source=node.source)

        try:
            out = rewrite(graph, visit)
        except GraphError as error:
            return PassResult(graph, False, (f"kept per step, an output needs it so: {error}",))
        modified = bool(notes)
        once = [n.name for n in out if n.value.time == "static" and isinstance(n.op, Linear | Conv)]
        if once:
            notes.append(f"runs once for all {out.steps} steps: {', '.join(once)}")
        return PassResult(out if modified else graph, modified, tuple(notes))


def _once(op: Op) -> Op | None:
    if isinstance(op, Constant) and op.per_step and np.all(op.value == op.value[:1]):
        return Constant(op.value[0], op.axes)
    if isinstance(op, Linear | Conv) and op.bias is not None and op.bias.ndim == 2:
        return replace(op, bias=op.bias[0]) if np.all(op.bias == op.bias[:1]) else None
    return None
