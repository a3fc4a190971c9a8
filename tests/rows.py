"""Small networks with constant channels at chosen places, and the check that a pass keeps every spike."""

from __future__ import annotations

from typing import Literal

import numpy as np

from stdeploy.graph import Graph, GraphBuilder, Weight, ops, validate
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.ops import Op
from stdeploy.graph.weight import Array
from stdeploy.passes.base import PassResult
from stdeploy.passes.constant_channels import ConstantChannels
from tests.graphs import every_layer_fires

AXES = ("channel", "y", "x")
SILENT, ALWAYS, OFTEN, LATE = 0.4, 9.0, 1.7, 1.15
"""Drives of a LIF with tau 1.7, threshold 1, v_reset -0.1 over 5 steps: 0, 5, 2 and 1 spikes."""


def same_spikes(before: Graph, after: Graph, x: Array) -> None:
    old, new = interpret(before, x), interpret(after, x)
    for node in after.neurons:
        assert isinstance(node.op, ops.Neuron)
        spikes = old.spikes[node.name]
        kept = slice(None) if node.op.kept is None else node.op.kept
        np.testing.assert_array_equal(new.spikes[node.name], spikes[:, :, kept], err_msg=node.name)
    for label, value in old.outputs.items():
        np.testing.assert_allclose(new.outputs[label], value, rtol=1e-11, atol=1e-11)


def check(graph: Graph, x: Array, constants: Literal["fold", "keep"] = "fold") -> PassResult:
    """Run the pass: every layer fires, spikes stay, a second run changes nothing."""
    every_layer_fires(graph, x)
    result = ConstantChannels(constants).run(graph)
    validate(result.graph)
    assert result.modified == (result.graph is not graph)
    same_spikes(graph, result.graph, x)
    again = ConstantChannels(constants).run(result.graph)
    assert not again.modified and again.graph is result.graph
    return result


def width(graph: Graph, name: str) -> int:
    return graph[name].value.shape[0]


class Net:
    """Random layers over a [3, 4, 5] input per step, T = 5, batch 3."""

    def __init__(self, seed: int = 0, steps: int = 5) -> None:
        self.rng = np.random.default_rng(seed)
        self.builder = GraphBuilder(steps)
        self.x = self.add(ops.Input((3, 4, 5), AXES, "TB"), name="input")

    def add(self, op: Op, *inputs: str, name: str) -> str:
        return self.builder.add(op, inputs, name=name, source=name)

    def linear(self, x: str, out: int, name: str, drives: dict[int, float] | None = None) -> str:
        """Random Linear whose rows in `drives` are zero with that bias."""
        weight = 1.5 * self.rng.normal(size=(out, self.builder.value(x).shape[0]))
        bias = self.rng.normal(size=out)
        for row, drive in (drives or {}).items():
            weight[row], bias[row] = 0.0, drive
        return self.add(ops.Linear(Weight.dense(weight), bias), x, name=name)

    def lif(self, x: str, name: str, threshold: float | None = None) -> str:
        """A LIF, by default with a threshold that some of its drive reaches within a step or two."""
        if threshold is None:
            probe = GraphBuilder(self.builder.steps)
            probe.nodes = dict(self.builder.nodes)
            probe.add(ops.Output("probe", "TB"), (x,), name="probe")
            drive = interpret(probe.build(), self.data()).outputs["probe"]
            reached = drive[drive > 0] if np.any(drive > 0) else np.ones(1)
            threshold = 1.013 * float(np.quantile(reached, 0.4)) / 1.7 - 0.1
        return self.add(ops.Neuron(np.array(1.7), np.array(threshold), np.array(-0.1)), x, name=name)

    def unit(self, x: str, out: int, name: str, drives: dict[int, float] | None = None) -> str:
        return self.lif(self.linear(x, out, f"{name}_fc", drives), name, 1.0 if drives else None)

    def conv(self, x: str, out: int, name: str, padding: int) -> str:
        weight = self.rng.normal(size=(out, self.builder.value(x).shape[0], 3, 3)) / 2
        op = ops.Conv(Weight.dense(weight), self.rng.normal(size=out), (1, 1), (padding,) * 2, (1, 1))
        return self.add(op, x, name=name)

    def done(self, *outputs: str) -> Graph:
        for i, name in enumerate(outputs):
            self.add(ops.Output(f"y{i}", "TB"), name, name=f"output{i}")
        return validate(self.builder.build())

    def data(self) -> Array:
        return np.random.default_rng(9).normal(size=(self.builder.steps, 3, 3, 4, 5))


def linear_of(graph: Graph, name: str) -> ops.Linear | ops.Conv:
    op = graph[name].op
    assert isinstance(op, ops.Linear | ops.Conv)
    return op
