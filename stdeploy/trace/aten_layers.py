"""Layers with parameters, and pooling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stdeploy.graph.ops import Affine, AvgPool, Conv, Flatten, Linear, MaxPool, Reduce
from stdeploy.graph.weight import Array, Weight
from stdeploy.trace.aten_border import carried, constant_of, own_shift, padded, shifted
from stdeploy.trace.axes import Atoms, Layout, positions
from stdeploy.trace.lowering import Call, Lowering, Refusal, Traced, fresh, lowers, roles


def channel_order(ctx: Lowering, call: Call, x: Traced, dim: int) -> tuple[Traced, Array]:
    """The tensor and, for each index of torch dimension `dim`, its channel; flattens the value where it has to."""
    layout = x.layout
    order = positions(layout.dims[dim], layout.axes[0]) if layout.axes else None
    if order is not None:
        return x, order
    every = tuple(a for axis in layout.axes for a in axis)
    order = positions(layout.dims[dim], every)
    if order is not None:
        name = ctx.add(Flatten(), [x.name], call, "flatten")
        return Traced(name, Layout(layout.dims, (every,))), order
    axes = ctx.value(x).axes
    whole = [n for n, axis in zip(axes, layout.axes, strict=True) if set(axis) == set(layout.dims[dim])]
    if whole:
        raise Refusal(f"it mixes the {whole[0]} axis, not the channels")
    raise Refusal("it does not read the channels, all of them and nothing else, in one dimension")


def _permuted(array: Array, order: Array, axis: int) -> Array:
    """`array`, whose indices along `axis` are torch's, with the value's channel order."""
    identical = np.array_equal(order, np.arange(order.size))
    return array if identical else np.take(array, np.argsort(order), axis=axis)


def _key(order: Array) -> str:
    return "" if np.array_equal(order, np.arange(order.size)) else order.tobytes().hex()


def with_channels(layout: Layout, dim: int, new: Atoms) -> Layout:
    """`layout` where torch dimension `dim` and the channel axis are new."""
    dims = tuple(new if i == dim else d for i, d in enumerate(layout.dims))
    return Layout(dims, (new, *layout.axes[1:]))


@lowers("linear")
def linear(ctx: Lowering, call: Call) -> Traced:
    x = ctx.tensor(call["input"])
    return pointwise(ctx, call, x, -1, call["weight"], call.get("bias"))


def pointwise(
    ctx: Lowering, call: Call, x: Traced, dim: int, weight: Any, bias: Any, transposed: bool = False
) -> Traced:
    """A Linear over torch dimension `dim`; `weight` [out, in, ...] (`transposed`: [in, out])."""
    dim = x.layout.dim(dim)
    x, order = channel_order(ctx, call, x, dim)
    w = ctx.weight(
        weight,
        f"linear {transposed} {_key(order)}",
        lambda a: _permuted(a.T if transposed else a.reshape(a.shape[0], -1), order, 1),
    )
    name = ctx.add(Linear(w, ctx.constant(bias)), [x.name], call)
    return Traced(name, with_channels(x.layout, dim, fresh(w.shape[0])))


@lowers("addmm")
def addmm(ctx: Lowering, call: Call) -> Traced:
    if call.get("beta", 1) != 1 or call.get("alpha", 1) != 1:
        raise Refusal("addmm with beta or alpha other than 1")
    return pointwise(ctx, call, ctx.tensor(call["mat1"]), -1, call["mat2"], call["self"], transposed=True)


def _tuple(value: Any, rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
    return values * rank if len(values) == 1 else values


def spatial(ctx: Lowering, x: Traced, rank: int) -> None:
    """Refusal where the last `rank` torch dimensions are not the value's axes 1.. in order."""
    layout = x.layout
    if layout.dims[-rank:] == layout.axes[1:] and len(layout.axes) == rank + 1:
        return
    axes = ctx.value(x).axes
    raise Refusal(
        f"its last {rank} dimensions are not the spatial axes of the value before it ({', '.join(axes)})",
        "keep images as [..., height, width] up to the last convolution and pooling",
    )


