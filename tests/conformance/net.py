"""A builder of small nets whose numbers are dyadic, so that float32 is exact and ties at the threshold happen."""

from __future__ import annotations

from typing import Any

import numpy as np

from stdeploy.graph import Graph, GraphBuilder, Weight, ops, validate
from stdeploy.graph.ops import Op
from stdeploy.graph.weight import Array
from tests.graphs import random_inputs

AXES = ("channel", "y", "x")


class Net:
    """A chain over an Input whose numbers are dyadic, so that float32 is exact and ties at the threshold happen."""

    def __init__(self, shape: tuple[int, ...] = (4, 4, 6), steps: int = 4, layout: Any = "TB") -> None:
        self.rng = np.random.default_rng(3)
        self.builder = GraphBuilder(steps, {"source": "test", "passes": ["none"]})
        self.x = self.builder.add(ops.Input(shape, AXES[: len(shape)], layout), name="input")

    def add(self, op: Op, *inputs: str, name: str = "op") -> str:
        return self.builder.add(op, inputs or (self.x,), name=name, source=name)

    def dyadic(self, *shape: int) -> Array:
        return self.rng.integers(-4, 7, shape) / 4

    def linear(self, x: str, out: int, name: str) -> str:
        inp = self.builder.value(x).shape[0]
        weight = Weight.dense(self.rng.integers(-3, 6, (out, inp)) / 4)
        return self.add(ops.Linear(weight, self.dyadic(out)), x, name=name)

    def fire(self, x: str, name: str, **how: Any) -> str:
        given = {"tau": 2.0, "v_threshold": 0.5, "v_reset": -0.25, **how}
        for key in ("tau", "v_threshold", "v_reset"):
            given[key] = None if given[key] is None else np.asarray(given[key])
        return self.add(ops.Neuron(**given), x, name=name)

    def spikes(self, name: str, channels: int) -> str:
        return self.fire(self.linear(self.x, channels, f"{name}_linear"), f"{name}_lif")

    def done(self, x: str, layout: Any = None) -> Graph:
        step = self.builder.value(x).time == "step"
        self.add(ops.Output("logits", layout or ("TB" if step else "B")), x, name="output")
        return validate(self.builder.build())


def inputs(graph: Graph, batch: int = 3) -> Array:
    """Small dyadic inputs in the Input's layout."""
    shape = random_inputs(graph, batch).shape
    return (np.random.default_rng(5).integers(-4, 9, shape) / 4).astype(np.float32)
