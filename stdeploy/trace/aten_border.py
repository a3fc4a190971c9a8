"""Borders of a constant around a map, as padding and writes in place make them, up to the next convolution.

With c the border's constant of each channel, conv(pad_c(x)) = conv(pad_0(x - c)) + (sum_k W) c: the border
becomes the zero padding of the convolution and two shifts, which fold into the neighbouring layers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stdeploy.graph.ops import Affine
from stdeploy.graph.weight import Array
from stdeploy.trace.lowering import Call, Lowering, Refusal, Traced, lowers, to_numpy


def without_overwritten(program: Any) -> Any:
    """A decomposed program in which a part that is overwritten is not read first (for its shape)."""
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten.copy.default:
            continue
        part, source = node.args[:2]
        with graph.inserting_before(node):
            shape = list(part.meta["val"].shape)
            whole = graph.call_function(torch.ops.aten.expand.default, (source, shape))
        whole.meta = dict(node.meta)
        node.replace_all_uses_with(whole)
        graph.erase_node(node)
        if not part.users:
            graph.erase_node(part)
    return program


def padded(x: Traced, amounts: tuple[int, ...], value: float) -> Traced:
    """`x` with `amounts` (as torch.nn.functional.pad lists them) of `value` around its last dimensions."""
    bordered = replace(x, padding=amounts)
    if value == 0:
        return bordered
    return replace(bordered, border=np.full(_shape(bordered), value))


def _pairs(x: Traced) -> list[tuple[int, int]]:
    """(before, after) of each dimension."""
    pairs = [(x.padding[i], x.padding[i + 1]) for i in range(0, len(x.padding), 2)]
    return [(0, 0)] * (len(x.layout.dims) - len(pairs)) + pairs[::-1]


def _shape(x: Traced) -> tuple[int, ...]:
    """Shape of the padded tensor, without its leading dimension (time and batch)."""
    sizes = zip(x.layout.shape, _pairs(x), strict=True)
    return tuple(n + before + after for n, (before, after) in sizes)[1:]


def _inside(x: Traced) -> tuple[slice, ...]:
    """Where in the padded tensor (without its leading dimension) the value itself is."""
    sizes = zip(x.layout.shape, _pairs(x), strict=True)
    return tuple(slice(before, before + n) for n, (before, _) in sizes)[1:]


@lowers("slice_scatter")
def slice_scatter(ctx: Lowering, call: Call) -> Traced:
    """A constant written into the border of a padded map."""
    x, source = ctx.tensor(call["self"], padded=True), call["src"]
    if not isinstance(source, Tensor):
        raise Refusal("it writes a value of the network into a part of another", "use torch.cat")
    if not x.padding or any(n < 0 for n in x.padding):
        raise Refusal("it overwrites a part of a value", "only a border made by padding can be written")
    dim = x.layout.dim(call["dim"])
    sizes = (x.layout.shape[0], *_shape(x))
    part = slice(call.get("start"), call.get("end"), call.get("step", 1))
    if dim == 0:
        raise Refusal("it writes into a part of the time or batch dimension")
    written = _per_sample(to_numpy(source))
    border = np.zeros(sizes[1:]) if x.border is None else x.border.copy()
    where: list[Any] = [slice(None)] * border.ndim
    where[dim - 1] = part
    mask = np.zeros(border.shape, dtype=bool)
    mask[tuple(where)] = True
    if mask[_inside(x)].any():
        raise Refusal("it overwrites a part of a value", "only a border made by padding can be written")
    border[tuple(where)] = written
    return replace(x, border=border)


def _per_sample(source: Array) -> Array:
    first: Array = source[0]
    if not np.all(source == first):
        raise Refusal("it writes what differs from sample to sample")
    return first


def constant_of(x: Traced) -> Array | None:
    """[C] the border's constant, by torch's channel (dimension 1); None where it is zeros."""
    if x.border is None:
        return None
    outside = np.ones(x.border.shape, dtype=bool)
    outside[_inside(x)] = False
    values = x.border[:, outside[0]]
    if np.any(values != values[:, :1]):
        raise Refusal("it follows a border that is not one constant a channel")
    constant: Array = values[:, 0]
    return constant if np.any(constant) else None


def own_shift(ctx: Lowering, name: str, constant: Array) -> Array:
    """`constant [C]`, where the model computed it as the shift of the Affine `name`: that shift, unrounded.

    A border of what a BatchNorm makes of zero then cancels exactly, and the layers around it can fold.
    """
    op, error = ctx.builder.nodes[name].op, ctx.shift_errors.get(name)
    if not isinstance(op, Affine) or error is None:
        return constant
    return np.where(np.abs(constant - op.shift) <= error, op.shift, constant)


def shifted(ctx: Lowering, call: Call, name: str, shift: Array, suffix: str) -> str:
    """The value plus `shift [C]`."""
    return ctx.add(Affine(np.ones(shift.shape), shift), [name], call, suffix)


def carried(weight: Array, groups: int, constant: Array) -> Array:
    """[out] (sum_k W) c of a convolution `weight [out, in/groups, *kernel]`."""
    sums = weight.astype(np.float64).reshape(*weight.shape[:2], -1).sum(axis=2)
    group = np.repeat(np.arange(groups), weight.shape[0] // groups)
    columns = group[:, None] * weight.shape[1] + np.arange(weight.shape[1])[None, :]
    result: Array = (sums * constant[columns]).sum(axis=1)
    return result
