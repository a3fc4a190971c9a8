"""What a kernel is estimated to cost, and which is chosen by it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stdeploy.errors import UserError
from stdeploy.exporters.event.cost import Costs, Rate, estimate
from stdeploy.exporters.event.plan import Options, plan
from stdeploy.graph import Weight, ops
from stdeploy.graph.value import count
from stdeploy.graph.weight import Array
from tests.chains import chain

COSTS = Costs(
    row_add=2e-9,
    row_output=3e-8,
    row_visit=5e-7,
    row_fetch=8e-7,
    row_near=9e-8,
    column_add=1e-9,
    column_value_add=6e-9,
    column_output=4e-8,
    column_shift=7e-7,
    machine="a test",
)
FREE = Costs(*[0.0] * 9, machine="a test")


@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    outputs=st.sampled_from([6, 100]),
    groups=st.sampled_from([1, 2]),
    inputs=st.sampled_from([4, 66, 130]),
    bits=st.floats(0, 3),
    maximum=st.integers(1, 9),
    density=st.sampled_from([0.0, 0.003, 0.1, 1.0]),
    width=st.sampled_from([7, 70]),
    steps=st.sampled_from([1, 2, 4, 5, 9]),
    layout=st.sampled_from(["B", "TB"]),
)
def test_costs_are_those_of_nested_loops(
    kernel: tuple[int, int],
    stride: int,
    outputs: int,
    groups: int,
    inputs: int,
    bits: float,
    maximum: int,
    density: float,
    width: int,
    steps: int,
    layout: str,
) -> None:
    """Rows look at WORD rows of a tap where some output of a block, here of at most 64, has a weight in them."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(outputs, inputs // groups, *kernel))
    weight[rng.random(weight.shape) >= density] = 0
    how = {"stride": (stride, stride), "padding": (kernel[0] - 1, kernel[1] - 1), "dilation": (1, 1)}
    op = ops.Conv(Weight.dense(weight), None, groups=groups, **how)
    graph = chain((inputs, 2, width), op, steps=steps, layout=layout, domain=count(1.0, maximum))
    node = graph["n0"]
    steps = steps if layout == "TB" else 1
    found = estimate(graph, node, Rate(0.0, bits), COSTS)
    _, high, wide = node.value.shape
    places, planes = high * wide, len(f"{maximum:b}")
    assert found.products == places * weight.size
    block, blocks = (16, 1) if outputs == 6 else (64, 2)
    adds = visits = weights = 0
    for first, tap, word in itertools.product(
        range(0, outputs, block), np.ndindex(kernel), range(0, inputs, 64)
    ):
        own = range(first, min(outputs, first + block))
        width_ = min(64, inputs - word)
        if any(weight_of(weight, groups, o, c, tap) for o in own for c in range(word, word + width_)):
            adds, visits = adds + width_ * block * places, visits + planes * places
            weights += width_ * block

    def used(sums: int) -> float:
        return 1 - (1 - min(1, bits)) ** sums

    rows = 2e-9 * bits * adds + 3e-8 * block * blocks * places + 5e-7 * visits
    rows += 8e-7 * weights * used(steps * places) / steps
    for p, t in itertools.product(range(0, places, 8), range(0, steps, 4)):
        rows += 9e-8 * weights * used(min(8, places - p) * min(4, steps - t)) / steps
    lanes = places // 64 * 64 + (0, 16, 64, 64, 64)[-(-(places % 64) // 16)]
    at = {(y, x): y * wide + x for y in range(high) for x in range(wide)}
    far = {(p // 64, (y * width + x) * stride - p) for (y, x), p in at.items()}
    shifts = len(far) * kernel[0] * kernel[1] * inputs
    columns = 1e-9 * np.count_nonzero(weight) * lanes * planes + 4e-8 * outputs * lanes
    columns += 7e-7 * shifts * planes / steps
    assert found.seconds["rows"] == pytest.approx(rows)
    assert found.seconds["columns"] == pytest.approx(columns)
    assert found.kernel == ("columns" if columns < rows else "rows")


def weight_of(weight: Array, groups: int, o: int, c: int, tap: tuple[int, ...]) -> float:
    """The weight of a grouped convolution between an output and a channel."""
    outputs, inputs = weight.shape[:2]
    same = o // (outputs // groups) == c // inputs
    return float(weight[o, c % inputs, *tap]) if same else 0.0


def test_numbers_are_all_added_and_looked_at_once() -> None:
    """A Linear over reals: 70 channels are two words, of which the second has no weight."""
    weight = np.zeros((17, 70))
    weight[3, 5] = 1
    graph = chain((70, 3), ops.Linear(Weight.dense(weight), None))
    found = estimate(graph, graph["n0"], Rate(0.5, 0.5), COSTS)
    assert found.work["rows"] == {
        "row_add": 64 * 32 * 3,
        "row_output": 32 * 3,
        "row_visit": 3,
        "row_fetch": 64 * 32 / 3,
        "row_near": 64 * 32 / 3,
    }
    assert found.work["columns"]["column_value_add"] == 16


@pytest.mark.parametrize("domain", [count(1.0, 64), ops.REAL])
def test_convolutions_of_inputs_that_are_no_bits_go_by_rows(domain: Any, tmp_path: Path) -> None:
    weight = np.zeros((8, 4, 1, 1))
    weight[0, 0] = 1  # columns would be far cheaper
    conv = ops.Conv(Weight.dense(weight), None, (1, 1), (0, 0), (1, 1))
    graph = chain((4, 5, 7), conv, domain=domain)
    assert estimate(graph, graph["n0"], Rate(1.0, 1.0), COSTS).seconds.keys() == {"rows"}
    linear = chain((4, 5, 7), ops.Linear(Weight.dense(weight[:, :, 0, 0]), None), domain=domain)
    assert estimate(linear, linear["n0"], Rate(1.0, 1.0), COSTS).kernel == "columns"
    (tmp_path / "plan.json").write_text('{"kernels": {"n0": "columns"}}')
    with pytest.raises(UserError, match="n0 cannot be run by columns") as caught:
        plan(graph, Options(plan=tmp_path / "plan.json"))
    assert caught.value.hint == "kernels that can: rows"


def test_the_rate_decides() -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(32, 48)) * (rng.random((32, 48)) < 0.1)
    graph = chain((48, 4, 8), ops.Linear(Weight.dense(weight), None), domain=count(1.0, 1))
    even = replace(FREE, row_add=1e-9, column_add=1e-9)
    assert estimate(graph, graph["n0"], Rate(0.01, 0.02), even).kernel == "rows"
    assert estimate(graph, graph["n0"], Rate(0.01, 0.9), even).kernel == "columns"