@lowers("conv1d", "conv2d", "convolution")
def conv(ctx: Lowering, call: Call) -> Traced:
    x = ctx.tensor(call["input"], padded=True)
    weight = ctx.constant(call["weight"])
    if weight is None or call.get("transposed"):
        raise Refusal("a transposed convolution")
    rank = weight.ndim - 2
    stride, dilation = _tuple(call["stride"], rank), _tuple(call["dilation"], rank)
    if len(x.layout.dims) != rank + 2:
        raise Refusal("a convolution without a batch dimension")
    padding = _padding(call["padding"], weight.shape[2:], dilation, rank, x.padding)
    constant = constant_of(x)
    if constant is not None and any(_padding(call["padding"], weight.shape[2:], dilation, rank, ())):
        raise Refusal("it pads with zeros around a border of another constant")
    x = Traced(x.name, x.layout)
    plain = set(weight.shape[2:]) == {1} and set(stride) == {1} and not any(padding) and call["groups"] == 1
    if plain:
        return pointwise(ctx, call, x, 1, call["weight"], call.get("bias"))
    if "axis" in roles(x.layout.dims[0]):
        raise Refusal("its batch dimension holds a part of the value's axes")
    spatial(ctx, x, rank)
    x, order = channel_order(ctx, call, x, 1)
    if call["groups"] != 1 and _key(order):
        raise Refusal("a grouped convolution over reordered channels")
    source = x.name
    if constant is not None:
        constant = own_shift(ctx, source, _permuted(constant, order, 0))
        source = shifted(ctx, call, source, -constant, "border")
    w = ctx.weight(call["weight"], f"conv {_key(order)}", lambda a: _permuted(a, order, 1))
    op = Conv(w, ctx.constant(call.get("bias")), stride, padding, dilation, int(call["groups"]))
    name = ctx.add(op, [source], call)
    if constant is not None:
        name = shifted(ctx, call, name, carried(op.weight.array(), op.groups, constant), "unborder")
    return _resized(ctx, name, x, rank, fresh(w.shape[0]))


