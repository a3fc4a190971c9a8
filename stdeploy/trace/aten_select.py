"""Ranking of values (topk, sort, argsort) and picking by its positions: the graph's Select.

A ranking leaves no node: its positions are followed through views, slices and constant shifts as an index
tensor, and become a Select where they pick from a value.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from stdeploy.graph.ops import Concat, Scale, Select, Slice
from stdeploy.graph.weight import Array
from stdeploy.trace.aten_views import cut, token_axis
from stdeploy.trace.axes import Atoms, Layout, length
from stdeploy.trace.lowering import (
    Call,
    Chosen,
    Lowering,
    Ranked,
    Refusal,
    Traced,
    Withheld,
    fresh,
    lowers,
    roles,
    to_numpy,
)


@lowers("topk")
def topk(ctx: Lowering, call: Call) -> list[Any]:
    x = call["self"]
    if isinstance(x, Chosen):
        raise Refusal("it ranks positions", "sort them ascending, or leave them in the order of their scores")
    order = "score" if call["sorted"] else "any"
    x = ctx.tensor(x)
    return [Withheld(x.name, x.layout), _ranked(ctx, call, x, int(call["k"]), bool(call["largest"]), order)]


@lowers("sort", "argsort")
def sort(ctx: Lowering, call: Call) -> Any:
    x = call["self"]
    if not isinstance(x, Chosen):
        x = ctx.tensor(x)
        size = length(x.layout.dims[x.layout.dim(call.get("dim", -1))])
        found = _ranked(ctx, call, x, size, bool(call.get("descending")), "score")
        return found if call.operator == "argsort" else [Withheld(x.name, x.layout), found]
    if call.operator == "argsort" or call.get("descending") or x.start or x.ahead:
        raise Refusal("it sorts positions otherwise than ascending, or a part of them")
    if x.layout.dims[x.layout.dim(call.get("dim", -1))] != x.slots:
        raise Refusal("it sorts positions along another dimension")
    return [replace(x, order="index"), Withheld(x.name, x.layout)]


def _ranked(ctx: Lowering, call: Call, x: Traced, count: int, largest: bool, order: Any) -> Chosen:
    layout, dim = x.layout, x.layout.dim(call.get("dim", -1))
    every = tuple(a for axis in layout.axes for a in axis)
    if not layout.dims or layout.dims[dim] != every:
        axes = [n for n, axis in zip(ctx.value(x).axes, layout.axes, strict=True) if axis]
        raise Refusal(
            f"it ranks along one of the axes {', '.join(axes)}, which would select for each of the others",
            "take the mean over heads (or channels) before, so that there is one score a token",
        )
    if any(a.role == "new" for d in layout.dims for a in d):
        raise Refusal("it ranks values that are repeated along a dimension")
    name, largest = _unnegated(ctx, x.name, largest)
    slots = fresh(count)
    seen = Layout(tuple(slots if i == dim else d for i, d in enumerate(layout.dims)), (slots,))
    return Chosen(
        name,
        seen,
        ranking=ctx.rankings[call.node],
        tokens=length(every),
        stop=count,
        largest=largest,
        order=order,
        ranked=seen,
    )


def _unnegated(ctx: Lowering, name: str, largest: bool) -> tuple[str, bool]:
    """The highest of -s are the lowest of s, whose domain is known: counts rank as integers."""
    node = ctx.builder.nodes[name]
    while isinstance(node.op, Scale) and node.op.factor == -1:
        node, largest = ctx.builder.nodes[node.inputs[0]], not largest
    return node.name, largest


def shifted_positions(x: Chosen, other: Any) -> Chosen:
    """positions + a number, or + the index of each step and sample times the tokens (a flat list's offsets)."""
    if isinstance(other, int):
        return replace(x, shift=x.shift + other, ahead=tuple(p + other for p in x.ahead))
    if not isinstance(other, Tensor) or other.is_floating_point() or x.lead is not None:
        raise Refusal("it adds to the positions of a selection what is no constant number")
    shape = x.layout.shape
    offsets = np.broadcast_to(to_numpy(other), shape)
    if offsets.size and np.all(offsets == offsets.flat[0]):
        return shifted_positions(x, int(offsets.flat[0]))
    places = [i for i, d in enumerate(x.layout.dims) if d == x.slots]
    if not places:
        raise Refusal("it adds offsets to one position taken out of a selection", "keep its dimension")
    rows = np.moveaxis(offsets, places[-1], -1).reshape(-1, shape[places[-1]])
    stride = int(rows[1, 0] - rows[0, 0]) if len(rows) > 1 else 0
    if not np.array_equal(rows, np.arange(len(rows))[:, None] * stride + np.zeros_like(rows)):
        raise Refusal("it adds to the positions of a selection offsets that are not those of a flat list")
    lead = tuple(a for i, d in enumerate(x.layout.dims) if i != places[-1] for a in d)
    return replace(x, lead=lead, stride=stride)


@lowers("gather", "take_along_dim")
def gather(ctx: Lowering, call: Call) -> Traced:
    index = call["index"] if "index" in call.arguments else call["indices"]
    x = ctx.tensor(call["self"])
    dim = call.get("dim")
    if dim is None:
        raise Refusal("it picks from a flattened tensor")
    chosen, dim = _chosen(index), x.layout.dim(dim)
    if len(chosen.layout.dims) != len(x.layout.dims):
        raise Refusal("it picks with positions of another number of dimensions")
    for i, (a, b) in enumerate(zip(x.layout.dims, chosen.layout.dims, strict=True)):
        spread = call.operator == "take_along_dim" and not b
        if i != dim and not spread and not _same(a, b):
            raise Refusal(
                "it picks other positions for each index of another dimension, or only some of them"
            )
    return _picked(ctx, call, x, chosen, dim)


def _chosen(index: Any) -> Chosen:
    if not isinstance(index, Chosen):
        raise Refusal("it picks by an index that no ranking of one score a token yields")
    return index


def _same(a: Atoms, b: Atoms) -> bool:
    """Whether positions along `b` are for the same index of `a`, or the same for all of it."""
    if roles(b) <= {"new"}:
        return length(a) == length(b)
    pairs = list(zip(a, b, strict=False))
    return len(a) == len(b) and all(p is q or (p.role == "new" and p.size == q.size) for p, q in pairs)


def _picked(ctx: Lowering, call: Call, x: Traced, chosen: Chosen, dim: int) -> Traced:
    """`x` at the chosen positions of torch dimension `dim`."""
    if chosen.lead is not None:
        raise Refusal("it picks by the offsets of a flat list from one that is not flat")
    if chosen.order == "any":
        raise Refusal(
            "topk(sorted=False) leaves the order of the tokens open", "say sorted=True, or sort the indices"
        )
    if chosen.layout.dims[dim] != chosen.slots:
        raise Refusal("it picks along a dimension that does not list the chosen positions")
    x = _timed(ctx, token_axis(ctx, call, x, dim), chosen)
    if len(x.layout.axes) != 2 or x.layout.dims[dim] != x.layout.axes[1]:
        raise Refusal("it picks along a dimension that is not all tokens of the value")
    size = length(x.layout.dims[dim])
    if chosen.shift < 0 or chosen.shift + chosen.tokens > size:
        raise Refusal(f"it picks from {size} tokens by the scores of {chosen.tokens}")
    order: Literal["score", "index"] = "index" if chosen.order == "index" else "score"
    parts = [cut(ctx, call, x, dim, p, p + 1) for p in chosen.ahead]
    source = cut(ctx, call, x, dim, chosen.shift, chosen.shift + chosen.tokens)
    name = ctx.add(
        Select(chosen.stop, chosen.largest, order),
        [source.name, chosen.name],
        call,
        "select",
    )
    ctx.ranked.append(Ranked(name, chosen.ranking, chosen.ranked))
    if chosen.start:
        name = ctx.add(Slice(1, chosen.start, chosen.stop), [name], call, "slice")
    if parts:
        name = ctx.add(Concat(1), [*(p.name for p in parts), name], call, "concat")
    new = fresh(length(chosen.slots))
    dims = tuple(new if i == dim else d for i, d in enumerate(x.layout.dims))
    return Traced(name, Layout(dims, (x.layout.axes[0], new)))


def _timed(ctx: Lowering, x: Traced, chosen: Chosen) -> Traced:
    """`x` with time where it is repeated over the steps and the positions differ from step to step."""
    for a, b in zip(x.layout.dims, chosen.layout.dims, strict=True):
        for p, q in zip(a, b, strict=False):
            if p.role == "new" and q is ctx.time:
                return x.view(x.layout.replace({p: (ctx.time,)}))
    return x


@lowers("index_select")
def index_select(ctx: Lowering, call: Call) -> Traced:
    return _from_list(ctx, call, ctx.tensor(call["self"]), _chosen(call["index"]), int(call["dim"]))


@lowers("index")
def index(ctx: Lowering, call: Call) -> Traced:
    """x[a, b, positions]: `a` and `b` count the steps and samples; or positions alone, into a flat list."""
    x, given = ctx.tensor(call["self"]), list(call["indices"])
    places = [i for i, item in enumerate(given) if item is not None]
    found = [i for i in places if isinstance(given[i], Chosen)]
    if len(found) != 1 or places != list(range(places[0], places[-1] + 1)):
        raise Refusal("it picks by an index that no ranking of one score a token yields")
    chosen, at = _chosen(given[found[0]]), found[0]
    if len(places) == 1:
        return _from_list(ctx, call, x, chosen, at)
    rank = max(t.ndim if isinstance(t, Tensor) else len(t.layout.dims) for t in (given[i] for i in places))
    if at != places[-1] or rank != len(places):
        raise Refusal("it picks by several indices of which the positions are not the last")
    for position, i in enumerate(places[:-1]):
        if not _counts(given[i], position, rank, x.layout.shape[i]):
            raise Refusal("beside the positions it has an index that does not count the steps or samples")
    first = places[0]
    before, behind = x.layout.dims[:first], x.layout.dims[at + 1 :]
    layout = chosen.layout
    dims = [()] * (rank - len(layout.dims)) + list(layout.dims)
    for i, b in zip(places[:-1], dims[:-1], strict=True):
        if b and not _same(x.layout.dims[i], b):
            raise Refusal("its indices and its positions are for other dimensions")
    wide = Layout((*[()] * len(before), *dims, *[()] * len(behind)), layout.axes)
    return _picked(ctx, call, x, chosen.view(wide), at)


def _counts(index: Tensor, position: int, rank: int, size: int) -> bool:
    """Whether a constant index of `rank` dimensions is 0, 1, ... size-1 along dimension `position`."""
    array: Array = to_numpy(index).reshape([1] * (rank - index.ndim) + list(index.shape))
    wanted = [size if i == position else 1 for i in range(rank)]
    return list(array.shape) == wanted and bool(np.array_equal(array.reshape(-1), np.arange(size)))


def _from_list(ctx: Lowering, call: Call, x: Traced, chosen: Chosen, dim: int) -> Traced:
    """x[.., positions] where dimension `dim` of `x` lists the tokens of all steps and samples."""
    dim = x.layout.dim(dim)
    lead = chosen.lead
    atoms = x.layout.dims[dim]
    if lead is None or atoms[: len(lead)] != lead or length(atoms[len(lead) :]) != chosen.stride:
        raise Refusal(
            "it picks the same positions for every step and sample, or by offsets of another list",
            "use gather, with positions for each step and sample",
        )
    places = [a for d in chosen.layout.dims for a in d]
    if tuple(places) != (*lead, *chosen.slots):
        raise Refusal("it picks by positions whose last dimension is not the chosen ones")
    split = x.layout.with_dims([*x.layout.dims[:dim], lead, atoms[len(lead) :], *x.layout.dims[dim + 1 :]])
    before, behind = [()] * dim, [()] * (len(x.layout.dims) - dim - 1)
    seen = chosen.layout.with_dims([*before, lead, chosen.slots, *behind])
    out = _picked(ctx, call, x.view(split), replace(chosen, lead=None, layout=seen), dim + 1)
    slots = out.layout.dims[dim + 1]
    stands = dict(zip(chosen.slots, slots, strict=True))
    shaped = [tuple(stands.get(a, a) for a in d) for d in chosen.layout.dims]
    dims = [*out.layout.dims[:dim], *shaped, *out.layout.dims[dim + 2 :]]
    return out.view(out.layout.with_dims(dims))


@lowers(
    "scatter", "scatter_add", "kthvalue", "argmax", "argmin", "masked_select", "nonzero", "masked_fill", "masked_scatter",
)  # fmt: skip
def other_selection(ctx: Lowering, call: Call) -> Any:
    raise Refusal(
        "it selects or masks by value in a form that the graph has no operator for",
        "pick the tokens with topk and gather; a number of them that depends on values cannot be expressed",
    )


@lowers("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
def filled(ctx: Lowering, call: Call) -> Tensor:
    """A constant tensor as large as the example's."""
    value = call.node.meta["val"]
    number: Any = call.get("fill_value", 1 if "ones" in call.operator else 0)
    if not isinstance(number, int | float):
        raise Refusal("it fills a tensor with a value of the network")
    return torch.full([int(n) for n in value.shape], number, dtype=value.dtype)
