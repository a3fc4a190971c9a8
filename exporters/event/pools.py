"""Pools, reductions and the readout over time."""

from __future__ import annotations

import numpy as np

from stdeploy.exporters.event import pack
from stdeploy.exporters.event.formats import Layout
from stdeploy.exporters.event.lowering import Lowering, once
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.value import Value
from stdeploy.graph.weight import Array


def empty_window(graph: Graph, node: Node) -> str | None:
    """Why a node cannot be run, if it is a MaxPool of bits, which have no -inf."""
    if not isinstance(node.op, ops.MaxPool):
        return None
    x = graph[node.inputs[0]].value
    bits = Layout.of(x).planes > 0
    if not bits or np.all(np.diff(pack.windows(node.op, x.shape[1:], node.value.shape[1:]).ends)):
        return None
    return "a window holds nothing but padding: its maximum is -inf, which is neither a spike nor a count of them"


def pool(work: Lowering, node: Node) -> None:
    """MaxPool and AvgPool."""
    op = node.op
    if not isinstance(op, ops.MaxPool | ops.AvgPool):
        raise TypeError(f"{node.name} is not a pool")
    x = work.graph[node.inputs[0]]
    layout = work.draft.layout(x.name)
    windows = pack.windows(op, x.value.shape[1:], node.value.shape[1:])
    if isinstance(op, ops.MaxPool) and layout.planes == 1:
        _union(work, node, windows, layout)
        return
    channels, counts = layout.channels, np.diff(windows.ends)
    ends = np.concatenate([[0], np.cumsum(np.tile(counts, channels))])
    per_channel = windows.pairs[:, 1][None] + layout.positions * np.arange(channels)[:, None]
    divisor = None
    if isinstance(op, ops.AvgPool):
        divisor = np.tile(_divisors(op, x.value.shape[1:], windows), channels)
    _segments(work, node, ends, per_channel.reshape(-1), divisor)


def _divisors(op: ops.AvgPool, shape: tuple[int, ...], windows: pack.Windows) -> Array:
    """What each window's sum is divided by: as PyTorch, what lies beyond the stated padding is never counted."""
    if not op.count_include_pad:
        return np.diff(windows.ends)
    larger = tuple(n + 2 * p for n, p in zip(shape, op.padding, strict=True))
    inside = ops.AvgPool(op.kernel, op.stride, (0,) * len(shape), op.ceil_mode)
    axes = ("channel", *(f"s{i}" for i in range(len(shape))))
    value = Value((1, *shape), axes, "static")
    return np.diff(pack.windows(inside, larger, op.infer([value], 1).shape[1:]).ends)


def _union(work: Lowering, node: Node, windows: pack.Windows, layout: Layout) -> None:
    draft = work.draft
    fields = {
        "channels": layout.channels,
        "x_positions": layout.positions,
        "positions": windows.positions,
        "windows": draft.ints.add(windows.table()),
    }
    places = {"x": draft.need(node.inputs[0], "position bits"), "y": draft.hold(node, "position bits")}
    draft.stage("Union", [node.name], places, fields, {"steps": layout.stepped}, once=once(node))


def reduce(work: Lowering, node: Node) -> None:
    """Reduce."""
    op = node.op
    if not isinstance(op, ops.Reduce):
        raise TypeError(f"{node.name} is not a Reduce")
    shape = work.graph[node.inputs[0]].value.shape
    kept = [i for i in range(len(shape)) if i not in op.over]
    order = np.arange(int(np.prod(shape))).reshape(shape).transpose([*kept, *op.over])
    terms = int(np.prod([shape[i] for i in op.over]))
    ends = np.arange(0, order.size + 1, terms)
    divisor = np.full(order.size // terms, terms if op.mean else 1)
    _segments(work, node, ends, order.reshape(-1), divisor)


def _segments(work: Lowering, node: Node, ends: Array, places_in: Array, divisor: Array | None) -> None:
    """y = max, or sum / divisor, over segments of x's elements."""
    draft, layout = work.draft, work.draft.layout(node.inputs[0])
    fields = {
        "x_size": layout.size,
        "size": draft.layout(node.name).size,
        "table": draft.ints.add(np.concatenate([ends, places_in])),
        "divisor": -1 if divisor is None else draft.floats.add(divisor),
    }
    places = {"x": draft.need(node.inputs[0], "channel floats"), "y": draft.hold(node, "channel floats")}
    draft.stage("Segments", [node.name], places, fields, {"steps": layout.stepped}, once=once(node))


def readout(work: Lowering, node: Node) -> None:
    """Readout."""
    op, draft, name = node.op, work.draft, node.inputs[0]
    if not isinstance(op, ops.Readout):
        raise TypeError(f"{node.name} is not a Readout")
    layout = draft.layout(name)
    fields = {
        "size": layout.size,
        "mode": ("mean", "sum", "last").index(op.mode),
        "total": work.graph.steps,
    }
    places = {"x": draft.need(name, "channel floats"), "y": draft.hold(node, "channel floats")}
    steps = {"x_steps": True} if layout.stepped else {}
    if not layout.stepped:
        fields["x_steps"] = 0
    draft.stage("Readout", [node.name], places, fields, steps, state=layout.size)
