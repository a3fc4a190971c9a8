"""Linear operators: every one becomes a Conv2d (1x1 for a Linear) or an AvgPool2d."""

from __future__ import annotations

import math

import numpy as np

from stdeploy.exporters.nir.plan import Pair, PoolNode, Role, Shape
from stdeploy.exporters.nir.signal import Lazy, Signal, Writer, ungrouped
from stdeploy.exporters.refusal import Refusal
from stdeploy.graph.weight import Array


def convolve(
    writer: Writer,
    name: str,
    signal: Signal,
    weight: Array,
    bias: Array | None,
    shape: Shape,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    role: Role = "model",
    groups: int = 1,
) -> Signal:
    """`weight [O, I / groups, k, k]` applied to a signal; one convolution for each distinct scale of its terms."""
    total = np.zeros(shape[0]) if bias is None else np.asarray(bias, dtype=np.float64)
    if signal.offset is not None:
        if padding != (0, 0):  # an offset ends at the border, a bias does not
            written = writer.edges(name, signal, role=role)
            signal = Signal(signal.shape, dict.fromkeys(written, 1.0), readout=signal.readout)
        else:
            total = total + ungrouped(weight, groups).sum(axis=(2, 3)) @ signal.offset
    convs: dict[Lazy, float] = {}
    for scale, nodes in writer.terms(name, signal, role).items():
        bias_here = total if not convs else np.zeros(shape[0])
        scaled = weight if scale == 1.0 else weight * scale
        lazy = Lazy(
            name, nodes, scaled, bias_here, signal.shape, shape, stride, padding, dilation, role, groups
        )
        convs[lazy] = 1.0
    if not convs:
        raise Refusal("its input is a constant; NIR has no constant source", "fold it into a bias")
    return Signal(shape, convs=convs, readout=signal.readout)


def square(weight: Array, padding: Pair, dilation: Pair) -> tuple[Array, Pair]:
    """`weight` in a square kernel of zeros, and the padding that keeps the result.

    nir's type inference takes the kernel's height for both axes. Refusal where the sides differ by an odd
    number, which no symmetric padding makes up for.
    """
    size = max(weight.shape[2:])
    missing = [size - n for n in weight.shape[2:]]
    if any(m % 2 for m in missing):
        raise Refusal(
            f"a {weight.shape[2]}x{weight.shape[3]} kernel: NIR's type check takes square kernels only",
            "use a kernel whose sides differ by an even number",
        )
    y, x = (m // 2 for m in missing)
    wide = np.pad(weight, ((0, 0), (0, 0), (y, y), (x, x)))
    return wide, (padding[0] + y * dilation[0], padding[1] + x * dilation[1])


def whole(weight: Array) -> tuple[Array, Pair, Pair]:
    """A kernel that covers its whole map once, square: with padding and a stride that leave one position.

    A missing row goes before the map's first, where the padding puts it; rows behind the map are zeros over padding.
    """
    size = max(weight.shape[2:])
    missing = [size - n for n in weight.shape[2:]]
    before = [(m + 1) // 2 for m in missing]
    (y, x), (my, mx) = before, missing
    wide = np.pad(weight, ((0, 0), (0, 0), (y, my - y), (x, mx - x)))
    return wide, (y, x), (size, size)


def spread(writer: Writer, name: str, signal: Signal, shape: Shape) -> Signal:
    """A value with one channel or one position, at every channel or position of `shape`.

    One position becomes n by average pools: a window of 2n with padding n sees all n copies from each of n + 1
    positions, and yields n / 2n of their value.
    """
    if signal.shape[0] != shape[0]:
        if signal.shape[0] != 1:
            raise Refusal(f"{signal.shape} does not broadcast to {shape}")
        ones = np.ones((shape[0], 1, 1, 1))
        signal = convolve(writer, name, signal, ones, None, (shape[0], *signal.shape[1:]), role="attention")
    for axis in (1, 2):
        if signal.shape[axis] == shape[axis]:
            continue
        if signal.shape[axis] != 1:
            raise Refusal(f"{signal.shape} does not broadcast to {shape}")
        if signal.offset is not None:  # it would end at the border
            written = writer.edges(name, signal, role="attention")
            signal = Signal(signal.shape, dict.fromkeys(written, 1.0), readout=signal.readout)
        for n in range(1, shape[axis]):
            larger = tuple(n + 1 if k == axis else size for k, size in enumerate(signal.shape))
            kernel, padding = ((2 * n, 1), (n, 0)) if axis == 1 else ((1, 2 * n), (0, n))
            target: Shape = (larger[0], larger[1], larger[2])
            signal = average(writer, name, signal, kernel, (1, 1), padding, target, "attention").scaled(2.0)
    return signal


def average(
    writer: Writer,
    name: str,
    signal: Signal,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    shape: Shape,
    role: Role = "model",
) -> Signal:
    """Mean over windows, padding counted as zeros; a common scale stays outside."""
    scale = signal.common_scale
    inner = signal.divided(scale)
    if inner.offset is not None and padding == (0, 0):
        offset, inner = signal.offset, Signal(inner.shape, inner.nodes, inner.convs)
    else:
        offset = None
    sources = writer.edges(name, inner, role=role)
    node = writer.plan.add(name, PoolNode(kernel, stride, padding, shape), sources, role)
    return Signal(shape, {node: scale}, offset=offset, readout=signal.readout)


def map_of(shape: tuple[int, ...]) -> Shape:
    """The (C, H, W) map that stands for a graph value; Refusal where there are more than two spatial axes."""
    if len(shape) > 3:
        raise Refusal(f"a value of shape {shape} has more than two spatial axes")
    full = (*shape, *([1] * (3 - len(shape))))
    return full[0], full[1], full[2]


def pair(values: tuple[int, ...], fill: int) -> Pair:
    """A window parameter of one or two axes as (y, x)."""
    return (values[0], values[1]) if len(values) == 2 else (values[0], fill)


def area(shape: Shape) -> int:
    return math.prod(shape[1:])
