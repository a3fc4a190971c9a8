"""From a graph to an event program: which stage does what, and in which format every value is handed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stdeploy.exporters.event import pack
from stdeploy.exporters.event.draft import Draft
from stdeploy.exporters.event.formats import Format, Layout
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.value import Value
from stdeploy.graph.weight import Array

Kernel = Literal["rows", "columns"]
KERNELS: tuple[Kernel, ...] = ("rows", "columns")
"""How a product is done: `rows` of dense weights at active inputs, or sparse `columns` over masked positions."""


@dataclass
class Lowering:
    """The draft that grows, and what of the graph is done already by an earlier node's stage."""

    draft: Draft
    kernels: Mapping[str, str]
    users: dict[str, list[Node]]
    done: set[str]
    unfolded: dict[tuple[Any, ...], str]

    @property
    def graph(self) -> Graph:
        return self.draft.graph

    def next_alone(self, node: Node, kind: type[ops.Op]) -> Node | None:
        """The only reader of a node's value, where it is of `kind`."""
        readers = self.users[node.name]
        return readers[0] if len(readers) == 1 and isinstance(readers[0].op, kind) else None


def lower(graph: Graph, kernels: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Array]]:
    """The program of `graph`: a header of plain data, and its arrays `weights` (float32) and `indices` (int32).

    `kernels`: by the name of a Linear or Conv, rows or columns; rows where a product is not named.
    """
    work = Lowering(Draft(graph), kernels, graph.users(), set(), {})
    for node in graph:
        if node.name not in work.done:
            LOWER[type(node.op)](work, node)
    draft = work.draft
    header = {
        "steps": graph.steps,
        "timed": any(s["fields"].get("bias_stride") or s["fields"].get("stride") for s in draft.stages),
        "buffers": draft.buffers,
        "stages": draft.stages,
        "neurons": {n.name: _shown(draft, n) for n in graph.neurons},
        "selections": {
            n.name: {"buffer": f"{n.name} chosen", "count": _select(n).count} for n in graph.of(ops.Select)
        },
        "input": _input(draft, graph.inputs[0]),
        "outputs": [_output(draft, n) for n in graph.outputs],
    }
    return header, {"weights": draft.floats.array(), "indices": draft.ints.array()}


def _shown(draft: Draft, node: Node) -> dict[str, Any]:
    form: Format = next(iter(draft.held[node.name]))
    return {"buffer": draft.held[node.name][form], "format": form, "shape": list(node.value.shape)}


