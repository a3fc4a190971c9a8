"""Sums, products, scaling and BatchNorm, in whatever layout their operands already have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stdeploy.exporters.onnx.layout import Form, Layouts, Lowered
from stdeploy.graph.graph import Node
from stdeploy.graph.ops import Affine, Constant, Scale
from stdeploy.graph.value import Value
from stdeploy.graph.weight import Array


def emit_scale(layouts: Layouts, node: Node, op: Scale, x: Lowered) -> Lowered:
    """factor * x, in x's own form."""
    tensor = layouts.read(x, x.native, node.name)
    factor = layouts.emitter.constant(np.asarray(op.factor), f"{node.name}.factor")
    y = layouts.emitter.op("Mul", [tensor, factor], node.name)
    return Lowered(node.value, {x.native: y}, sizes=x.sizes)


def emit_affine(layouts: Layouts, node: Node, op: Affine, x: Lowered) -> Lowered:
    """scale * x + shift per channel, as a multiplication and an addition."""
    em = layouts.emitter
    form: Form = "last" if x.native == "last" else "first"
    tensor = layouts.read(x, form, node.name)
    trailing = 0 if form == "last" else len(x.value.shape) - 1
    shape = (-1, *([1] * trailing))
    scale = em.constant(op.scale.reshape(shape), f"{node.name}.scale")
    shift = em.constant(op.shift.reshape(shape), f"{node.name}.shift")
    y = em.op("Add", [em.op("Mul", [tensor, scale], f"{node.name}/scaled"), shift], node.name)
    return Lowered(node.value, {form: y})


def emit_binary(layouts: Layouts, node: Node, kind: str, args: Sequence[Lowered]) -> Lowered:
    """Add or Mul of two values; a constant broadcasts over the batch instead of being repeated."""
    a, b = args
    if (a.constant is None) != (b.constant is None):
        x, c = (a, b) if b.constant is not None else (b, a)
        if c.constant is not None and not (c.constant.per_step and x.value.time == "static"):
            return _with_constant(layouts, node, kind, x, c.constant, c.value)
    step = node.value.time == "step"
    form = _common_form(a, b, node.value)
    if form == "last" and a.value.shape != b.value.shape:
        return _gated_rows(layouts, node, kind, a, b)
    tensors = [layouts.read(x, form, node.name, step=step) for x in (a, b)]
    sizes = a.sizes if form in ("maps", "pairs") else ()
    return Lowered(node.value, {form: layouts.emitter.op(kind, tensors, node.name)}, sizes=sizes)


def _common_form(a: Lowered, b: Lowered, value: Value) -> Form:
    if a.native == b.native and a.native in ("maps", "pairs") and a.sizes == b.sizes:
        return a.native
    if len(value.shape) == 1:
        return "first"
    if a.value.shape == b.value.shape:
        return "last" if "last" in a.tensors or "last" in b.tensors else "first"
    wide, narrow = (a, b) if a.value.shape == value.shape else (b, a)
    gate = wide.value.shape == value.shape and (
        _per_channel(narrow.value, value) or _per_row(narrow.value, value)
    )
    return "last" if gate and wide.native == "last" else "first"


def _per_channel(gate: Value, value: Value) -> bool:
    return gate.shape[0] == value.shape[0] and math.prod(gate.shape[1:]) == 1


def _per_row(gate: Value, value: Value) -> bool:
    return gate.shape[0] == 1 and gate.shape[1:] == value.shape[1:]


def _gated_rows(layouts: Layouts, node: Node, kind: str, a: Lowered, b: Lowered) -> Lowered:
    """Rows [lead * N, C] with one factor per row, or with one per channel of each sample and step."""
    em, value, step = layouts.emitter, node.value, node.value.time == "step"
    gate = a if a.value.shape != value.shape else b
    tensors = [layouts.read(x, "last", node.name, step=step) for x in (a, b)]
    if _per_row(gate.value, value):
        return Lowered(value, {"last": em.op(kind, tensors, node.name)})
    positions = math.prod(value.shape[1:])
    views = [
        em.reshape(t, (-1, 1 if x is gate else positions, value.shape[0]), node.name)
        for t, x in zip(tensors, (a, b), strict=True)
    ]
    return Lowered(
        value, {"last": em.reshape(em.op(kind, views, node.name), (-1, value.shape[0]), node.name)}
    )


def _with_constant(
    layouts: Layouts, node: Node, kind: str, x: Lowered, constant: Constant, value: Value
) -> Lowered:
    em, out = layouts.emitter, node.value.shape
    values, per_step = constant.value, constant.per_step
    uniform = values if per_step else values[None]
    form: Form = "last" if x.native == "last" and x.value.shape == out else "first"
    tensor = layouts.read(x, form, node.name)
    outer = (layouts.steps,) if per_step else ()
    if form == "first":
        if per_step:
            tensor = em.reshape(tensor, (*outer, -1, *x.value.shape), node.name)
        const = em.constant(values.reshape(*outer, 1, *value.shape), f"{node.name}.constant")
        y = em.op(kind, [tensor, const], node.name)
        return Lowered(node.value, {form: em.reshape(y, (-1, *out), node.name) if per_step else y})
    rows, positions = _rows(uniform, value, out)
    if not per_step and positions == 1:
        y = em.op(kind, [tensor, em.constant(rows.reshape(-1), f"{node.name}.constant")], node.name)
        return Lowered(node.value, {form: y})
    view = em.reshape(tensor, (*outer, -1, math.prod(out[1:]), out[0]), node.name)
    const = em.constant(rows.reshape(*outer, 1, positions, -1), f"{node.name}.constant")
    y = em.op(kind, [view, const], node.name)
    return Lowered(node.value, {form: em.reshape(y, (-1, out[0]), node.name)})


def _rows(values: Array, value: Value, out: tuple[int, ...]) -> tuple[Array, int]:
    """`values [T or 1, C, *spatial]` as [T or 1, N or 1, C] and the number of positions kept."""
    if math.prod(value.shape[1:]) > 1 and value.shape[1:] != out[1:]:
        values = np.broadcast_to(values, (values.shape[0], value.shape[0], *out[1:]))
    rows = values.reshape(values.shape[0], value.shape[0], -1).swapaxes(1, 2)
    if np.all(rows == rows[:, :1]):
        rows = rows[:, :1]
    return rows, int(rows.shape[1])
