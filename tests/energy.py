"""What the tests of counts share: a graph of one layer, and data of every class."""

from __future__ import annotations

import numpy as np

from stdeploy.energy.ledger import Class
from stdeploy.graph import Graph, GraphBuilder, ops, validate
from stdeploy.graph.ops import Op
from stdeploy.graph.weight import Array

AXES = ("channel", "y", "x")


def layer_graph(op: Op, shape: tuple[int, ...], steps: int = 2) -> Graph:
    """One operator between an Input, time first, and an Output."""
    builder = GraphBuilder(steps)
    x = builder.add(ops.Input(shape, AXES[: len(shape)], "TB"), name="input")
    y = builder.add(op, (x,), name="layer")
    builder.add(ops.Output("y", "TB"), (y,), name="output")
    return validate(builder.build())


def values(rng: np.random.Generator, shape: tuple[int, ...], kind: Class) -> Array:
    """Spikes, counts or reals of which a part is zero."""
    if kind == "binary":
        return (rng.random(shape) < 0.4).astype(np.float32)
    if kind == "count":
        return rng.poisson(0.8, shape).astype(np.float32)
    return (rng.standard_normal(shape) * (rng.random(shape) < 0.7)).astype(np.float32)
