"""What computes without a synapse: pools, sums, residual adds, unfolded BatchNorms and scales, readouts.

`operations` is what a dense execution makes, one per element that is combined; `active` those with a nonzero
operand (an Add: with both nonzero, since adding nothing costs nothing). A real-valued operand is dense: there all
operations are active. A Select compares every score once per step; all its comparisons are active.
"""

from __future__ import annotations

import numpy as np

from stdeploy.energy.signals import Signals
from stdeploy.energy.sums import per_sample
from stdeploy.energy.windows import pool_windows
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.weight import Array


def arithmetic_constants(node: Node, graph: Graph) -> dict[str, int]:
    """Constants of role "arithmetic"."""
    shapes = [value.shape for value in graph.values(node)]
    inputs = sum(int(np.prod(shape)) for shape in shapes)
    outputs = int(np.prod(node.value.shape))
    operations = outputs
    if isinstance(node.op, ops.MaxPool | ops.AvgPool):
        operations = pool_windows(node, shapes[0][1:]).pairs * shapes[0][0]
    elif isinstance(node.op, ops.Reduce):
        operations = inputs
    elif isinstance(node.op, ops.Select):
        operations = int(np.prod(shapes[1]))
    elif isinstance(node.op, ops.Readout):
        operations = inputs * _read(node.op, node, graph)
    return {"inputs": inputs, "outputs": outputs, "operations": operations}


def _read(op: ops.Readout, node: Node, graph: Graph) -> int:
    """How many steps a readout combines."""
    static = graph[node.inputs[0]].value.time == "static"
    return 1 if static or op.mode == "last" else graph.steps


def count_arithmetic(node: Node, signals: Signals, operations: int) -> dict[str, Array]:
    """Quantities of role "arithmetic", `[rows, B]` int64."""
    rows = signals.rows(node.name)
    every = np.full((rows, signals.batch), operations, np.int64)
    if isinstance(node.op, ops.Select) or any(signals.is_real(name) for name in node.inputs):
        return {"events": _events(node, signals, rows), "active": every}
    masks = [signals.nonzero(name) for name in node.inputs]
    events = _events(node, signals, rows)
    if isinstance(node.op, ops.Add):
        left, right = (signals.operand(n, rows, m) for n, m in zip(node.inputs, masks, strict=True))
        return {"events": events, "active": per_sample(left & right)}
    if isinstance(node.op, ops.MaxPool | ops.AvgPool):
        (mask,) = masks
        reach = pool_windows(node, mask.shape[3:]).reach.reshape(-1)
        flat = mask.reshape(*mask.shape[:2], -1, reach.size)
        counts = flat.sum(2, dtype=np.int64) @ reach
        return {"events": events, "active": np.broadcast_to(counts, every.shape)}
    return {"events": events, "active": events}


def _events(node: Node, signals: Signals, rows: int) -> Array:
    """Nonzero elements of all operands; of a readout's at every step it reads. Real operands count whole."""
    total = np.zeros((rows, signals.batch), np.int64)
    for name in node.inputs:
        if signals.is_real(name):
            size = int(np.prod(signals.graph[name].value.shape))
            part = np.full((signals.rows(name), signals.batch), size, np.int64)
        else:
            part = np.broadcast_to(per_sample(signals.nonzero(name)), (signals.rows(name), signals.batch))
        if isinstance(node.op, ops.Readout):
            part = part[-1:] if node.op.mode == "last" else part.sum(0, keepdims=True)
        total = total + part
    return total
