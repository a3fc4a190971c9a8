"""The opaque neuron of a trace: its time axis is checked, its parameters put in the value's channel order."""

from __future__ import annotations

from dataclasses import replace

from stdeploy.trace.axes import Atoms, Layout, positions
from stdeploy.trace.lowering import Call, Lowering, Recorded, Refusal, Traced, lowers, safe_name


@lowers("neuron")
def neuron(ctx: Lowering, call: Call) -> Traced:
    x = ctx.tensor(call["x"])
    path = str(call["path"])
    spec = ctx.neurons[path]
    layout = _over_time(ctx, x.layout)
    if path in ctx.calls and spec.stateful:
        raise Refusal(
            "it is called twice in one pass, and its membrane goes on from the first call", "use two modules"
        )
    order = None
    if spec.channels is not None and spec.channel_dim is not None:
        dim = layout.dim(spec.channel_dim)
        order = positions(layout.dims[dim], layout.axes[0]) if 0 <= dim < len(layout.dims) else None
        if order is None or order.size != spec.channels:
            raise Refusal(f"its {spec.channels} parameters do not belong to the channels of its input")
    name = ctx.builder.add(spec.op(order), (x.name,), name=safe_name(path or "neuron"), source=path)
    ctx.calls.setdefault(path, []).append(Recorded(name, layout))
    return Traced(name, layout)


def _one_sample(ctx: Lowering, layout: Layout, first: Atoms) -> Layout:
    """The layout of a neuron over [T*B, ...] as it is for a batch of one: its loop is over the steps then."""
    rest = [a for a in first if a.role != "batch"]
    if (
        len(rest) != 1
        or rest[0].size != ctx.steps
        or any(a.role == "new" for d in layout.dims[1:] for a in d)
    ):
        raise Refusal("its first dimension holds more than time and batch")
    return layout.replace({rest[0]: (ctx.time,)}) if rest[0] is not ctx.time else layout


def leaks(layout: Layout) -> bool:
    """Whether a neuron's first dimension holds the batch too."""
    return any(a.role == "batch" for a in layout.dims[0])


def _over_time(ctx: Lowering, layout: Layout) -> Layout:
    """The input's layout with time as its first dimension; Refusal where the neuron's loop is over something else."""
    first = layout.dims[0] if layout.dims else ()
    roles = {a.role for a in first}
    if "batch" in roles and ("time" in roles or "new" in roles):
        if not ctx.assume_reset:
            raise Refusal(
                "its first dimension is time and batch together, so its membrane leaks from sample to sample",
                "reshape its input to [T, B, ...]; or --assume-reset-per-sample, which takes what the model "
                "computes for one sample at a time",
            )
        return _one_sample(ctx, layout, first)
    if first and roles == {"new"} and len(first) == 1 and first[0].size == ctx.steps:
        layout = layout.replace({first[0]: (ctx.time,)})
    elif not first and ctx.steps == 1:
        layout = layout.with_dims([(ctx.time,), *layout.dims[1:]])
    elif first != (ctx.time,):
        what = " and ".join(sorted(roles)) or "one step"
        raise Refusal(f"its first dimension is {what}, not the {ctx.steps} time steps")
    if any(a.role == "new" for d in layout.dims for a in d):
        raise Refusal("its input is repeated along a dimension that is not time")
    return replace(layout)