def _padding(
    padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...], rank: int, ahead: tuple[int, ...]
) -> tuple[int, ...]:
    if padding == "valid":
        own = (0,) * rank
    elif padding == "same":
        spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(s % 2 for s in spans):
            raise Refusal("padding 'same' of an even kernel is not symmetric")
        own = tuple(s // 2 for s in spans)
    else:
        own = _tuple(padding, rank)
    if not ahead:
        return own
    pairs = [(ahead[i], ahead[i + 1]) for i in range(0, len(ahead), 2)]
    extra = [(0, 0)] * (rank - len(pairs)) + list(reversed(pairs))
    if len(pairs) > rank or any(a != b or a < 0 for a, b in extra):
        raise Refusal("it follows a padding that is not symmetric")
    return tuple(p + a for p, (a, _) in zip(own, extra, strict=True))


def _resized(ctx: Lowering, name: str, x: Traced, rank: int, channels: Atoms | None = None) -> Traced:
    """The result of a convolution or pooling: new spatial atoms, and new channels where given."""
    sizes = ctx.builder.value(name).shape[1:]
    new = tuple(fresh(n) for n in sizes)
    layout = x.layout
    first = layout.axes[0] if channels is None else channels
    dims = (*layout.dims[:-rank], *new)
    if channels is not None:
        dims = (dims[0], channels, *dims[2:])
    return Traced(name, Layout(dims, (first, *new)))


@lowers("batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "native_batch_norm")
def batch_norm(ctx: Lowering, call: Call) -> Any:
    x = ctx.tensor(call["input"])
    mean, variance = ctx.constant(call["running_mean"]), ctx.constant(call["running_var"])
    if mean is None or variance is None:
        raise Refusal("BatchNorm without running statistics (track_running_stats=False)")
    if call.get("training"):
        raise Refusal("BatchNorm with the statistics of the batch", "call .eval() on the model")
    weight, bias = ctx.constant(call.get("weight")), ctx.constant(call.get("bias"))
    scale = (1.0 if weight is None else weight.astype(np.float64)) / np.sqrt(
        variance.astype(np.float64) + call["eps"]
    )
    shift = (0.0 if bias is None else bias.astype(np.float64)) - mean.astype(np.float64) * scale
    x, order = channel_order(ctx, call, x, 1)
    name = ctx.add(Affine(_permuted(scale, order, 0), _permuted(shift, order, 0)), [x.name], call)
    summed = np.abs(shift + mean * scale) + np.abs(mean * scale)
    ctx.shift_errors[name] = 4 * np.finfo(variance.dtype).eps * _permuted(summed, order, 0)
    result = Traced(name, x.layout)
    return result if call.operator == "batch_norm" else [result, None, None]


@lowers("max_pool1d", "max_pool2d", "max_pool2d_with_indices")
def max_pool(ctx: Lowering, call: Call) -> Any:
    x = ctx.tensor(call["self"])
    rank = len(_tuple(call["kernel_size"], 1)) if call.operator == "max_pool1d" else 2
    spatial(ctx, x, rank)
    kernel = _tuple(call["kernel_size"], rank)
    stride = _tuple(call.get("stride") or kernel, rank)
    op = MaxPool(
        kernel, stride, _tuple(call["padding"], rank), _tuple(call["dilation"], rank), bool(call["ceil_mode"])
    )
    result = _resized(ctx, ctx.add(op, [x.name], call), x, rank)
    return [result, None] if call.operator.endswith("indices") else result


@lowers("avg_pool1d", "avg_pool2d")
def avg_pool(ctx: Lowering, call: Call) -> Traced:
    x = ctx.tensor(call["self"])
    rank = 1 if call.operator == "avg_pool1d" else 2
    if call.get("divisor_override"):
        raise Refusal("average pooling with divisor_override")
    kernel = _tuple(call["kernel_size"], rank)
    stride = _tuple(call.get("stride") or kernel, rank)
    if rank == 1 and x.layout.axes and x.layout.dims[-1] == x.layout.axes[0]:
        return _voted(ctx, call, x, kernel[0], stride[0])
    spatial(ctx, x, rank)
    op = AvgPool(
        kernel,
        stride,
        _tuple(call["padding"], rank),
        bool(call["ceil_mode"]),
        bool(call["count_include_pad"]),
    )
    return _resized(ctx, ctx.add(op, [x.name], call), x, rank)


def _voted(ctx: Lowering, call: Call, x: Traced, kernel: int, stride: int) -> Traced:
    """Means over groups of channels, as a population votes for its class: a Linear."""
    channels = ctx.value(x).shape[0]
    if any(_tuple(call["padding"], 1)) or call["ceil_mode"]:
        raise Refusal("a padded or ceil-mode average over channels")
    starts = range(0, channels - kernel + 1, stride)
    values = np.zeros((len(starts), channels))
    for row, start in enumerate(starts):
        values[row, start : start + kernel] = 1.0 / kernel
    name = ctx.add(Linear(Weight.dense(values)), [x.name], call, "vote")
    return Traced(name, with_channels(x.layout, len(x.layout.dims) - 1, fresh(len(starts))))


@lowers("adaptive_avg_pool1d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def adaptive_avg_pool(ctx: Lowering, call: Call) -> Traced:
    x = ctx.tensor(call["self"])
    rank = 1 if call.operator.endswith("1d") else 2
    spatial(ctx, x, rank)
    sizes = ctx.value(x).shape[1:]
    target = _tuple(call["output_size"], rank)
    if math.prod(target) == 1:
        name = ctx.add(Reduce(tuple(range(1, rank + 1)), True), [x.name], call)
        dims = (*x.layout.dims[:-rank], *[()] * rank)
        return Traced(name, Layout(dims, x.layout.axes[:1]))
    if any(n % m for n, m in zip(sizes, target, strict=True)):
        raise Refusal(f"adaptive pooling from {sizes} to {target}, which does not divide")
    kernel = tuple(n // m for n, m in zip(sizes, target, strict=True))
    return _resized(ctx, ctx.add(AvgPool(kernel, kernel, (0,) * rank), [x.name], call), x, rank)


@lowers("pad", "constant_pad_nd")
def pad(ctx: Lowering, call: Call) -> Traced:
    x = ctx.tensor(call["self"])
    if call.get("mode", "constant") != "constant":
        raise Refusal("padding with anything but a constant")
    amounts = tuple(int(v) for v in call["pad"])
    return padded(x, amounts, float(call.get("value") or 0)) if any(amounts) else x
