"""The operator catalogue: each operator's equation, shape rule, time rule and domain rule in one place.

Tensors are `[channel, *spatial]`; time and batch are implicit. `t` indexes steps. An operator's
`infer` raises ValueError with a plain reason where its inputs do not fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from stdeploy.graph.matmul import MatMul
from stdeploy.graph.op import Op
from stdeploy.graph.rules import (
    broadcast,
    check_bias,
    multiplied,
    summed,
    switched,
    weighed_domain,
    weighed_time,
    window_count,
)
from stdeploy.graph.value import REAL, SPIKE, Domain, Value, count, join_time
from stdeploy.graph.weight import Array, Weight

__all__ = [
    "CATALOGUE",
    "Add",
    "Affine",
    "AvgPool",
    "Concat",
    "Constant",
    "Conv",
    "Flatten",
    "Input",
    "Linear",
    "MatMul",
    "MaxPool",
    "Mul",
    "Neuron",
    "Op",
    "Output",
    "Readout",
    "ReadoutMode",
    "Reduce",
    "Scale",
    "Select",
    "Slice",
]


@dataclass(frozen=True, eq=False)
class Input(Op):
    """x: the network's input. `layout` is the order the user passes: `B` (static), `BT` or `TB`, then `shape`."""

    arity: ClassVar[int] = 0
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    layout: Literal["B", "BT", "TB"] = "B"
    domain: Domain = REAL

    def infer(self, inputs: list[Value], steps: int) -> Value:
        return Value(self.shape, self.axes, "static" if self.layout == "B" else "step", self.domain)


@dataclass(frozen=True, eq=False)
class Constant(Op):
    """y[t] = value[t] (`per_step`, value `[T, *shape]`) or y = value (`[*shape]`)."""

    arity: ClassVar[int] = 0
    value: Array
    axes: tuple[str, ...]
    per_step: bool = False

    def infer(self, inputs: list[Value], steps: int) -> Value:
        shape = self.value.shape[1:] if self.per_step else self.value.shape
        if self.per_step and self.value.shape[0] != steps:
            raise ValueError(f"constant has {self.value.shape[0]} steps, the graph {steps}")
        nonzero = np.unique(self.value[self.value != 0])
        domain = REAL
        if np.all(nonzero > 0) and np.all(nonzero == np.round(nonzero)):
            domain = count(1.0, int(nonzero.max(initial=1)))
        elif nonzero.size == 1 and nonzero[0] > 0:
            domain = count(float(nonzero[0]), 1)
        return Value(tuple(shape), self.axes, "step" if self.per_step else "static", domain)


@dataclass(frozen=True, eq=False)
class Linear(Op):
    """y[o, p] = sum_i W[o, i] x[i, p] + b[o], or b[t, o]; at every position p of the other axes."""

    weight: Weight
    bias: Array | None = None

    def infer(self, inputs: list[Value], steps: int) -> Value:
        (x,) = inputs
        if len(self.weight.shape) != 2 or not x.shape or x.shape[0] != self.weight.shape[1]:
            raise ValueError(f"weight {self.weight.shape} does not take {x.shape}")
        check_bias(self.bias, self.weight.shape[0], steps)
        axes = ("channel", *x.axes[1:])
        domain = REAL if self.bias is not None else weighed_domain(x.domain, self.weight)
        return Value((self.weight.shape[0], *x.shape[1:]), axes, weighed_time(x.time, self.bias), domain)


@dataclass(frozen=True, eq=False)
class Conv(Op):
    """y[o, p] = sum_{i,k} W[o, i, k] x[g(o)+i, stride*p + dilation*k - padding] + b[o] (or b[t, o]), zero padding.

    `weight [out, in/groups, *kernel]`, one or two spatial axes.
    """

    weight: Weight
    bias: Array | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def infer(self, inputs: list[Value], steps: int) -> Value:
        (x,) = inputs
        kernel = self.weight.shape[2:]
        if len(kernel) != len(x.shape) - 1 or x.shape[0] != self.weight.shape[1] * self.groups:
            raise ValueError(f"weight {self.weight.shape} (groups {self.groups}) does not take {x.shape}")
        if self.weight.shape[0] % self.groups:
            raise ValueError(
                f"{self.weight.shape[0]} output channels do not divide into {self.groups} groups"
            )
        check_bias(self.bias, self.weight.shape[0], steps)
        windows = zip(x.shape[1:], kernel, self.stride, self.padding, self.dilation, strict=True)
        spatial = tuple(window_count(n, k, s, p, d) for n, k, s, p, d in windows)
        axes = ("channel", *x.axes[1:])
        return Value((self.weight.shape[0], *spatial), axes, weighed_time(x.time, self.bias))


