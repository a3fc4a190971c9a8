"""A NIR runner in numpy, float32: Conv2d, AvgPool2d, LIF and Threshold, edges summed, nodes in topological order.

Needs no reader's package. LIF is NIR's equation by forward Euler, h = v + (r x - (v - v_leak)) dt / tau,
fires at h > v_threshold and resets to v_reset, as the specification has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nir
import numpy as np

from stdeploy.errors import UserError
from stdeploy.graph.weight import Array
from stdeploy.importers.nir.network import Network

See = Callable[[str, Array], Array | None]


class Runner:
    """A network ready to run; `see(node, spikes)` hears of `watched` nodes and may answer with other spikes."""

    def __init__(self, network: Network, dt: float, watched: set[str], see: See) -> None:
        self.watched, self.see, self.sources = watched, see, network.sources
        self.nodes = {name: _load(name, node, dt) for name, node in network.nodes.items()}
        (self.input,), (self.output,) = network.inputs, network.outputs

    def steps(self, inputs: Array, static: bool, count: int) -> Array:
        """Output of each step `[T, B, C, H, W]` for `[B, ...]` (static) or `[T, B, ...]`, from rest."""
        for node in self.nodes.values():
            if isinstance(node, _Lif):
                node.v = None
        return np.stack([self._step(inputs if static else inputs[t]) for t in range(count)])

    def _step(self, x: Array) -> Array:
        values: dict[str, Array] = {self.input: x}
        readers = dict.fromkeys(self.nodes, 0)
        for sources in self.sources.values():
            for source in sources:
                readers[source] += 1
        for name, node in self.nodes.items():
            if name == self.input:
                continue
            total = values[self.sources[name][0]]
            for source in self.sources[name][1:]:
                total = total + values[source]
            for source in self.sources[name]:
                readers[source] -= 1
                if not readers[source]:
                    del values[source]
            value = node(total)
            if name in self.watched:
                forced = self.see(name, value)
                value = value if forced is None else forced
            values[name] = value
        return values[self.output]


@dataclass(eq=False)
class _Conv:
    """Conv2d, one matrix product per tap of the kernel and group."""

    weight: Array
    bias: Array
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def __call__(self, x: Array) -> Array:
        (sy, sx), (py, px), (dy, dx) = self.stride, self.padding, self.dilation
        kernel = self.weight.shape[2:]
        x = np.pad(x, ((0, 0), (0, 0), (py, py), (px, px)))
        height = (x.shape[2] - dy * (kernel[0] - 1) - 1) // sy + 1
        width = (x.shape[3] - dx * (kernel[1] - 1) - 1) // sx + 1
        weight = self.weight.reshape(self.groups, -1, *self.weight.shape[1:])
        out = np.zeros((self.groups, weight.shape[1], x.shape[0] * height * width), dtype=np.float32)
        rows = x.swapaxes(0, 1)
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                part = rows[:, :, i * dy : i * dy + sy * height : sy, j * dx : j * dx + sx * width : sx]
                out += np.ascontiguousarray(weight[..., i, j]) @ part.reshape(
                    self.groups, weight.shape[2], -1
                )
        y: Array = out.reshape(self.weight.shape[0], -1) + self.bias[:, None]
        return y.reshape(-1, x.shape[0], height, width).swapaxes(0, 1)


@dataclass(eq=False)
class _Pool:
    """AvgPool2d, padding counted as zeros: sums along one axis, then the other."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def __call__(self, x: Array) -> Array:
        for axis in (0, 1):
            x = _window_sums(x, axis + 2, self.kernel[axis], self.stride[axis], self.padding[axis])
        mean: Array = (x / (self.kernel[0] * self.kernel[1])).astype(np.float32)
        return mean


def _window_sums(x: Array, axis: int, kernel: int, stride: int, padding: int) -> Array:
    size = x.shape[axis]
    pad = [(0, 0)] * x.ndim
    pad[axis] = (1, 0)
    running = np.pad(np.cumsum(x, axis=axis, dtype=np.float64), pad)
    starts = np.arange((size + 2 * padding - kernel) // stride + 1) * stride - padding
    low, high = np.clip(starts, 0, size), np.clip(starts + kernel, 0, size)
    sums: Array = np.take(running, high, axis=axis) - np.take(running, low, axis=axis)
    return sums


@dataclass(eq=False)
class _Lif:
    """Leaky integrate-and-fire with the state of the current batch."""

    decay: Array
    r: Array
    v_leak: Array
    v_threshold: Array
    v_reset: Array
    v: Array | None = None

    def __call__(self, x: Array) -> Array:
        v = np.broadcast_to(self.v_leak, x.shape) if self.v is None else self.v
        h = v + (self.r * x - (v - self.v_leak)) * self.decay
        fired: Array = h > self.v_threshold
        self.v = np.where(fired, self.v_reset, h).astype(np.float32)
        spikes: Array = fired.astype(np.float32)
        return spikes


def _pair(value: Any) -> tuple[int, int]:
    array = np.atleast_1d(np.asarray(value))
    return int(array[0]), int(array[-1])


def _load(name: str, node: Any, dt: float) -> Callable[[Array], Array]:
    if isinstance(node, nir.Input | nir.Output):
        return lambda x: x
    if isinstance(node, nir.Conv2d):
        weight, bias = (np.asarray(a, dtype=np.float32) for a in (node.weight, node.bias))
        windows = (_pair(node.stride), _pair(node.padding), _pair(node.dilation))
        return _Conv(weight, bias, *windows, int(node.groups))
    if isinstance(node, nir.Threshold):
        level = np.asarray(node.threshold, dtype=np.float32)
        return lambda x: (x > level).astype(np.float32)
    if isinstance(node, nir.AvgPool2d):
        return _Pool(_pair(node.kernel_size), _pair(node.stride), _pair(node.padding))
    if isinstance(node, nir.LIF):
        arrays = [
            np.asarray(a, dtype=np.float32)
            for a in (dt / node.tau, node.r, node.v_leak, node.v_threshold, node.v_reset)
        ]
        return _Lif(*arrays)
    raise UserError(
        f"{name}: stdeploy's NIR runner takes what stdeploy writes, not {type(node).__name__}",
        hint="run it in snntorch, spikingjelly or norse",
    )
