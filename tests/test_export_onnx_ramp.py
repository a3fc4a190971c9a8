"""The steep HardSigmoid that fires neurons in ONNX files equals the comparison, bit for bit."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stdeploy.exporters.onnx import export
from stdeploy.exporters.onnx.ramp import Ramp, ramp
from stdeploy.graph import Graph, GraphBuilder, Weight, ops
from stdeploy.graph.interpreter import interpret
from stdeploy.runtime.onnx_session import OnnxRuntimeExecutor, OpenVinoExecutor

REALS = [np.dtype(np.float16), np.dtype(np.float32)]


def around(level: Any, count: int = 40) -> np.ndarray:
    """The numbers next to `level`, powers of two beyond them, the ends of the type and infinities."""
    near = [level]
    for _ in range(count):
        near = [
            np.nextafter(near[0], level.dtype.type(-np.inf)),
            *near,
            np.nextafter(near[-1], level.dtype.type(np.inf)),
        ]
    info = np.finfo(level.dtype)
    with np.errstate(over="ignore"):
        wide = [level.dtype.type(float(level) * s * 2.0**k) for k in range(-12, 13) for s in (1, -1)]
    ends = [0, -0.0, info.max, info.min, info.smallest_subnormal, -info.tiny, np.inf, -np.inf]
    return np.array([*near, *wide, *ends], level.dtype)


def rounded_twice(found: Ramp, h: np.ndarray) -> np.ndarray:
    """Product and sum rounded each, as without a fused multiply-add."""
    real = h.dtype.type
    with np.errstate(over="ignore"):
        return np.clip(real(found.alpha) * h + real(found.beta), 0, 1)


def rounded_once(found: Ramp, h: np.ndarray) -> np.ndarray:
    """As with a fused multiply-add: in the double width the product is exact."""
    wide = np.longdouble(found.alpha) * h.astype(np.longdouble) + np.longdouble(found.beta)
    with np.errstate(over="ignore"):
        return np.clip(wide.astype(h.dtype), 0, 1)


@settings(max_examples=150, deadline=None)
@given(st.floats(2.0**-12, 2.0**12, width=32), st.booleans(), st.booleans(), st.sampled_from(REALS))
@example(1.0, True, True, REALS[1])
@example(1.0, False, True, REALS[0])
@example(2.0 - 2.0**-23, True, False, REALS[1])
@example(2.0**-4, False, True, REALS[0])
def test_the_ramp_is_the_comparison(size: float, negative: bool, rising: bool, real: Any) -> None:
    level = real.type(-size if negative else size)
    found = ramp(float(level), real, rising=rising)
    if found is None:
        assert real == np.float16 and abs(level) < 2.0**-4
        return
    assert found.alpha == np.float32(found.alpha) and found.beta == np.float32(found.beta)
    h = around(level)
    want = (h >= level if rising else h <= level).astype(real)
    np.testing.assert_array_equal(rounded_twice(found, h), want)
    np.testing.assert_array_equal(rounded_once(found, h), want)


@pytest.mark.parametrize("threshold", [0.0, 1e-30, -1e-30, 1e30, float("inf"), float("nan")])
def test_thresholds_without_exact_attributes_have_no_ramp(threshold: float) -> None:
    assert ramp(threshold, REALS[1]) is None


def one_neuron(op: ops.Neuron, channels: int, steps: int) -> Graph:
    builder = GraphBuilder(steps)
    x = builder.add(ops.Input((channels,), ("channel",), "TB"), name="input")
    spikes = builder.add(op, (x,), name="lif", source="lif")
    builder.add(ops.Output("out", "TB"), (spikes,), name="output")
    return builder.build()


NEURONS = {
    "integrate, hard": lambda theta: ops.Neuron(None, theta, np.array(0.0)),
    "integrate, soft": lambda theta: ops.Neuron(None, theta, None),
    "tau 2, hard": lambda theta: ops.Neuron(np.array(2.0), theta, np.array(0.0)),
    "tau 2, soft": lambda theta: ops.Neuron(np.array(2.0), theta, None, False),
    "no memory": lambda theta: ops.Neuron(np.array(1.0), theta, np.array(0.0)),
}


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("threshold", [1.0, 0.7, 3.25])
def test_runtimes_fire_at_the_threshold_and_not_below(
    kind: str, steps: int, threshold: float, tmp_path: Path
) -> None:
    """First drives are the threshold's neighbours, in the units that the membrane meets it in."""
    level = np.float32(threshold)
    op = NEURONS[kind](np.array(level))
    gain = 2 if kind == "tau 2, hard" else 1
    near = (gain * around(level, 20)[:41]).astype(np.float32)
    drive = np.stack([near, np.full(41, 0.5, np.float32), near - np.float32(0.25)][:steps])[:, None]
    graph = one_neuron(op, 41, steps)
    want = interpret(graph, drive, dtype=np.float32).spikes["lif"]
    assert want[0, 0].tolist() == [0] * 20 + [1] * 21
    export(graph, tmp_path / "net.onnx")
    count = Counter(node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node)
    assert count["HardSigmoid"] == (1 if kind == "no memory" else steps)
    assert not {"Cast", "GreaterOrEqual", "LessOrEqual", "Where"} & set(count)
    for runtime in (OnnxRuntimeExecutor, OpenVinoExecutor):
        executor = runtime(tmp_path / "net.onnx", threads=1)
        np.testing.assert_array_equal(executor.run(drive).spikes["lif"], want, executor.name)


