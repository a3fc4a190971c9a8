"""One stage of an event program alone, and what the tests of stages and tables draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from stdeploy.exporters.event.draft import Draft
from stdeploy.exporters.event.formats import Format
from stdeploy.exporters.event.stages import NUMBER, STAGES
from stdeploy.graph import Graph, Weight, ops
from stdeploy.graph.rules import window_count
from stdeploy.graph.weight import Array
from stdeploy.runtime.event.bit_arrays import packed
from stdeploy.runtime.event.machine import Machine

SIZES = st.sampled_from([1, 2, 3, 31, 63, 64, 65, 127, 128, 129, 200])
STEPS = st.sampled_from([1, 3, 4, 5])
SOME = settings(max_examples=60, deadline=None)


def alone(
    stage: Mapping[str, Any],
    buffers: Mapping[str, Any],
    arrays: Mapping[str, Array],
    steps: int,
    threads: int = 1,
    *,
    stateful: bool = False,
) -> Machine:
    """A machine of one stage, whose memory holds anything but zeros."""
    header = {
        "stages": [stage],
        "buffers": buffers,
        "input": {"buffer": next(iter(stage["places"].values()))},
        "outputs": [{"buffer": name} for name in stage["places"].values()],
    }
    machine = Machine(header, arrays, steps, threads, stateful=stateful)
    machine.bytes[:] = 0xA5
    return machine


class OneStage:
    """A program of one stage; `run` puts arrays into its buffers and takes one out."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.draft = Draft(Graph(steps, {}))

    def buffer(self, name: str, kind: str, count: int) -> str:
        return self.draft.buffer(name, kind, count, True)

    def run(self, op: str, inputs: dict[str, Array], out: str, threads: int = 1, **fields: int) -> Array:
        names = self.draft.buffers
        stepped = {f: True for f in STAGES[NUMBER[op]]._fields if f == "steps" or f.endswith("_steps")}
        self.draft.stage(op, ["n"], {name: name for name in names}, fields, stepped)
        arrays = {"weights": self.draft.floats.array(), "indices": self.draft.ints.array()}
        machine = alone(self.draft.stages[0], names, arrays, self.steps, threads)
        for name, array in inputs.items():
            machine.array(name)[:] = array.reshape(-1)
        machine.run(0, 1)
        machine.close()
        return machine.array(out).copy()


def bits(values: Array, planes: int, form: Format) -> Array:
    """Counts `[T, C, P]` as planes of words: by the definition in stages."""
    return np.concatenate([packed((values >> k) & 1, form) for k in range(planes)])


def counts(seed: int, planes: int, *shape: int) -> Array:
    return np.random.default_rng(seed).integers(0, 2**planes, shape)


@st.composite
def sliding(draw: Any) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
    """A convolution or pool of one or two axes, the shape it slides over and the one it makes."""
    axes = draw(st.integers(1, 2))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    shape, kernel, stride = each(1, 11), each(1, 3), each(1, 3)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    dilation = each(1, 2)
    kind = draw(st.sampled_from(["conv", "max", "avg"]))
    dilation = (1,) * axes if kind == "avg" else dilation
    ceil = kind != "conv" and draw(st.booleans())
    pieces = zip(shape, kernel, stride, padding, dilation, strict=True)
    try:
        out = tuple(window_count(n, k, s, p, d, ceil) for n, k, s, p, d in pieces)
    except ValueError:
        return draw(sliding())  # type: ignore[no-any-return]
    if kind == "conv":
        weight = Weight.dense(np.ones((1, 1, *kernel), np.float32))
        return ops.Conv(weight, None, stride, padding, dilation), shape, out
    if kind == "max":
        return ops.MaxPool(kernel, stride, padding, dilation, ceil), shape, out
    return ops.AvgPool(kernel, stride, padding, ceil), shape, out
