"""What moves values and computes none: shapes, slices, concatenations, chosen tokens, constants."""

from __future__ import annotations

import numpy as np

from stdeploy.exporters.event.lowering import Lowering, once, stepped
from stdeploy.graph import ops
from stdeploy.graph.graph import Node
from stdeploy.graph.selection import select_of
from stdeploy.graph.weight import Array


def given(work: Lowering, node: Node) -> None:
    """Input."""
    work.draft.hold(node, "channel floats")


def returned(work: Lowering, node: Node) -> None:
    """Output."""
    work.draft.need(node.inputs[0], "channel floats")


def constant(work: Lowering, node: Node) -> None:
    """Constant."""
    op, draft = node.op, work.draft
    if not isinstance(op, ops.Constant):
        raise TypeError(f"{node.name} is not a Constant")
    size = draft.layout(node.name).size
    fields = {"size": size, "value": draft.floats.add(op.value), "stride": size if op.per_step else 0}
    places = {"y": draft.hold(node, "channel floats")}
    draft.stage("Constant", [node.name], places, fields, {"steps": op.per_step}, once=not op.per_step)


def flatten(work: Lowering, node: Node) -> None:
    """The same memory under another shape: all formats where only positions merge."""
    draft, name = work.draft, node.inputs[0]
    op = node.op
    if isinstance(op, ops.Flatten) and op.tokens:
        draft.held[node.name] = dict(draft.held[name])
    else:
        draft.held[node.name] = {"channel floats": draft.need(name, "channel floats")}


def cut(work: Lowering, node: Node) -> None:
    """Slice."""
    op, draft = node.op, work.draft
    if not isinstance(op, ops.Slice):
        raise TypeError(f"{node.name} is not a Slice")
    name = node.inputs[0]
    layout = draft.layout(name)
    if op.axis == 0 and layout.planes and draft.has(name, "channel bits"):
        words = layout.position_words
        fields = {
            "length": (op.stop - op.start) * words,
            "planes": layout.planes,
            "first": op.start * words,
            "to": 0,
            "x_plane": layout.channels * words,
            "y_plane": (op.stop - op.start) * words,
        }
        places = {"x": draft.held[name]["channel bits"], "y": draft.hold(node, "channel bits")}
        draft.stage("CopyRows", [node.name], places, fields, {"steps": layout.stepped}, once=once(node))
        return
    shape = work.graph[name].value.shape
    index = np.arange(layout.size).reshape(shape)
    cut = index[(slice(None),) * op.axis + (slice(op.start, op.stop),)]
    y = draft.hold(node, "channel floats")
    _gather(work, node, name, y, cut, None)


def _gather(work: Lowering, node: Node, name: str, y: str, index: Array, to: Array | None) -> None:
    draft = work.draft
    fields = {
        "x_size": draft.layout(name).size,
        "y_size": draft.layout(node.name).size,
        "size": index.size,
        "source": draft.ints.add(index),
        "to": -1 if to is None else draft.ints.add(to),
    }
    steps = {"x_steps": stepped(work, name), "steps": stepped(work, node.name)}
    places = {"x": draft.need(name, "channel floats"), "y": y}
    draft.stage("Gather", [node.name], places, fields, steps, once=once(node))


def concat(work: Lowering, node: Node) -> None:
    """Concat."""
    op, draft = node.op, work.draft
    if not isinstance(op, ops.Concat):
        raise TypeError(f"{node.name} is not a Concat")
    layouts = [draft.layout(name) for name in node.inputs]
    out = draft.layout(node.name)
    alike = all((i.planes, i.unit, i.stepped) == (out.planes, out.unit, out.stepped) for i in layouts)
    if op.axis == 0 and out.planes and alike:
        places = [draft.need(name, "channel bits") for name in node.inputs]
        y, to, words = draft.hold(node, "channel bits"), 0, out.position_words
        for place, layout in zip(places, layouts, strict=True):
            count = layout.channels * words
            fields = {"length": count, "planes": out.planes, "first": 0, "to": to}
            fields |= {"x_plane": count, "y_plane": out.channels * words}
            steps = {"steps": out.stepped}
            draft.stage("CopyRows", [node.name], {"x": place, "y": y}, fields, steps, once=once(node))
            to += count
        return
    for name in node.inputs:
        draft.need(name, "channel floats")
    y, start = draft.hold(node, "channel floats"), 0
    all_places = np.arange(out.size).reshape(node.value.shape)
    for name in node.inputs:
        shape = work.graph[name].value.shape
        part = (slice(None),) * op.axis + (slice(start, start + shape[op.axis]),)
        _gather(work, node, name, y, np.arange(int(np.prod(shape))), all_places[part])
        start += shape[op.axis]


def select(work: Lowering, node: Node) -> None:
    """Select."""
    op, draft = select_of(node), work.draft
    x, scores = node.inputs
    domain = work.graph[scores].value.domain
    fields = {
        "channels": draft.layout(x).channels,
        "tokens": draft.layout(x).positions,
        "kept": op.count,
        "largest": op.largest,
        "by_index": op.order == "index",
        "unit": -1 if domain.maximum is None else draft.floats.add([domain.scale]),
        "forced": 0,
    }
    places = {
        "x": draft.need(x, "channel floats"),
        "scores": draft.need(scores, "channel floats"),
        "y": draft.hold(node, "channel floats"),
        "chosen": draft.buffer(f"{node.name} chosen", "ints", op.count, stepped(work, node.name)),
    }
    steps = {
        "x_steps": stepped(work, x),
        "score_steps": stepped(work, scores),
        "steps": stepped(work, node.name),
    }
    draft.stage("Select", [node.name], places, fields, steps, once=once(node))
