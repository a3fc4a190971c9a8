"""Concatenation: of values, and of constants (a class or anchor token) with values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from stdeploy.graph.ops import Concat, Constant
from stdeploy.trace.aten_elementwise import arranged_constant
from stdeploy.trace.aten_views import token_axis
from stdeploy.trace.axes import Layout, LayoutError, align, length
from stdeploy.trace.lowering import Call, Chosen, Lowering, Refusal, Traced, fresh, lowers, safe_name


@lowers("cat", "concat", "concatenate", "hstack")
def cat(ctx: Lowering, call: Call) -> Traced:
    given, along = list(call["tensors"]), call.get("dim", 1)
    if any(isinstance(t, Chosen) for t in given):
        return with_fixed(given, along)
    traced = [ctx.tensor(t) for t in given if not isinstance(t, torch.Tensor)]
    if len(given) == 1:
        return traced[0]
    first = traced[0].layout
    dim = first.dim(along)
    if all(t is given[0] for t in given) and not any(a.role == "axis" for a in first.dims[dim]):
        return traced[0].view(first.repeat([len(given) if i == dim else 1 for i in range(len(first.dims))]))
    traced = [token_axis(ctx, call, t, dim) for t in traced]
    axis = _joined_axis(traced, dim)
    rest = iter(traced)
    tensors = [
        _constant_part(ctx, call, traced[0], t, dim, axis) if isinstance(t, torch.Tensor) else next(rest)
        for t in given
    ]
    layouts = [t.layout for t in tensors]
    base = next((x for x in layouts if any(ctx.time in d for d in x.dims)), layouts[0])
    for other in layouts:
        if other is not base:
            _same_outside(base, other, dim, axis)
    name = ctx.add(Concat(axis), [t.name for t in tensors], call, "concat")
    new = fresh(ctx.builder.value(name).shape[axis])
    dims = tuple(new if i == dim else d for i, d in enumerate(base.dims))
    return Traced(name, Layout(dims, tuple(new if i == axis else a for i, a in enumerate(base.axes))))


def with_fixed(given: list[Any], index: int) -> Chosen:
    """Positions that are always kept (the anchor's) before those that a ranking yields."""
    *ahead, x = given
    if not isinstance(x, Chosen) or any(not isinstance(t, torch.Tensor) for t in ahead):
        raise Refusal("it joins positions of a selection to anything but constant ones before them")
    dim = x.layout.dim(index)
    if x.layout.dims[dim] != x.slots or x.order == "any" or x.lead is not None:
        raise Refusal(
            "it joins positions of a selection along another dimension, in no order, or of a flat list"
        )
    fixed = []
    for column in torch.cat(ahead, dim).unbind(dim):
        if not bool((column == column.flatten()[0]).all()):
            raise Refusal("it joins positions that are not the same for every step and sample")
        fixed.append(int(column.flatten()[0]))
    slots = fresh(len(fixed) + length(x.slots))
    dims = tuple(slots if i == dim else d for i, d in enumerate(x.layout.dims))
    return replace(x, layout=Layout(dims, (slots,)), ahead=(*fixed, *x.ahead))


def _constant_part(
    ctx: Lowering, call: Call, guide: Traced, tensor: torch.Tensor, dim: int, axis: int
) -> Traced:
    """A constant (a class or anchor token, say) that is joined to values laid out as `guide`."""
    atoms = fresh(tensor.shape[dim])
    dims = tuple(atoms if i == dim else d for i, d in enumerate(guide.layout.dims))
    layout = Layout(dims, tuple(atoms if i == axis else a for i, a in enumerate(guide.layout.axes)))
    array, seen, per_step = arranged_constant(ctx, Traced(guide.name, layout), tensor)
    shape = tuple(length(a) for a in layout.axes)
    whole = np.broadcast_to(array, (ctx.steps, *shape) if per_step else shape)
    op = Constant(np.array(whole), ctx.value(guide).axes, per_step)
    name = safe_name(ctx.names.get(tensor) or f"{call.path or call.operator}.token")
    return Traced(ctx.builder.add(op, name=name, source=call.path), seen.layout)


def _joined_axis(tensors: list[Traced], dim: int) -> int:
    """The axis that is the whole of torch dimension `dim` in every tensor."""
    for k in range(len(tensors[0].layout.axes)):
        if all(len(t.layout.axes) > k and t.layout.axes[k] == t.layout.dims[dim] for t in tensors):
            return k
    raise Refusal("it joins along a dimension that is not one whole axis")


def _same_outside(first: Layout, other: Layout, dim: int, axis: int) -> None:
    """Refusal where the other dimensions and axes do not correspond."""

    def blank(layout: Layout) -> Layout:
        dims = [() if i == dim else d for i, d in enumerate(layout.dims)]
        return Layout(tuple(dims), tuple(() if i == axis else a for i, a in enumerate(layout.axes)))

    try:
        a, b, pairs = align(blank(first), blank(other))
    except LayoutError as error:
        raise Refusal(str(error)) from error
    match = {q: p for group in pairs for p, q in group}
    if [[match.get(q) for q in ax] for ax in b.axes] != [list(ax) for ax in a.axes]:
        raise Refusal("it joins tensors whose axes are arranged differently")