def _input(draft: Draft, node: Node) -> dict[str, Any]:
    op = node.op
    if not isinstance(op, ops.Input):
        raise TypeError(f"{node.name} is not an Input")
    return {
        "name": node.name,
        "buffer": draft.held[node.name]["channel floats"],
        "shape": list(op.shape),
        "layout": op.layout,
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


def _select(node: Node) -> ops.Select:
    if not isinstance(node.op, ops.Select):
        raise TypeError(f"{node.name} is not a Select")
    return node.op


def _once(node: Node) -> bool:
    return node.value.time == "static"


def _stepped(work: Lowering, name: str) -> bool:
    return work.draft.layout(name).stepped


# Products


def _product(work: Lowering, node: Node) -> None:
    """Linear and Conv, with the neuron that alone reads the sums."""
    op = node.op
    if not isinstance(op, ops.Linear | ops.Conv):
        raise TypeError(f"{node.name} is not a product")
    x = work.graph[node.inputs[0]]
    windows = (
        pack.identity(work.draft.layout(x.name).positions)
        if isinstance(op, ops.Linear)
        else pack.windows(op, x.value.shape[1:], node.value.shape[1:])
    )
    bits = work.draft.layout(x.name).planes > 0
    if bits and work.kernels.get(node.name, "rows") == "columns":
        _columns(work, node, op, x, windows)
    else:
        _rows(work, node, op, x, windows, bits)


def _fused(work: Lowering, node: Node) -> tuple[Node, ops.Neuron | None]:
    """The node whose value the product's stage writes: the neuron behind it, or itself."""
    behind = work.next_alone(node, ops.Neuron)
    if behind is None or not isinstance(behind.op, ops.Neuron):
        return node, None
    work.done.add(behind.name)
    return behind, behind.op


def _bias(work: Lowering, bias: Array | None, outputs: int, room: bool) -> tuple[int, int]:
    """Place of a bias and its stride from step to step."""
    if bias is None:
        return -1, 0
    values = np.asarray(bias, np.float32)
    values = pack.padded(values, outputs, 0) if room else values
    return work.draft.floats.add(values), values.shape[-1] if values.ndim == 2 else 0


def _rows(
    work: Lowering, node: Node, op: ops.Linear | ops.Conv, x: Node, windows: pack.Windows, bits: bool
) -> None:
    draft, layout = work.draft, work.draft.layout(x.name)
    made = draft.events(x.name)
    places = {"counts": made["counts"], "events": made["rows"], "places": made["places"]}
    places |= {"values": made["values"]} if "values" in made else {}
    target, neuron = _fused(work, node)
    outputs = node.value.shape[0]
    blocks, vectors = pack.blocks_of(outputs)
    weight, nonzero = pack.rows(pack.unit_scaled(pack.matrix(op), layout.unit if bits else 1))
    bias, stride = _bias(work, op.bias, outputs, room=True)
    fields = {
        "x_positions": layout.positions,
        "channels": layout.channels,
        "positions": windows.positions,
        "outputs": outputs,
        "vectors": vectors,
        "blocks": blocks,
        "rows": windows.taps * layout.channels,
        "weight": draft.floats.add(weight),
        "nonzero": draft.ints.add(nonzero),
        "bias": bias,
        "bias_stride": stride,
        "taps": draft.ints.add(windows.table()),
    }
    state = 0
    if neuron is not None:
        values, kind = pack.neuron(neuron, outputs)
        room = pack.padded(values, outputs, 0)
        room[0, outputs:], room[2, outputs:] = 1, np.inf  # channels that are not there never fire
        fields |= {"neuron": draft.floats.add(room), "kind": kind}
        state = windows.positions * blocks * vectors * pack.LANES
    y = draft.hold(target, "position bits" if neuron else "position floats")
    names = [node.name] if neuron is None else [node.name, target.name]
    steps = {"x_steps": layout.stepped, "steps": target.value.time == "step"}
    draft.stage("Rows", names, {**places, "y": y}, fields, steps, state=state, once=_once(target))


def _unfold(work: Lowering, x: Node, op: ops.Conv, windows: pack.Windows) -> str:
    """Bits of every (tap, channel) of a convolution's input, made once for all that see the same windows."""
    draft, layout = work.draft, work.draft.layout(x.name)
    key = (x.name, op.weight.shape[2:], op.stride, op.padding, op.dilation)
    if key not in work.unfolded:
        place = draft.need(x.name, "channel bits")
        count = layout.planes * windows.taps * layout.channels * -(-windows.positions // 64)
        name = draft.buffer(
            f"{x.name} unfolded for {'x'.join(map(str, key[1]))} {len(draft.stages)}",
            "bits",
            count,
            layout.stepped,
        )
        fields = {
            "planes": layout.planes,
            "channels": layout.channels,
            "x_positions": layout.positions,
            "positions": windows.positions,
            "taps": windows.taps,
            "runs": draft.ints.add(windows.runs()),
        }
        draft.stage(
            "Unfold", [x.name], {"x": place, "y": name}, fields, {"steps": layout.stepped}, once=_once(x)
        )
        work.unfolded[key] = name
    return work.unfolded[key]


def _columns(work: Lowering, node: Node, op: ops.Linear | ops.Conv, x: Node, windows: pack.Windows) -> None:
    draft, layout = work.draft, work.draft.layout(x.name)
    place = (
        draft.need(x.name, "channel bits") if isinstance(op, ops.Linear) else _unfold(work, x, op, windows)
    )
    target, neuron = _fused(work, node)
    outputs = node.value.shape[0]
    weights = pack.unit_scaled(pack.matrix(op), layout.unit)
    weights.sort_indices()
    bias, stride = _bias(work, op.bias, outputs, room=False)
    fields = {
        "planes": layout.planes,
        "inputs": windows.taps * layout.channels,
        "positions": windows.positions,
        "outputs": outputs,
        "ends": draft.ints.add(weights.indptr),
        "columns": draft.ints.add(weights.indices),
        "data": draft.floats.add(weights.data),
        "fan_out": draft.ints.add(np.bincount(weights.indices, minlength=weights.shape[1])),
        "bias": bias,
        "bias_stride": stride,
    }
    if neuron is not None:
        fields |= _neuron_by_channel(draft, neuron, outputs)
    y = draft.hold(target, "channel bits" if neuron else "channel floats")
    names = [node.name] if neuron is None else [node.name, target.name]
    steps = {"x_steps": layout.stepped, "steps": target.value.time == "step"}
    state = outputs * windows.positions if neuron else 0
    draft.stage("Columns", names, {"x": place, "y": y}, fields, steps, state=state, once=_once(target))


def _neuron_by_channel(draft: Draft, op: ops.Neuron, channels: int) -> dict[str, int]:
    values, kind = pack.neuron(op, channels)
    return {"neuron": draft.floats.add(np.ascontiguousarray(values.T)), "kind": kind}


# Attention


def _matmul(work: Lowering, node: Node) -> None:
    op = node.op
    if not isinstance(op, ops.MatMul):
        raise TypeError(f"{node.name} is not a MatMul")
    a, b = (work.graph[name] for name in node.inputs)
    draft = work.draft
    alike = a.value.time == b.value.time == node.value.time
    spikes = draft.layout(a.name).planes == 1 and a.value.domain.scale == 1
    if (
        op.over == "tokens"
        and alike
        and spikes
        and draft.layout(b.name).planes == 1
        and b.value.domain.scale == 1
    ):
        _tokens(work, node, op, a, b)
    elif op.over == "pairs" and alike and spikes:
        _pairs(work, node, op, a, b)
    else:
        _float_product(work, node, op, a, b)


def _starts(heads: tuple[int, ...]) -> list[int]:
    return [int(n) for n in np.concatenate([[0], np.cumsum(heads)[:-1]])] if heads else []


def _pair_starts(op: ops.MatMul) -> list[int]:
    return _starts(tuple(m * n for m, n in zip(op.heads_a, op.heads_b, strict=True)))


def _tokens(work: Lowering, node: Node, op: ops.MatMul, a: Node, b: Node) -> None:
    draft, layout = work.draft, work.draft.layout(a.name)
    table = [
        (first, n, pair + d * n)
        for first, pair, m, n in zip(
            _starts(op.heads_b), _pair_starts(op), op.heads_a, op.heads_b, strict=True
        )
        for d in range(m)
    ]
    places = {
        "a": draft.need(a.name, "channel bits"),
        "b": draft.need(b.name, "channel bits"),
        "y": draft.hold(node, "channel floats"),
    }
    fields = {
        "a_channels": layout.channels,
        "positions": layout.positions,
        "pairs": node.value.shape[0],
        "table": draft.ints.add(table),
    }
    draft.stage("Tokens", [node.name], places, fields, {"steps": layout.stepped}, once=_once(node))


def _pairs(work: Lowering, node: Node, op: ops.MatMul, a: Node, b: Node) -> None:
    draft, layout = work.draft, work.draft.layout(a.name)
    heads = zip(_starts(op.heads_a), _pair_starts(op), op.heads_a, op.heads_b, strict=True)
    table = [(first, m, pair + e, n) for first, pair, m, n in heads for e in range(n)]
    places = {"a": draft.need(a.name, "channel bits"), "pair": draft.need(b.name, "channel floats")}
    names, target, factor = [node.name], node, 1.0
    scaled = work.next_alone(node, ops.Scale)
    if scaled is not None and isinstance(scaled.op, ops.Scale):
        target, factor = scaled, scaled.op.factor
        names.append(scaled.name)
        work.done.add(scaled.name)
    target, neuron = _fused(work, target)
    outputs = node.value.shape[0]
    fields = {
        "positions": layout.positions,
        "outputs": outputs,
        "pairs": b.value.shape[0],
        "table": draft.ints.add(table),
        "scale": draft.floats.add([factor]),
    }
    if neuron is not None:
        fields |= _neuron_by_channel(draft, neuron, outputs)
        names.append(target.name)
    places["y"] = draft.hold(target, "channel bits" if neuron else "channel floats")
    state = outputs * layout.positions if neuron else 0
    draft.stage(
        "Pairs",
        names,
        places,
        fields,
        {"steps": target.value.time == "step"},
        state=state,
        once=_once(target),
    )


def _float_product(work: Lowering, node: Node, op: ops.MatMul, a: Node, b: Node) -> None:
    draft, la, lb = work.draft, work.draft.layout(a.name), work.draft.layout(b.name)
    heads = len(op.heads_b)
    firsts_a = _starts(op.heads_a) or [0] * heads
    sizes_a = list(op.heads_a) or [0] * heads
    starts = _pair_starts(op) if op.over in ("tokens", "pairs") else [0] * heads
    table = list(zip(firsts_a, sizes_a, _starts(op.heads_b), op.heads_b, starts, strict=True))
    fields = {
        "a_size": la.size,
        "b_size": lb.size,
        "size": draft.layout(node.name).size,
        "over": ("channels", "keys", "tokens", "pairs").index(op.over),
        "heads": heads,
        "table": draft.ints.add(table),
        "n": la.positions // lb.positions if op.over == "keys" else la.positions,
        "m": lb.positions,
    }
    places = {
        "a": draft.need(a.name, "channel floats"),
        "b": draft.need(b.name, "channel floats"),
        "y": draft.hold(node, "channel floats"),
    }
    steps = {"a_steps": la.stepped, "b_steps": lb.stepped, "steps": node.value.time == "step"}
    draft.stage("Product", [node.name], places, fields, steps, once=_once(node))


# Neurons, sums and everything in floats


def _neuron(work: Lowering, node: Node) -> None:
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
        fields |= _neuron_by_channel(draft, op, layout.channels)
    places = {"x": draft.need(name, "position floats" if by_position else "channel floats")}
    places["y"] = draft.hold(node, "position bits" if by_position else "channel bits")
    draft.stage(
        "FirePositions" if by_position else "Fire", [node.name], places, fields, steps, state=layout.size
    )


def _add(work: Lowering, node: Node) -> None:
    draft = work.draft
    a, b = (draft.layout(name) for name in node.inputs)
    out = draft.layout(node.name)
    same = (a.channels, a.positions, a.stepped) == (b.channels, b.positions, b.stepped)
    if same and a.planes and b.planes and out.planes and a.unit == b.unit and out.stepped == a.stepped:
        _add_counts(work, node, a, b, out)
    else:
        _elementwise(work, node, multiply=False)


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
    draft.stage("AddCounts", [node.name], places, fields, steps, once=_once(node))


def _elementwise(work: Lowering, node: Node, multiply: bool) -> None:
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
        steps[f"{side}_steps"] = _stepped(work, name)
    places["y"] = draft.hold(node, form)
    steps["steps"] = _stepped(work, node.name)
    draft.stage("Elementwise", [node.name], places, fields, steps, once=_once(node))


def _affine(work: Lowering, node: Node) -> None:
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
    draft.stage("Affine", [node.name], places, fields, {"steps": layout.stepped}, once=_once(node))


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
    draft.stage("Segments", [node.name], places, fields, {"steps": layout.stepped}, once=_once(node))


def _pool(work: Lowering, node: Node) -> None:
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
    draft.stage("Union", [node.name], places, fields, {"steps": layout.stepped}, once=_once(node))


def _reduce(work: Lowering, node: Node) -> None:
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


def _flatten(work: Lowering, node: Node) -> None:
    """The same memory under another shape: all formats where only positions merge."""
    draft, name = work.draft, node.inputs[0]
    op = node.op
    if isinstance(op, ops.Flatten) and op.tokens:
        draft.held[node.name] = dict(draft.held[name])
    else:
        draft.held[node.name] = {"channel floats": draft.need(name, "channel floats")}


def _slice(work: Lowering, node: Node) -> None:
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
        draft.stage("CopyRows", [node.name], places, fields, {"steps": layout.stepped}, once=_once(node))
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
    steps = {"x_steps": _stepped(work, name), "steps": _stepped(work, node.name)}
    places = {"x": draft.need(name, "channel floats"), "y": y}
    draft.stage("Gather", [node.name], places, fields, steps, once=_once(node))


def _concat(work: Lowering, node: Node) -> None:
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
            draft.stage("CopyRows", [node.name], {"x": place, "y": y}, fields, steps, once=_once(node))
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


def _select_tokens(work: Lowering, node: Node) -> None:
    op, draft = _select(node), work.draft
    x, scores = node.inputs
    stepped = node.value.time == "step"
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
        "chosen": draft.buffer(f"{node.name} chosen", "ints", op.count, stepped),
    }
    steps = {"x_steps": _stepped(work, x), "score_steps": _stepped(work, scores), "steps": stepped}
    draft.stage("Select", [node.name], places, fields, steps, once=_once(node))


def _readout(work: Lowering, node: Node) -> None:
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
    if layout.stepped:
        steps, state = {"x_steps": True}, layout.size
    else:
        fields["x_steps"], steps, state = 0, {}, 0
    draft.stage("Readout", [node.name], places, fields, steps, state=state)


def _constant(work: Lowering, node: Node) -> None:
    op, draft = node.op, work.draft
    if not isinstance(op, ops.Constant):
        raise TypeError(f"{node.name} is not a Constant")
    size = draft.layout(node.name).size
    fields = {"size": size, "value": draft.floats.add(op.value), "stride": size if op.per_step else 0}
    places = {"y": draft.hold(node, "channel floats")}
    draft.stage("Constant", [node.name], places, fields, {"steps": op.per_step}, once=not op.per_step)


def _given(work: Lowering, node: Node) -> None:
    work.draft.hold(node, "channel floats")


def _returned(work: Lowering, node: Node) -> None:
    work.draft.need(node.inputs[0], "channel floats")


LOWER: dict[type[ops.Op], Callable[[Lowering, Node], None]] = {
    ops.Input: _given,
    ops.Output: _returned,
    ops.Constant: _constant,
    ops.Linear: _product,
    ops.Conv: _product,
    ops.Affine: _affine,
    ops.Scale: _affine,
    ops.Neuron: _neuron,
    ops.MaxPool: _pool,
    ops.AvgPool: _pool,
    ops.Reduce: _reduce,
    ops.Add: _add,
    ops.Mul: lambda work, node: _elementwise(work, node, multiply=True),
    ops.MatMul: _matmul,
    ops.Flatten: _flatten,
    ops.Concat: _concat,
    ops.Slice: _slice,
    ops.Select: _select_tokens,
    ops.Readout: _readout,
}
"""What each operator of the catalogue becomes."""
