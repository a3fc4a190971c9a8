"""Small networks of operators one behind another."""

from __future__ import annotations

from typing import Any

import numpy as np

from stdeploy.graph import Graph, GraphBuilder, Weight, ops, validate
from stdeploy.graph.value import Domain

_AXES = ("channel", "y", "x")


def chain(
    shape: tuple[int, ...], *parts: ops.Op, steps: int = 3, layout: Any = "TB", domain: Domain = ops.REAL
) -> Graph:
    """Operators one behind another."""
    builder = GraphBuilder(steps)
    name = builder.add(ops.Input(shape, _AXES[: len(shape)], layout, domain), name="input")
    for i, op in enumerate(parts):
        name = builder.add(op, (name,), name=f"n{i}")
    time_ = builder.value(name).time
    builder.add(ops.Output("y", "TB" if time_ == "step" else "B"), (name,), name="output")
    return validate(builder.build())


def lif(threshold: float = 0.7, tau: float | None = 1.7, rest: float | None = -0.1) -> ops.Neuron:
    """A neuron whose tau is no power of two."""
    return ops.Neuron(
        None if tau is None else np.float32(tau),
        np.float32(threshold),
        None if rest is None else np.float32(rest),
    )


def conv(out: int, inp: int, groups: int, kernel: int = 3, seed: int = 0, density: float = 1.0) -> ops.Conv:
    """A convolution in eighths that keeps the size of what it slides over."""
    rng = np.random.default_rng(seed)
    shape = (out, inp // groups, kernel, kernel)
    weight = rng.integers(-8, 9, shape) / 8 * (rng.random(shape) < density)
    bias, pads = rng.integers(-2, 6, out).astype(np.float32) / 8, (kernel // 2, kernel // 2)
    return ops.Conv(Weight.dense(weight.astype(np.float32)), bias, (1, 1), pads, (1, 1), groups)


def linear(out: int, inp: int, seed: int = 0, scale: float = 1.0) -> ops.Linear:
    """A Linear in eighths of `scale`."""
    rng = np.random.default_rng(seed)
    weight = (scale * rng.integers(-8, 9, (out, inp)) / 8).astype(np.float32)
    return ops.Linear(Weight.dense(weight), rng.integers(-4, 9, out).astype(np.float32) / 8)
