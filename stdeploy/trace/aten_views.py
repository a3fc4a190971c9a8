"""Views: they change how a value is seen, and leave no node, except slices of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx

from stdeploy.graph.ops import Flatten, Readout, Slice
from stdeploy.trace.axes import Atom, Atoms, Layout, length
from stdeploy.trace.lowering import Call, Chosen, Lowering, Refusal, Traced, fresh, lowers, roles


def _ints(value: Any) -> list[int]:
    return [int(value)] if isinstance(value, int) else [int(v) for v in value]


@lowers("reshape", "view", "_unsafe_view", "view_copy")
def reshape(ctx: Lowering, call: Call) -> Traced:
    x = ctx.viewed(call["self"])
    return x.view(x.layout.reshape(_ints(call.get("shape", call.get("size")))))


@lowers("flatten")
def flatten(ctx: Lowering, call: Call) -> Traced:
    x = ctx.viewed(call["self"])
    return x.view(x.layout.flatten(call["start_dim"], call["end_dim"]))


@lowers("unflatten")
def unflatten(ctx: Lowering, call: Call) -> Traced:
    x = ctx.viewed(call["self"])
    return x.view(x.layout.unflatten(call["dim"], _ints(call["sizes"])))


@lowers("transpose", "swapaxes", "swapdims")
def transpose(ctx: Lowering, call: Call) -> Traced:
    x = ctx.viewed(call["self"])
    first, second = list(call.arguments.values())[1:3]
    return x.view(x.layout.transpose(first, second))


@lowers("t", "numpy_T", "mT", "matrix_H", "adjoint")
def reverse(ctx: Lowering, call: Call) -> Traced:
    x = ctx.viewed(call["self"])
    if call.operator == "numpy_T":
        return x.view(x.layout.permute(list(reversed(range(len(x.layout.dims))))))
    return x.view(x.layout.transpose(-2, -1)) if len(x.layout.dims) > 1 else x


@lowers("permute", "permute_copy")
def permute(ctx: Lowering, call: Call) -> Traced:
    x = ctx.viewed(call["self"])
    return x.view(x.layout.permute(_ints(call["dims"])))


@lowers("movedim", "moveaxis")
def movedim(ctx: Lowering, call: Call) -> Traced:
    x = ctx.viewed(call["self"])
    return x.view(x.layout.movedim(_ints(call["source"]), _ints(call["destination"])))


@lowers("unsqueeze")
def unsqueeze(ctx: Lowering, call: Call) -> Traced:
    x = ctx.viewed(call["self"])
    return x.view(x.layout.unsqueeze(call["dim"]))


@lowers("squeeze")
def squeeze(ctx: Lowering, call: Call) -> Traced:
    x = ctx.viewed(call["self"])
    dims = call.get("dim")
    chosen = list(range(len(x.layout.dims))) if dims is None else [x.layout.dim(i) for i in _ints(dims)]
    if isinstance(x, Chosen):
        return x.view(x.layout.squeeze(chosen))
    single = [i for i in chosen if x.layout.dims[i] == (ctx.time,) and ctx.time.size == 1]
    for i in sorted(single, reverse=True):
        x = _read_out(ctx, call, x, i, "last")
        chosen = [c - (c > i) for c in chosen if c != i]
    return x.view(x.layout.squeeze(chosen))


@lowers("expand", "expand_copy")
def expand(ctx: Lowering, call: Call) -> Traced:
    x = ctx.viewed(call["self"])
    return x.view(x.layout.expand(_ints(call["size"])))


@lowers("expand_as")
def expand_as(ctx: Lowering, call: Call) -> Traced:
    x, other = ctx.viewed(call["self"]), call["other"]
    shape = other.shape if isinstance(other, torch.Tensor) else other.layout.shape
    return x.view(x.layout.expand(list(shape)))


@lowers("repeat")
def repeat(ctx: Lowering, call: Call) -> Traced:
    x = ctx.viewed(call["self"])
    return x.view(x.layout.repeat(_ints(call["repeats"])))


@lowers("repeat_interleave")
def repeat_interleave(ctx: Lowering, call: Call) -> Traced:
    """torch.repeat_interleave by one number: the copies are the inner index of their dimension."""
    x, count, dim = ctx.viewed(call["self"]), call.get("repeats"), call.get("dim")
    if not isinstance(count, int) or dim is None:
        raise Refusal("copies in numbers that differ, or of a flattened tensor")
    index = x.layout.dim(dim)
    dims = [(*d, Atom(count, "new")) if i == index and count > 1 else d for i, d in enumerate(x.layout.dims)]
    return x.view(x.layout.with_dims(dims))


@lowers("tile")
def tile(ctx: Lowering, call: Call) -> Traced:
    x = ctx.viewed(call["self"])
    counts = _ints(call["dims"])
    return x.view(x.layout.repeat([1] * (len(x.layout.dims) - len(counts)) + counts))


@lowers(
    "contiguous", "clone", "detach", "detach_", "alias", "lift_fresh_copy", "dropout", "feature_dropout",
    "alpha_dropout", "identity", "positive", "view_as", "native_dropout",
)  # fmt: skip
def unchanged(ctx: Lowering, call: Call) -> Traced:
    """No-ops of an evaluated model."""
    if call.operator.endswith("dropout") and call.get("train"):
        raise Refusal("dropout in training mode", "call .eval() on the model")
    argument = call["self"] if "self" in call.arguments else call["input"]
    return argument if isinstance(argument, Chosen) else ctx.tensor(argument, padded=True)


@lowers("to", "_to_copy", "type_as", "float", "double", "long")
def cast(ctx: Lowering, call: Call) -> Traced:
    source, target = call.node.args[0], call.node.meta.get("val")
    before = source.meta.get("val") if isinstance(source, fx.Node) else None
    if before is None or target is None or before.dtype != target.dtype:
        raise Refusal("it changes the data type", "keep the model in one floating-point type")
    x = call["self"]
    return x if isinstance(x, Chosen) else ctx.tensor(x, padded=True)


def _read_out(ctx: Lowering, call: Call, x: Traced, dim: int, mode: Any) -> Traced:
    name = ctx.add(Readout(mode), [x.name], call, "readout")
    return Traced(name, x.layout.without([dim]))


def cut(ctx: Lowering, call: Call, x: Traced, dim: int, start: int, stop: int) -> Traced:
    """x[start:stop] along a torch dimension."""
    layout = x.layout
    atoms = layout.dims[dim]
    size = length(atoms)
    if start == 0 and stop == size:
        return x
    if not 0 <= start < stop <= size:
        raise Refusal(f"the slice [{start}:{stop}] of a dimension of {size} is empty")
    if roles(atoms) == {"new"}:
        kept: Atoms = (Atom(stop - start, "new"),) if stop - start > 1 else ()
        return x.view(layout.with_dims([kept if i == dim else d for i, d in enumerate(layout.dims)]))
    if roles(atoms) & {"time", "batch"}:
        which = "time" if "time" in roles(atoms) else "batch"
        raise Refusal(f"it takes a part of the {which} dimension")
    if isinstance(x, Chosen):
        return _ranks(x, dim, start, stop)
    x = token_axis(ctx, call, x, dim)
    layout = x.layout
    for k, axis in enumerate(layout.axes):
        if axis[: len(atoms)] == atoms:
            inner = length(axis[len(atoms) :])
            name = ctx.add(Slice(k, start * inner, stop * inner), [x.name], call, "slice")
            new = fresh(stop - start)
            axes = tuple(new + a[len(atoms) :] if i == k else a for i, a in enumerate(layout.axes))
            dims = tuple(new if i == dim else d for i, d in enumerate(layout.dims))
            return Traced(name, Layout(dims, axes))
    raise Refusal("it takes a part that is not one contiguous piece of an axis")


def token_axis(ctx: Lowering, call: Call, x: Traced, dim: int) -> Traced:
    """The tensor with its positions on one axis of the value, where torch dimension `dim` lists all of them."""
    layout = x.layout
    whole = tuple(a for axis in layout.axes for a in axis)
    if len(layout.axes) > 1 and layout.dims[dim] == whole and whole not in layout.axes:
        return Traced(ctx.add(Flatten(), [x.name], call, "flatten"), Layout(layout.dims, (whole,)))
    every = tuple(a for axis in layout.axes[1:] for a in axis)
    if len(layout.axes) < 3 or layout.dims[dim] != every or every in layout.axes:
        return x
    name = ctx.add(Flatten(tokens=True), [x.name], call, "tokens")
    return Traced(name, Layout(layout.dims, (layout.axes[0], every)))


def _ranks(x: Chosen, dim: int, start: int, stop: int) -> Chosen:
    """A part of the positions that a ranking yields."""
    if x.layout.dims[dim] != x.slots or x.order == "index" or x.ahead:
        raise Refusal("it takes a part of positions that are not in the order of their scores")
    slots = fresh(stop - start)
    dims = tuple(slots if i == dim else d for i, d in enumerate(x.layout.dims))
    return replace(x, layout=Layout(dims, (slots,)), start=x.start + start, stop=x.start + stop)


@lowers("slice")
def slice_(ctx: Lowering, call: Call) -> Traced:
    x = ctx.viewed(call["self"])
    dim = x.layout.dim(call["dim"])
    if call.get("step", 1) != 1:
        raise Refusal("it slices with a stride")
    size = length(x.layout.dims[dim])
    start, stop = (call.get("start") or 0), call.get("end")
    stop = size if stop is None else min(stop, size)
    start, stop = (n + size if n < 0 else n for n in (start, stop))
    return cut(ctx, call, x, dim, start, stop)


@lowers("narrow")
def narrow(ctx: Lowering, call: Call) -> Traced:
    x = ctx.viewed(call["self"])
    start = int(call["start"])
    return cut(ctx, call, x, x.layout.dim(call["dim"]), start, start + int(call["length"]))


@lowers("select")
def select(ctx: Lowering, call: Call) -> Traced:
    x = ctx.viewed(call["self"])
    return _select(ctx, call, x, x.layout.dim(call["dim"]), int(call["index"]))


def _select(ctx: Lowering, call: Call, x: Traced, dim: int, index: int) -> Traced:
    atoms = x.layout.dims[dim]
    size = length(atoms)
    index = index + size if index < 0 else index
    if atoms == (ctx.time,):
        if index != size - 1:
            raise Refusal(
                f"it reads step {index} alone",
                "the last step, the mean and the sum can be read; a layer that a loop calls at each step takes all "
                "of them at once with x.flatten(0, 1)",
            )
        return _read_out(ctx, call, x, dim, "last")
    part = cut(ctx, call, x, dim, index, index + 1)
    return part.view(part.layout.without([dim]))


@lowers("unbind")
def unbind(ctx: Lowering, call: Call) -> list[Traced]:
    x = ctx.tensor(call["self"])
    dim = x.layout.dim(call["dim"])
    if roles(x.layout.dims[dim]) & {"time"}:
        raise Refusal(
            "it takes the time steps apart",
            "use multi-step neurons over the whole tensor, and call other layers on x.flatten(0, 1)",
        )
    return [_select(ctx, call, x, dim, i) for i in range(length(x.layout.dims[dim]))]


@lowers("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split")
def split(ctx: Lowering, call: Call) -> list[Traced]:
    x = ctx.tensor(call["self"])
    dim = x.layout.dim(call["dim"])
    parts = [int(v.shape[dim]) for v in call.node.meta["val"]]
    out, start = [], 0
    for size in parts:
        out.append(cut(ctx, call, x, dim, start, start + size))
        start += size
    return out


@lowers("stack")
def stack(ctx: Lowering, call: Call) -> Traced:
    tensors = [ctx.tensor(t) for t in call["tensors"]]
    first = tensors[0]
    if any(t is not first for t in tensors):
        raise Refusal("it stacks different tensors", "concatenate them along the channels")
    x = first.view(first.layout.unsqueeze(call["dim"]))
    dim = x.layout.dim(call["dim"])
    return x.view(x.layout.repeat([len(tensors) if i == dim else 1 for i in range(len(x.layout.dims))]))