@dataclass(frozen=True, eq=False)
class Affine(Op):
    """y[c, p] = scale[c] x[c, p] + shift[c]: BatchNorm with running statistics."""

    scale: Array
    shift: Array

    def infer(self, inputs: list[Value], steps: int) -> Value:
        (x,) = inputs
        if self.scale.shape != x.shape[:1] or self.shift.shape != x.shape[:1]:
            raise ValueError(f"scale {self.scale.shape} and shift {self.shift.shape} do not fit {x.shape}")
        return Value(x.shape, x.axes, x.time, switched(x.domain, self.scale, self.shift))


@dataclass(frozen=True, eq=False)
class Neuron(Op):
    """Charge, fire, reset, from v = v_reset (0 where the reset is soft), as SpikingJelly:

    h = v + (x[t] - (v - r)) / tau      (decay_input)
    h = v - (v - r) / tau + x[t]        (not decay_input)
    h = v + x[t]                        (tau is None: IF)
    s[t] = 1 if h >= v_threshold else 0
    v = (1 - s) h + s v_reset           (hard: v_reset given)
    v = h - s v_threshold               (soft: v_reset is None; r = 0)

    `tau`, `v_threshold`, `v_reset`: arrays [] or [C]. `kept[i]` is the channel of the source module's
    neuron that channel i is, where passes removed some (None: all).
    """

    tau: Array | None
    v_threshold: Array
    v_reset: Array | None
    decay_input: bool = True
    kind: str = "LIF"
    kept: Array | None = None

    def __post_init__(self) -> None:
        for name in ("tau", "v_threshold", "v_reset"):  # numpy turns 0-d arrays into scalars when it computes
            value = getattr(self, name)
            if value is not None and not isinstance(value, np.ndarray):
                object.__setattr__(self, name, np.asarray(value))

    def infer(self, inputs: list[Value], steps: int) -> Value:
        (x,) = inputs
        if x.time == "final":
            raise ValueError("a neuron is fed a value that exists only after all steps")
        for label, array in (("tau", self.tau), ("v_threshold", self.v_threshold), ("v_reset", self.v_reset)):
            if array is not None and array.shape not in ((), x.shape[:1]):
                raise ValueError(
                    f"{label} {array.shape} is neither a scalar nor one per channel of {x.shape}"
                )
        return Value(x.shape, x.axes, "step", SPIKE)


@dataclass(frozen=True, eq=False)
class MaxPool(Op):
    """y[c, p] = max_k x[c, stride*p + dilation*k - padding], padding never wins."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil_mode: bool = False

    def infer(self, inputs: list[Value], steps: int) -> Value:
        (x,) = inputs
        if len(self.kernel) != len(x.shape) - 1:
            raise ValueError(f"a {len(self.kernel)}-d window does not take {x.shape}")
        windows = zip(x.shape[1:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        spatial = tuple(window_count(n, k, s, p, d, self.ceil_mode) for n, k, s, p, d in windows)
        return Value((x.shape[0], *spatial), x.axes, x.time, x.domain)


@dataclass(frozen=True, eq=False)
class AvgPool(Op):
    """y[c, p] = mean_k x[c, stride*p + k - padding]; padding counts as zeros where `count_include_pad`."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    ceil_mode: bool = False
    count_include_pad: bool = True

    def infer(self, inputs: list[Value], steps: int) -> Value:
        (x,) = inputs
        if len(self.kernel) != len(x.shape) - 1:
            raise ValueError(f"a {len(self.kernel)}-d window does not take {x.shape}")
        windows = zip(x.shape[1:], self.kernel, self.stride, self.padding, strict=True)
        spatial = tuple(window_count(n, k, s, p, 1, self.ceil_mode) for n, k, s, p in windows)
        even = not self.ceil_mode and (self.count_include_pad or not any(self.padding))
        return Value(
            (x.shape[0], *spatial),
            x.axes,
            x.time,
            summed(x.domain, int(np.prod(self.kernel)), True) if even else REAL,
        )