@pytest.mark.parametrize(
    ("threshold", "comparison"),
    [(np.array(1e-30), "LessOrEqual"), (np.array([0.5, 1.0, 1.5, 0.25]), "GreaterOrEqual")],
    ids=["tiny", "per channel"],
)
def test_other_thresholds_are_compared(threshold: np.ndarray, comparison: str, tmp_path: Path) -> None:
    graph = one_neuron(ops.Neuron(np.array(1.7), threshold, np.array(0.0)), 4, 3)
    export(graph, tmp_path / "net.onnx")
    count = Counter(node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node)
    assert (count[comparison], count["HardSigmoid"], count["Cast"]) == (3, 0, 1)
    drive = np.random.default_rng(2).standard_normal((3, 3, 4)).astype(np.float32) * 2
    want = interpret(graph, drive, dtype=np.float32).spikes["lif"]
    got = OnnxRuntimeExecutor(tmp_path / "net.onnx", threads=1).run(drive).spikes["lif"]
    assert 0.1 < want.mean() < 0.9
    np.testing.assert_array_equal(got, want)


def test_int8_products_read_booleans_as_codes(tmp_path: Path) -> None:
    """One Cast from the comparison to uint8 is all they need; a real tensor would be one more pass."""
    builder = GraphBuilder(2)
    x = builder.add(ops.Input((4,), ("channel",), "TB"), name="input")
    spikes = builder.add(
        ops.Neuron(np.array(1.7), np.array(0.6), np.array(0.0)), (x,), name="lif", source="lif"
    )
    weight = np.random.default_rng(3).standard_normal((3, 4))
    y = builder.add(ops.Linear(Weight.dense(weight), np.ones(3)), (spikes,), name="fc", source="fc")
    builder.add(ops.Output("out", "TB"), (y,), name="output")
    graph = builder.build()
    export(graph, tmp_path / "fp32.onnx")
    export(graph, tmp_path / "int8.onnx", {"weights": "int8"})
    plain, coded = (
        Counter(node.op_type for node in onnx.load(tmp_path / name).graph.node)
        for name in ("fp32.onnx", "int8.onnx")
    )
    assert (plain["HardSigmoid"], plain["Cast"]) == (2, 0)
    assert (coded["HardSigmoid"], coded["LessOrEqual"]) == (0, 2)
