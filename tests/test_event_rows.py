"""The stage Rows alone: sums of integers, which are exact in any order, spikes, and the operations that it counts."""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.exporters.event.lower import lower
from stdeploy.exporters.event.pack import blocks_of
from stdeploy.graph import Graph, Weight, ops
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.value import count
from stdeploy.graph.weight import Array
from stdeploy.runtime.event.machine import Machine
from tests.chains import chain
from tests.event_stage import alone, bits

Product = ops.Linear | ops.Conv
OUTPUTS = (1, 15, 16, 17, 40, 95, 96, 97, 200)
CHANNELS = (1, 3, 16, 63, 64, 65, 96, 129, 200)
CONVS = (((9,), (3,), (1,), (1,)), ((17,), (2,), (2,), (0,)), ((3, 5), (3, 3), (1, 1), (1, 1)))
"""Shape, kernel, stride and padding: 9, 8 and 15 positions."""
NEURONS = (
    None,
    ops.Neuron(None, np.float32(5), None),
    ops.Neuron(np.float32(1.7), np.float32(7), np.float32(-3)),
    ops.Neuron(np.float32(2), np.float32(2), np.float32(0.5), decay_input=False),
)
UNIT = 0.25
"""What one of a count is worth."""


def numbers(rng: np.random.Generator, shape: tuple[int, ...], density: float) -> Array:
    """Integers, of which so many are not zero."""
    values = rng.integers(1, 10, shape) * rng.choice([-1, 1], shape)
    return (values * (rng.random(shape) < density)).astype(np.float32)


@st.composite
def products(draw: Any, outputs: int) -> tuple[Product, tuple[int, ...], int]:
    """A Linear or a grouped convolution to so many outputs, the shape that it takes, and steps."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    steps, channels = draw(st.sampled_from([1, 3, 4, 5, 9])), draw(st.sampled_from(CHANNELS))
    density = draw(st.sampled_from([0.0, 0.01, 0.3, 1.0]))
    rows_of_bias = draw(st.sampled_from([None, (), (steps,)]))
    bias = None if rows_of_bias is None else numbers(rng, (*rows_of_bias, outputs), 0.8)
    conv = draw(st.sampled_from([None, *CONVS]))
    if conv is None:
        op: Product = ops.Linear(Weight.dense(numbers(rng, (outputs, channels), density)), bias)
        return op, (channels, draw(st.sampled_from([1, 7, 8, 9, 16, 17]))), steps
    shape, kernel, stride, padding = conv
    common = gcd(outputs, channels)
    groups = draw(st.sampled_from([g for g in range(1, common + 1) if common % g == 0]))
    weight = Weight.dense(numbers(rng, (outputs, channels // groups, *kernel), density))
    return ops.Conv(weight, bias, stride, padding, (1,) * len(kernel), groups), (channels, *shape), steps


def laid(values: Array, planes: int) -> Array:
    """Values [T, C, P] by positions, as bits or (no planes) as floats."""
    if planes:
        return bits(values.astype(np.int64), planes, "position bits")
    return np.ascontiguousarray(values.swapaxes(1, 2), np.float32).reshape(-1)


def events(op: Product, shape: tuple[int, ...], x: Array) -> Array:
    """Synaptic operations by step: sums of ones over inputs and weights that are not zero."""
    ones = replace(op, weight=Weight.dense((op.weight.array() != 0).astype(np.float64)), bias=None)
    return interpret(chain(shape, ones, steps=len(x)), x != 0).outputs["y"].reshape(len(x), -1).sum(axis=1)


def run(machine: Machine, x: Array, step: int = 0) -> Array:
    """The output buffer behind the steps of `x` from `step` on, counted."""
    given, made = machine.header["input"]["buffer"], machine.header["stages"][0]["places"]["y"]
    machine.array(given)[:] = x
    machine.run(0, 1, step, counting=True)
    return machine.array(made).copy()


def check(graph: Graph, x: Array, planes: int, threads: int) -> None:
    """The stage against the interpreter, all steps at once and one after another; `x` [T, C, *shape] in units of a count."""
    op, shape, steps = graph["n0"].op, x.shape[1:], len(x)
    assert isinstance(op, Product)
    given = (x * (UNIT if planes else 1))[:, None]
    wanted = interpret(graph, given, dtype=np.float32).outputs["y"].reshape(steps, op.weight.shape[0], -1)
    x, synops = x.reshape(steps, shape[0], -1), events(op, shape, given)
    header, arrays = lower(graph, {"n0": "rows"})
    (stage,) = (s for s in header["stages"] if s["op"] == "Rows")
    out = int("n1" in graph.nodes)
    whole = alone(stage, header["buffers"], arrays, steps, threads)
    np.testing.assert_array_equal(run(whole, laid(x, planes)), laid(wanted, out))
    np.testing.assert_array_equal(whole.synops, synops)
    stream = alone(stage, header["buffers"], arrays, 1, threads, stateful=True)
    for t in range(steps):
        now = slice(t, t + 1)
        np.testing.assert_array_equal(run(stream, laid(x[now], planes), t), laid(wanted[now], out))
        assert stream.synops == synops[: t + 1].sum()
    whole.close(), stream.close()


def test_every_number_of_vectors_occurs() -> None:
    assert {blocks_of(n)[1] for n in OUTPUTS} == {1, 2, 3, 4, 5, 6}
    assert {blocks_of(n)[0] for n in OUTPUTS} == {1, 2, 3}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("outputs", OUTPUTS)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_are_the_interpreters(outputs: int, threads: int, data: st.DataObject) -> None:
    op, shape, steps = data.draw(products(outputs))
    neuron, planes = data.draw(st.sampled_from(NEURONS)), data.draw(st.sampled_from([0, 1, 1, 2, 3]))
    domain = count(UNIT, 2**planes - 1) if planes else ops.REAL
    graph = chain(shape, op, *([] if neuron is None else [neuron]), steps=steps, domain=domain)
    x = numbers(
        np.random.default_rng(steps), (steps, *shape), data.draw(st.sampled_from([0.0, 0.05, 0.4, 1.0]))
    )
    check(graph, np.minimum(np.abs(x), 2**planes - 1) if planes else x, planes, threads)