@dataclass(frozen=True, eq=False)
class Reduce(Op):
    """Sum (or mean) over the listed axes; axes count from 0 = channel. `keepdims` leaves size 1."""

    over: tuple[int, ...]
    mean: bool
    keepdims: bool = False

    def infer(self, inputs: list[Value], steps: int) -> Value:
        (x,) = inputs
        if not self.over or any(not 0 <= a < len(x.shape) for a in self.over):
            raise ValueError(f"axes {self.over} are not axes of {x.shape}")
        terms = int(np.prod([x.shape[a] for a in self.over]))
        keep = [i for i in range(len(x.shape)) if self.keepdims or i not in self.over]
        shape = tuple(1 if i in self.over else x.shape[i] for i in keep)
        return Value(shape, tuple(x.axes[i] for i in keep), x.time, summed(x.domain, terms, self.mean))


@dataclass(frozen=True, eq=False)
class Add(Op):
    """y = a + b, equal ranks, axes of size 1 broadcast."""

    arity: ClassVar[int] = 2

    def infer(self, inputs: list[Value], steps: int) -> Value:
        a, b = inputs
        shape, axes = broadcast(a, b)
        domain = REAL
        if a.domain.maximum is not None and b.domain.maximum is not None and a.domain.scale == b.domain.scale:
            domain = count(a.domain.scale, a.domain.maximum + b.domain.maximum)
        return Value(shape, axes, join_time([a.time, b.time]), domain)


@dataclass(frozen=True, eq=False)
class Mul(Op):
    """y = a * b, equal ranks, axes of size 1 broadcast."""

    arity: ClassVar[int] = 2

    def infer(self, inputs: list[Value], steps: int) -> Value:
        a, b = inputs
        shape, axes = broadcast(a, b)
        return Value(shape, axes, join_time([a.time, b.time]), multiplied(a.domain, b.domain, 1))


@dataclass(frozen=True, eq=False)
class Scale(Op):
    """y = factor * x."""

    factor: float

    def infer(self, inputs: list[Value], steps: int) -> Value:
        (x,) = inputs
        domain = REAL if x.domain.maximum is None else count(x.domain.scale * self.factor, x.domain.maximum)
        return Value(x.shape, x.axes, x.time, domain)


@dataclass(frozen=True, eq=False)
class Flatten(Op):
    """y[i] = x at row-major index i of all axes; `tokens`: y[c, i], of all axes but the first."""

    tokens: bool = False

    def infer(self, inputs: list[Value], steps: int) -> Value:
        (x,) = inputs
        if not self.tokens:
            return Value((int(np.prod(x.shape)),), ("channel",), x.time, x.domain)
        if not x.shape:
            raise ValueError("a scalar has no channels")
        return Value((x.shape[0], int(np.prod(x.shape[1:]))), (x.axes[0], "token"), x.time, x.domain)


@dataclass(frozen=True, eq=False)
class Concat(Op):
    """Inputs one after another along `axis`."""

    arity: ClassVar[int] = -1
    axis: int = 0

    def infer(self, inputs: list[Value], steps: int) -> Value:
        first = inputs[0]
        for other in inputs[1:]:
            if [n for i, n in enumerate(other.shape) if i != self.axis] != [
                n for i, n in enumerate(first.shape) if i != self.axis
            ]:
                raise ValueError(f"{first.shape} and {other.shape} do not join along axis {self.axis}")
        total = sum(v.shape[self.axis] for v in inputs)
        shape = tuple(total if i == self.axis else n for i, n in enumerate(first.shape))
        scales = {v.domain.scale for v in inputs if v.domain.maximum}
        bounds = [v.domain.maximum for v in inputs]
        known = [m for m in bounds if m is not None]
        exact = len(known) == len(bounds) and len(scales) <= 1
        domain = count(scales.pop() if scales else 1.0, max(known)) if exact else REAL
        return Value(shape, first.axes, join_time([v.time for v in inputs]), domain)


