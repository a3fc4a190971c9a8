"""Neurons of their own, sums, gates and factors, element by element."""

from __future__ import annotations

import numpy as np

from stdeploy.exporters.event import pack
from stdeploy.exporters.event.formats import Format, Layout
from stdeploy.exporters.event.lowering import Lowering, neuron_by_channel, once, stepped
from stdeploy.graph import ops
from stdeploy.graph.graph import Node


def neuron(work: Lowering, node: Node) -> None:
    """A neuron that no product fires."""
    op = node.op
    if not isinstance(op, ops.Neuron):
        raise TypeError(f"{node.name} is not a Neuron")
    draft, name = work.draft, node.inputs[0]
    layout = draft.layout(name)
    by_position = draft.has(name, "position floats") and not draft.has(name, "channel floats")
    fields = {"channels": layout.channels, "positions": layout.positions}
    steps = {"x_steps": layout.stepped, "steps": True}
    if by_position:
        values, kind = pack.neuron(op, layout.channels)
        room = np.zeros((3, layout.channel_words * 64), np.float32)
        room[:, : layout.channels] = values
        room[0, layout.channels :], room[2, layout.channels :] = 1, np.inf
        fields |= {"neuron": draft.floats.add(room), "kind": kind, "size": room.shape[1]}
    else:
        fields |= neuron_by_channel(draft, op, layout.channels)
    places = {"x": draft.need(name, "position floats" if by_position else "channel floats")}
    places["y"] = draft.hold(node, "position bits" if by_position else "channel bits")
    draft.stage(
        "FirePositions" if by_position else "Fire", [node.name], places, fields, steps, state=layout.size
    )


def add(work: Lowering, node: Node) -> None:
    """Add: counts of one unit bit by bit, anything else in floats."""
    draft = work.draft
    a, b = (draft.layout(name) for name in node.inputs)
    out = draft.layout(node.name)
    shapes = {work.graph[name].value.shape for name in (*node.inputs, node.name)}
    same = len(shapes) == 1 and a.stepped == b.stepped == out.stepped
    if same and a.planes and b.planes and out.planes and a.unit == b.unit:
        _add_counts(work, node, a, b, out)
    else:
        elementwise(work, node, multiply=False)


def _add_counts(work: Lowering, node: Node, a: Layout, b: Layout, out: Layout) -> None:
    draft = work.draft
    both = [
        form
        for form in draft.held[node.inputs[0]]
        if draft.has(node.inputs[1], form) and form.endswith("bits")
    ]
    form: Format = both[0] if both else "channel bits"
    places = {"x": draft.need(node.inputs[0], form), "y": draft.need(node.inputs[1], form)}
    places["z"] = draft.hold(node, form)
    fields = {
        "x_planes": a.planes,
        "y_planes": b.planes,
        "z_planes": out.planes,
        "words": out.count(form) // out.planes,
    }
    steps = {"steps": out.stepped}
    draft.stage("AddCounts", [node.name], places, fields, steps, once=once(node))


def gate(work: Lowering, node: Node) -> None:
    """Mul: of spikes and counts that lie there as bits bit by bit, anything else in floats."""
    draft, (x, y) = work.draft, node.inputs
    a, b, out = draft.layout(x), draft.layout(y), draft.layout(node.name)
    bits = all(any(form.endswith("bits") for form in draft.held[name]) for name in (x, y))
    spread = all(_spreads(work.graph[name].value.shape, node.value.shape) for name in (x, y))
    if not (bits and spread and min(a.planes, b.planes) == 1 and out.planes == max(a.planes, b.planes)):
        elementwise(work, node, multiply=True)
        return
    places = {"x": draft.need(x, "channel bits"), "y": draft.need(y, "channel bits")}
    places["z"] = draft.hold(node, "channel bits")
    fields = {"channels": out.channels, "positions": out.positions}
    for side, layout in (("x", a), ("y", b)):
        fields |= {
            f"{side}_planes": layout.planes,
            f"{side}_channels": layout.channels,
            f"{side}_positions": layout.positions,
        }
    steps = {"x_steps": a.stepped, "y_steps": b.stepped, "steps": out.stepped}
    draft.stage("Gate", [node.name], places, fields, steps, once=once(node))


def _spreads(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a shape is the wanted one, or has one channel or one position for all."""
    return shape[:1] in ((1,), wanted[:1]) and (shape[1:] == wanted[1:] or set(shape[1:]) <= {1})


def elementwise(work: Lowering, node: Node, multiply: bool) -> None:
    """Add or Mul of floats; axes of size 1 spread."""
    draft = work.draft
    shapes = [work.graph[name].value.shape for name in node.inputs]
    plain = all(shape == node.value.shape for shape in shapes)
    by_position = plain and all(
        draft.has(name, "position floats") and not draft.has(name, "channel floats") for name in node.inputs
    )
    form: Format = "position floats" if by_position else "channel floats"
    places, fields, steps = {}, {"size": draft.layout(node.name).size, "multiply": int(multiply)}, {}
    for side, name, shape in zip("ab", node.inputs, shapes, strict=True):
        places[side] = draft.need(name, form)
        fields[f"{side}_size"] = draft.layout(name).size
        if shape != node.value.shape:
            index = np.arange(int(np.prod(shape))).reshape(shape)
            fields[f"{side}_index"] = draft.ints.add(np.broadcast_to(index, node.value.shape))
        steps[f"{side}_steps"] = stepped(work, name)
    places["y"] = draft.hold(node, form)
    steps["steps"] = stepped(work, node.name)
    draft.stage("Elementwise", [node.name], places, fields, steps, once=once(node))


def affine(work: Lowering, node: Node) -> None:
    """Affine and Scale."""
    op, draft, name = node.op, work.draft, node.inputs[0]
    layout = draft.layout(name)
    by_position = draft.has(name, "position floats") and not draft.has(name, "channel floats")
    form: Format = "position floats" if by_position else "channel floats"
    shift = -1
    if isinstance(op, ops.Affine):
        scale, shift = draft.floats.add(op.scale), draft.floats.add(op.shift)
    elif isinstance(op, ops.Scale):
        scale = draft.floats.add(np.full(layout.channels, op.factor, np.float32))
    else:
        raise TypeError(f"{node.name} is neither an Affine nor a Scale")
    fields = {
        "outer": layout.positions if by_position else 1,
        "channels": layout.channels,
        "inner": 1 if by_position else layout.positions,
        "scale": scale,
        "shift": shift,
    }
    places = {"x": draft.need(name, form), "y": draft.hold(node, form)}
    draft.stage("Affine", [node.name], places, fields, {"steps": layout.stepped}, once=once(node))
