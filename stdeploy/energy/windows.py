"""Windows of convolutions and pools: which tap of the window meets which position, as small 0/1 matrices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stdeploy.graph import ops
from stdeploy.graph.graph import Node
from stdeploy.graph.weight import Array


@dataclass(frozen=True, eq=False)
class Windows:
    """A window sliding over `shape`: output o reads position stride*o + dilation*k - padding at tap k, if inside.

    All tuples have one entry per spatial axis; no axis (a Linear) means that each position is its own window.
    """

    shape: tuple[int, ...]
    out: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def key(self) -> tuple[tuple[int, ...], ...]:
        """Equal for equal windows."""
        return self.shape, self.out, self.kernel, self.stride, self.padding, self.dilation

    @cached_property
    def meets(self) -> tuple[Array, ...]:
        """Per axis `[n, k]`: 1 where position n is read at tap k (by the one output that can)."""
        return tuple(self._meets(i) for i in range(len(self.shape)))

    def _meets(self, i: int) -> Array:
        place = (
            np.arange(self.shape[i])[:, None] + self.padding[i] - self.dilation[i] * np.arange(self.kernel[i])
        )
        output, rest = np.divmod(place, self.stride[i])
        return np.asarray((rest == 0) & (output >= 0) & (output < self.out[i]), dtype=np.int64)

    @cached_property
    def reach(self) -> Array:
        """`[*shape]`: how many (output, tap) pairs read each position."""
        total = np.ones((), np.int64)
        for axis in self.meets:
            total = np.multiply.outer(total, axis.sum(1))
        return total

    @property
    def pairs(self) -> int:
        """How many (output, position) pairs there are."""
        return int(self.reach.sum())

    def taps(self, x: Array) -> Array:
        """Sums of `x [..., *shape]` over the positions that each tap reads, `[..., *kernel]`, in x's type."""
        for axis in reversed(self.meets):
            x = np.moveaxis(x @ axis.astype(x.dtype), -1, x.ndim - len(self.shape))
        return x

    def combine(self, x: Array, function: np.ufunc) -> Array:
        """Each output's positions of `x [..., *shape]` combined by `function`; outside is 0."""
        x = self._padded(x)
        for axis, taps in enumerate(self.kernel):
            parts = [self._strided(x, axis, tap) for tap in range(taps)]
            x = parts[0]
            for part in parts[1:]:
                x = function(x, part)
        return x

    def at(self, x: Array, tap: tuple[int, ...]) -> Array:
        """What every output reads of `x [..., *shape]` at one tap, `[..., *out]`; outside is 0."""
        x = self._padded(x)
        for axis, place in enumerate(tap):
            x = self._strided(x, axis, place)
        return x

    def _padded(self, x: Array) -> Array:
        pads = [(0, 0)] * (x.ndim - len(self.shape))
        for n, o, k, s, p, d in zip(
            self.shape, self.out, self.kernel, self.stride, self.padding, self.dilation, strict=True
        ):
            pads.append((p, max(0, (o - 1) * s + d * (k - 1) + 1 - n - p)))
        return np.pad(x, pads) if any(map(any, pads)) else x

    def _strided(self, x: Array, axis: int, tap: int) -> Array:
        start, stride = tap * self.dilation[axis], self.stride[axis]
        window = [slice(None)] * x.ndim
        window[x.ndim - len(self.shape) + axis] = slice(
            start, start + stride * (self.out[axis] - 1) + 1, stride
        )
        return x[tuple(window)]


def conv_windows(op: ops.Conv, node: Node, shape: tuple[int, ...]) -> Windows:
    """Windows of a convolution over inputs of spatial `shape`."""
    out = node.value.shape[1:]
    return Windows(shape, out, op.weight.shape[2:], op.stride, op.padding, op.dilation)


def pool_windows(node: Node, shape: tuple[int, ...]) -> Windows:
    """Windows of a pool over inputs of spatial `shape`; what lies outside is not read."""
    op = node.op
    if not isinstance(op, ops.MaxPool | ops.AvgPool):
        raise TypeError(f"{node.name} is not a pool")
    dilation = op.dilation if isinstance(op, ops.MaxPool) else (1,) * len(op.kernel)
    return Windows(shape, node.value.shape[1:], op.kernel, op.stride, op.padding, dilation)
