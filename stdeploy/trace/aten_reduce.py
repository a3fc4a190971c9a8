"""Sums and means over axes of the value, and over the steps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stdeploy.graph.ops import Linear, Readout, Reduce
from stdeploy.graph.weight import Weight
from stdeploy.trace.aten_elementwise import scaled
from stdeploy.trace.axes import Atom, Layout, groups, length
from stdeploy.trace.lowering import Call, Lowering, Refusal, Traced, lowers


def _within_channels(ctx: Lowering, call: Call, x: Traced, gone: set[Atom], mean: bool) -> Traced:
    """Sum over a factor of the channels, each head's say: a Linear of ones and zeros."""
    axis = x.layout.axes[0] if x.layout.axes else ()
    kept = tuple(a for a in axis if a not in gone)
    if not kept or kept == axis:
        return x
    head = groups(axis, kept)
    values = np.zeros((length(kept), head.size))
    values[head, np.arange(head.size)] = length(kept) / head.size if mean else 1.0
    name = ctx.add(Linear(Weight.dense(values)), [x.name], call, "heads")
    return Traced(name, Layout(x.layout.dims, (kept, *x.layout.axes[1:])))


@lowers("mean", "sum")
def reduce(ctx: Lowering, call: Call) -> Traced:
    x = ctx.tensor(call["self"])
    mean = call.operator == "mean"
    given = call.get("dim")
    listed: list[Any] = [given] if isinstance(given, int) else list(given or range(len(x.layout.dims)))
    dims = sorted({x.layout.dim(i) for i in listed})
    gone = {a for i in dims for a in x.layout.dims[i]}
    if any(a.role == "batch" for a in gone):
        raise Refusal("it reduces over the batch")
    keepdim = bool(call.get("keepdim"))
    x = _within_channels(ctx, call, x, gone, mean)
    whole = [k for k, axis in enumerate(x.layout.axes) if axis and set(axis) <= gone]
    if whole and all(k in whole for k, axis in enumerate(x.layout.axes) if k and axis):
        whole = sorted({*whole, *(k for k, axis in enumerate(x.layout.axes) if k and not axis)})
    rest = {a for k, axis in enumerate(x.layout.axes) if k not in whole for a in axis}
    if rest & gone:
        raise Refusal("it reduces over a part of an axis")
    layout = x.layout.with_dims([() if i in dims else d for i, d in enumerate(x.layout.dims)])
    name = x.name
    if whole:
        name = ctx.add(Reduce(tuple(whole), mean, keepdim), [name], call, call.operator)
        kept = [axis for k, axis in enumerate(layout.axes) if k not in whole or keepdim]
        axes = tuple(() if set(axis) & gone else axis for axis in kept)
        layout = Layout(layout.dims, axes)
    if any(a.role == "time" for a in gone):
        name = ctx.add(Readout("mean" if mean else "sum"), [name], call, "readout")
    result = Traced(name, layout)
    copies = math.prod(a.size for a in gone if a.role == "new")
    if copies > 1 and not mean:
        result = scaled(ctx, call, result, float(copies))
    return result if keepdim else result.view(result.layout.without(dims))
