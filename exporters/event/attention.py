"""Products of attention as stages: on bits where both operands are spikes, else in floats."""

from __future__ import annotations

import numpy as np

from stdeploy.exporters.event.lowering import Lowering, fused, neuron_by_channel, once
from stdeploy.graph import ops
from stdeploy.graph.graph import Node


def matmul(work: Lowering, node: Node) -> None:
    """MatMul."""
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
    draft.stage("Tokens", [node.name], places, fields, {"steps": layout.stepped}, once=once(node))


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
    target, neuron = fused(work, target)
    outputs = node.value.shape[0]
    fields = {
        "positions": layout.positions,
        "outputs": outputs,
        "pairs": b.value.shape[0],
        "table": draft.ints.add(table),
        "scale": draft.floats.add([factor]),
    }
    if neuron is not None:
        fields |= neuron_by_channel(draft, neuron, outputs)
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
        once=once(target),
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
    draft.stage("Product", [node.name], places, fields, steps, once=once(node))