@dataclass(frozen=True, eq=False)
class Slice(Op):
    """y = x[start:stop] along `axis`."""

    axis: int
    start: int
    stop: int

    def infer(self, inputs: list[Value], steps: int) -> Value:
        (x,) = inputs
        if not (0 <= self.axis < len(x.shape) and 0 <= self.start < self.stop <= x.shape[self.axis]):
            raise ValueError(f"[{self.start}:{self.stop}] is not within axis {self.axis} of {x.shape}")
        shape = tuple(self.stop - self.start if i == self.axis else n for i, n in enumerate(x.shape))
        return Value(shape, x.axes, x.time, x.domain)


@dataclass(frozen=True, eq=False)
class Select(Op):
    """y[c, j] = x[c, i_j]: the `count` tokens of x [C, N] with the best scores, the second input (N numbers).

    i_1, i_2, ... go from the highest score down (`largest`; else from the lowest up); of equal scores the lower
    index comes first. `order` "index" then sorts them by position. Scores whose domain counts are compared
    as their integers: rounding decides nothing. Chosen anew at every step where the scores are per step.
    Source: STATA, Zhuge et al., ICML 2024, section 4.2.
    """

    arity: ClassVar[int] = 2
    count: int
    largest: bool = True
    order: Literal["score", "index"] = "score"

    def infer(self, inputs: list[Value], steps: int) -> Value:
        x, scores = inputs
        if len(x.shape) != 2:
            raise ValueError(f"{x.shape} are not channels and tokens")
        if int(np.prod(scores.shape)) != x.shape[1]:
            raise ValueError(f"scores {scores.shape} are not one for each of {x.shape[1]} tokens")
        if not 1 <= self.count <= x.shape[1]:
            raise ValueError(f"{self.count} of {x.shape[1]} tokens cannot be kept")
        if self.order not in ("score", "index"):
            raise ValueError(f"unknown order {self.order!r}")
        return Value((x.shape[0], self.count), x.axes, join_time([x.time, scores.time]), x.domain)


ReadoutMode = Literal["mean", "sum", "last"]


@dataclass(frozen=True, eq=False)
class Readout(Op):
    """Over the steps: y = mean_t x[t], sum_t x[t] or x[T-1]."""

    mode: ReadoutMode

    def infer(self, inputs: list[Value], steps: int) -> Value:
        (x,) = inputs
        if x.time == "final":
            raise ValueError("a readout over time is fed a value without time")
        domain = x.domain if self.mode == "last" else summed(x.domain, steps, self.mode == "mean")
        return Value(x.shape, x.axes, "final", domain)


@dataclass(frozen=True, eq=False)
class Output(Op):
    """The network's output as the user's model returns it: `B` then shape, or per step `TB` / `BT`.

    `label` is the output's public name in artefacts. `order`: the value's axes in the order in which the model
    returns them (`[B, N, C]` is (1, 0)); empty where that is the value's own.
    """

    label: str = "output"
    layout: Literal["B", "BT", "TB"] = "B"
    order: tuple[int, ...] = ()

    def infer(self, inputs: list[Value], steps: int) -> Value:
        (x,) = inputs
        if (x.time == "step") != (self.layout != "B"):
            raise ValueError(f"layout {self.layout} does not fit a {x.time} value")
        if self.order and sorted(self.order) != list(range(len(x.shape))):
            raise ValueError(f"{self.order} is no order of the axes of {x.shape}")
        return x

    def permutation(self, rank: int) -> tuple[int, ...]:
        """Axes of a value of `rank` axes behind batch (and time), as the model returns them."""
        lead = len(self.layout)
        return (*range(lead), *(lead + a for a in self.order or range(rank)))

    def returned(self, array: Array) -> Array:
        """An array in the output's layout, whose axes are the value's, as the model returns it."""
        return array.transpose(self.permutation(array.ndim - len(self.layout)))


def _catalogue() -> dict[str, type[Op]]:
    return {cls.__name__: cls for cls in Op.__subclasses__()}


CATALOGUE: dict[str, type[Op]] = _catalogue()
"""Every operator by name."""
