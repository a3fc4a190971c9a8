"""Each NIR primitive as operators of the graph, and those that the graph does not have, with the reason.

Equations are those of the primitives (nir 1.0.8, docs/source/primitives.md): tau dv/dt = (v_leak - v) + R I,
z = 1 where v > v_threshold, then v = v_reset. A step is one of forward Euler, h = v + dt/tau (v_leak - v + R I):
charge, fire, reset. Membranes start at rest: at v_leak, for an IF at v_reset. NIR leaves both to the reader.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import nir
import numpy as np

from stdeploy.exporters.nir.neuron import IF_TAU
from stdeploy.graph import ops
from stdeploy.graph.graph import GraphBuilder
from stdeploy.graph.ops import Op
from stdeploy.graph.value import Value
from stdeploy.graph.weight import Array, Weight

AXES: dict[int, tuple[str, ...]] = {1: ("channel",), 2: ("channel", "x"), 3: ("channel", "y", "x")}

MOST_VALUES = 1 << 31
"""Elements of one sample's value; more is a damaged file, or no machine's job."""


@dataclass(eq=False)
class Build:
    """The graph under construction; `dt` is a step in the file's unit of time.

    `layers`: names of model neurons by node, in a file that stdeploy wrote (`own`).
    """

    builder: GraphBuilder
    dt: float
    own: bool = False
    layers: dict[str, str] = field(default_factory=dict)

    def add(self, op: Op, *inputs: str, node: str, part: str = "") -> str:
        """Append an operator for a NIR node; ValueError where it does not fit or is absurdly large."""
        name = graph_name(self.layers.get(node, node) + (f".{part}" if part else ""))
        added = self.builder.add(op, inputs, name=name, source=node)
        if math.prod(self.builder.value(added).shape) > MOST_VALUES:
            raise ValueError(f"a value of shape {self.builder.value(added).shape} is too large")
        return added

    def value(self, name: str) -> Value:
        return self.builder.value(name)


def graph_name(name: str) -> str:
    """A NIR node's name as the graph takes it."""
    return re.sub(r"[\s/]+", "_", name) or "_"


def floats(values: Any, label: str = "") -> Array:
    """Numbers as float32, or float64 where the file has them so; ValueError where they are not finite."""
    array = np.asarray(values)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{label} holds values that are not finite")
    return array


def whole(values: Any, axes: int) -> tuple[int, ...]:
    """A window parameter as one integer per axis."""
    array = np.atleast_1d(np.asarray(values)).astype(np.int64)
    if array.size not in (1, axes):
        raise ValueError(f"{array.tolist()} does not fit {axes} axes")
    return tuple(int(n) for n in np.broadcast_to(array, (axes,)))


def spread(parameter: Array, value: Value, label: str) -> Array:
    """A parameter at every element of a value; NIR wants full shapes, size 1 is taken as well."""
    if parameter.size == 1:
        return np.broadcast_to(parameter.reshape(()), value.shape)
    if len(parameter.shape) == len(value.shape) and all(
        p in (1, n) for p, n in zip(parameter.shape, value.shape, strict=True)
    ):
        return np.broadcast_to(parameter, value.shape)
    raise ValueError(f"{label} has shape {parameter.shape}, the input {value.shape}")


def by_channel(parameter: Array) -> Array | None:
    """[] or [C] where a full parameter is the same at all positions, else None."""
    rows = parameter.reshape(parameter.shape[0], -1)
    if np.any(rows != rows[:, :1]):
        return None
    return rows[0, 0] if np.all(rows[:, 0] == rows[0, 0]) else rows[:, 0].copy()


def scaled(b: Build, node: str, x: str, factor: Array) -> str:
    """x times a full-shape factor; nothing where it is 1."""
    if np.all(factor == 1):
        return x
    channel = by_channel(factor)
    if channel is not None:
        scale = np.broadcast_to(channel, factor.shape[:1]).copy()
        return b.add(ops.Affine(scale, np.zeros_like(scale)), x, node=node, part="scale")
    constant = b.add(ops.Constant(factor.copy(), b.value(x).axes), node=node, part="factor")
    return b.add(ops.Mul(), x, constant, node=node, part="scale")


def _affine(b: Build, name: str, node: Any, x: str) -> str:
    bias = floats(node.bias, "bias") if isinstance(node, nir.Affine) else None
    if len(b.value(x).shape) != 1:
        raise ValueError(f"it takes vectors, not {b.value(x).shape}")
    return b.add(ops.Linear(Weight.dense(floats(node.weight, "weight")), bias), x, node=name)


def _conv(b: Build, name: str, node: Any, x: str) -> str:
    """A 1x1 convolution is a Linear at every position."""
    weight, bias = floats(node.weight, "weight"), floats(node.bias, "bias")
    axes = weight.ndim - 2
    space = b.value(x).shape[1:]
    stated = node.input_shape
    if stated is not None and len(space) == axes and whole(stated, axes) != space:
        raise ValueError(f"its input_shape is {list(whole(stated, axes))}, its input {list(space)}")
    stride, dilation, groups = whole(node.stride, axes), whole(node.dilation, axes), int(node.groups)
    before, after = _padding(node.padding, weight.shape[2:], dilation)
    if set(weight.shape[2:]) == set(stride) == {1} and not any(after) and groups == 1:
        return b.add(ops.Linear(Weight.dense(weight.reshape(weight.shape[:2])), bias), x, node=name)
    y = b.add(ops.Conv(Weight.dense(weight), bias, stride, after, dilation, groups), x, node=name)
    for axis, (low, high) in enumerate(zip(before, after, strict=True), start=1):
        if low != high:  # 'same' with an odd total pads one more behind
            stop = b.value(y).shape[axis]
            y = b.add(ops.Slice(axis, high - low, stop), y, node=name, part="same")
    return y


def _padding(
    padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Zeros before and behind each axis; 'same' as PyTorch: the odd one behind."""
    if not isinstance(padding, str):
        both = whole(padding, len(kernel))
        return both, both
    total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
    return tuple(n // 2 for n in total), tuple(n - n // 2 for n in total)


def _pool(b: Build, name: str, node: Any, x: str) -> str:
    """Padding counts as zeros. A sum is a mean times its area where that is exact, else a convolution of ones."""
    kernel, stride, padding = (whole(v, 2) for v in (node.kernel_size, node.stride, node.padding))
    area = math.prod(kernel)
    if area == 1 and stride == (1, 1) and padding == (0, 0):
        return x
    if isinstance(node, nir.AvgPool2d) or area & (area - 1) == 0:
        y = b.add(ops.AvgPool(kernel, stride, padding), x, node=name)
        return (
            y if isinstance(node, nir.AvgPool2d) else b.add(ops.Scale(float(area)), y, node=name, part="sum")
        )
    channels = b.value(x).shape[0]
    ones = Weight.dense(np.ones((channels, 1, *kernel), dtype=np.float32))
    return b.add(ops.Conv(ones, None, stride, padding, (1, 1), channels), x, node=name)


def _flatten(b: Build, name: str, node: Any, x: str) -> str:
    return x if _flattened(b.value(x).shape, node) is None else b.add(ops.Flatten(), x, node=name)


def _flattened(shape: tuple[int, ...], node: Any) -> bool | None:
    """True: to a vector; False: partly; None: it changes nothing."""
    start, end = (int(i) % len(shape) for i in (node.start_dim, node.end_dim))
    if start >= end:
        return None
    return start == 0 and end == len(shape) - 1


def _scale(b: Build, name: str, node: Any, x: str) -> str:
    return scaled(b, name, x, spread(floats(node.scale, "scale"), b.value(x), "scale"))


def _threshold(b: Build, name: str, node: Any, x: str) -> str:
    """A neuron with tau = 1 that resets to 0 keeps nothing: h = x."""
    level = spread(floats(node.threshold, "threshold"), b.value(x), "threshold")
    return _fire(b, name, x, np.ones(level.shape, dtype=np.float32), level, np.zeros_like(level), "Threshold")


def _lif(b: Build, name: str, node: Any, x: str) -> str:
    value = b.value(x)
    labels = ("tau", "r", "v_leak", "v_threshold", "v_reset")
    tau, r, leak, level, rest = (spread(floats(getattr(node, k), k), value, k) for k in labels)
    tau = _in_steps(tau, b.dt)
    if b.own and np.all(tau == IF_TAU):  # how the exporter writes an integrate-and-fire neuron
        return _fire(b, name, x, None, level * IF_TAU, rest, "IF")
    x = scaled(b, name, x, r)
    if np.any(leak != rest):
        # u = v - v_reset is driven by x + v_leak - v_reset and starts at v_leak - v_reset: tau of them at once.
        offset = (leak - rest).astype(np.float64)
        if offset.size * b.builder.steps > MOST_VALUES:
            raise ValueError(f"its leak over {b.builder.steps} steps is too large")
        steps = np.stack([offset * tau, *[offset] * (b.builder.steps - 1)])
        constant = b.add(ops.Constant(steps, value.axes, per_step=True), node=name, part="leak")
        x = b.add(ops.Add(), x, constant, node=name, part="drive")
    return _fire(b, name, x, tau, level, rest, "LIF")


def _if(b: Build, name: str, node: Any, x: str) -> str:
    value = b.value(x)
    labels = ("r", "v_threshold", "v_reset")
    r, level, rest = (spread(floats(getattr(node, k), k), value, k) for k in labels)
    return _fire(b, name, scaled(b, name, x, r * np.float64(b.dt)), None, level, rest, "IF")


def _in_steps(tau: Array, dt: float) -> Array:
    """tau / dt, without the float64 noise of a quotient that float32 holds, in float32 where tau is."""
    if tau.dtype == np.float32:
        ratio = tau / np.float32(dt)
    else:
        ratio = tau / dt
        short = ratio.astype(np.float32).astype(np.float64)
        ratio = np.where(np.abs(ratio - short) <= 4 * np.spacing(ratio), short, ratio)
    if np.any(ratio < 1):
        raise ValueError(
            f"tau = {float(tau.min()):g} is shorter than a step of dt = {dt:g}: choose a smaller dt"
        )
    return np.asarray(ratio)


def _fire(b: Build, name: str, x: str, tau: Array | None, level: Array, rest: Array, kind: str) -> str:
    """A neuron fires at h >= v_threshold, NIR's at h > v_threshold: at the next float32."""
    shape = b.value(x).shape
    near = level.astype(np.float32)
    above = np.where(near > level, near, np.nextafter(near, np.float32(np.inf)))
    tau_c = None if tau is None else by_channel(np.broadcast_to(tau, shape))
    level_c, rest_c = by_channel(np.broadcast_to(above, shape)), by_channel(np.broadcast_to(rest, shape))
    if level_c is None or rest_c is None:
        raise TypeError(f"{name}: parameters by position should have been refused")
    return b.add(ops.Neuron(tau_c, level_c, rest_c, kind=kind), x, node=name)


def _delay(b: Build, name: str, node: Any, x: str) -> str:
    return x


BUILD: dict[type, Callable[[Build, str, Any, str], str]] = {
    nir.Affine: _affine,
    nir.Linear: _affine,
    nir.Conv1d: _conv,
    nir.Conv2d: _conv,
    nir.AvgPool2d: _pool,
    nir.SumPool2d: _pool,
    nir.Flatten: _flatten,
    nir.Scale: _scale,
    nir.Threshold: _threshold,
    nir.LIF: _lif,
    nir.IF: _if,
    nir.Delay: _delay,
}
"""What a NIR node, fed by one value, becomes; each returns the name of its value."""

_NO_STATE = "its value is a leaking sum over the steps, and only spiking neurons of a graph keep a state"
REASONS: dict[type, str] = {
    nir.I: _NO_STATE,
    nir.LI: _NO_STATE,
    nir.CubaLI: _NO_STATE,
    nir.CubaLIF: "its synaptic current is a second state, which a graph's neuron does not have",
}


def refusal(node: Any) -> str | None:
    """Why a graph cannot hold a NIR node, from its parameters alone; None where it can."""
    if type(node) in REASONS:
        return REASONS[type(node)]
    if isinstance(node, nir.Delay) and np.any(np.asarray(node.delay) != 0):
        return "a delay: a graph's values belong to the step in which they are computed"
    if isinstance(node, nir.Linear | nir.Affine) and np.ndim(node.weight) != 2:
        return f"a weight of shape {np.shape(node.weight)}: one matrix per position"
    if isinstance(node, nir.Conv1d | nir.Conv2d) and isinstance(node.padding, str):
        same = node.padding == "same"
        if same and np.any(np.asarray(node.stride) != 1):
            return "padding 'same' with a stride has no agreed meaning"
    if isinstance(node, nir.LIF | nir.IF | nir.Threshold):
        labels = ("threshold",) if isinstance(node, nir.Threshold) else ("tau", "v_threshold", "v_reset")
        varied = [k for k in labels if hasattr(node, k) and _by_position(np.asarray(getattr(node, k)))]
        if varied:
            return f"{', '.join(varied)} differ between positions of a channel; a graph has them per channel"
    if isinstance(node, nir.Flatten) and node.input_type["input"] is not None:
        shape = tuple(int(n) for n in node.input_type["input"])
        if shape and _flattened(shape, node) is False:
            return f"it flattens axes {int(node.start_dim)} to {int(node.end_dim)} of {len(shape)}, not all"
    return None


def _by_position(parameter: Array) -> bool:
    return parameter.ndim > 1 and by_channel(parameter) is None
