"""How few nodes a network becomes: per neuron and step, per product, per attention."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.exporters.onnx import export
from stdeploy.exporters.onnx.plan import plan
from stdeploy.graph import Graph, GraphBuilder, Weight, ops, validate
from stdeploy.graph.interpreter import Interpreter, interpret
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.fold_affine import FoldAffine
from stdeploy.runtime.onnx_session import OnnxRuntimeExecutor
from stdeploy.verify import compare, require
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph


def exported(graph: Graph, path: Path) -> onnx.ModelProto:
    export(graph, path)
    return onnx.load(path)


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("steps", [2, 4, 5])
def test_a_neuron_costs_one_multiply_add_compare_and_select_a_step(steps: int, tmp_path: Path) -> None:
    """q, k and v step together: one run for three layers; no cast; four transposes and the stem's."""
    graph = spikformer_graph(
        steps=steps, neurons="spikingjelly", heads=(5, 5), v_heads=(5, 5), batch_norm=False
    )
    count = kinds(exported(graph, tmp_path / "net.onnx"))
    layers = len(graph.neurons)
    runs = layers - 2
    assert count["HardSigmoid"] == steps * runs
    assert count["ThresholdedRelu"] == (steps - 1) * runs
    assert count["Mul"] == (steps - 1) * runs + 1  # the attention's scale, which is the product's factor
    assert count["Add"] == (steps - 1) * runs + 3  # residual sums of the stem, attention and MLP
    assert not {"Cast", "Where", "LessOrEqual", "GreaterOrEqual", "Neg", "Unsqueeze"} & set(count)
    assert (
        count["Split"] == runs and count["Concat"] == runs
    )  # q, k and v take one apart, the static stem none
    assert count["Gemm"] == 5  # q, k and v in one; proj, fc1, fc2, head
    assert count["Transpose"] == 4  # stem to rows; q, k, v to heads; k once more (fused by runtimes); back


def test_weights_are_the_graphs_own_up_to_their_sign(tmp_path: Path) -> None:
    graph = spikformer_graph(steps=3, neurons="spikingjelly", batch_norm=False)
    model = exported(graph, tmp_path / "net.onnx")
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in model.graph.initializer}
    names = [f"block.0.attn.{n}_conv" for n in "qkv"]
    rows = [graph[n].op.weight.array() for n in names]  # type: ignore[attr-defined]
    merged = stored["block.0.attn.q_conv+k_conv+v_conv.weight"]
    np.testing.assert_array_equal(merged, -np.concatenate(rows).astype(np.float32))
    head = graph["head"].op
    assert isinstance(head, ops.Linear)
    np.testing.assert_array_equal(stored["head.weight"], head.weight.array().astype(np.float32))


HEADS = [((5, 5), (5, 5)), ((5, 5), (2, 2)), ((3, 2), (2, 3)), ((4, 0), (2, 2)), ((3, 3), (1, 4))]


@pytest.mark.parametrize(("heads", "v_heads"), HEADS, ids=str)
@pytest.mark.parametrize("order", ["qk", "kv"])
@pytest.mark.parametrize("neurons", ["spikingjelly", "hard"])
def test_equal_and_ragged_heads_share_one_product(
    heads: tuple[int, ...], v_heads: tuple[int, ...], order: Any, neurons: Any, tmp_path: Path
) -> None:
    graph = spikformer_graph(steps=3, neurons=neurons, heads=heads, v_heads=v_heads, order=order, seed=4)
    x = random_inputs(graph, 3, seed=5)
    assert every_layer_fires(graph, x)
    folded = run_pipeline(graph, [FoldAffine()]).graph
    model = exported(folded, tmp_path / "net.onnx")
    products = [n.name for n in model.graph.node if n.op_type == "Gemm"]
    assert "block.0.attn.q_conv+k_conv+v_conv" in products and len(products) == 5
    runtime = OnnxRuntimeExecutor(tmp_path / "net.onnx", threads=1)
    report = compare(Interpreter(graph, np.float32), runtime, graph, x, exported=folded)
    require(report)
    assert report.spike_mismatches <= 2


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_neurons_that_share_an_input_keep_their_own_parameters(data: st.DataObject) -> None:
    """Two to four Linears over one value, each with its own tau, threshold, reset and width."""
    steps = data.draw(st.integers(1, 5))
    builder, rng = GraphBuilder(steps), np.random.default_rng(data.draw(st.integers(0, 99)))
    x = builder.add(ops.Input((3, 4), ("channel", "token"), "TB"), name="input")
    names = []
    for i in range(data.draw(st.integers(2, 4))):
        out = data.draw(st.integers(1, 3))
        bias = rng.normal(size=out) if data.draw(st.booleans()) else None
        y = builder.add(ops.Linear(Weight.dense(rng.normal(size=(out, 3))), bias), (x,), name=f"fc{i}")
        tau = data.draw(st.sampled_from([1.0, 1.3, 2.0, None]))
        reset = data.draw(st.sampled_from([None, 0.0, -0.2]))
        channels = data.draw(st.booleans())
        threshold = 0.3 + rng.random(out) if channels else np.array(0.7)
        op = ops.Neuron(
            None if tau is None else np.array(tau),
            threshold,
            None if reset is None else np.array(reset),
            data.draw(st.booleans()),
        )
        names.append(builder.add(op, (y,), name=f"lif{i}"))
    for name in names:
        builder.add(ops.Output(f"out.{name}", "TB"), (name,), name=f"output.{name}")
    graph = validate(builder.build())
    inputs = random_inputs(graph, 2)
    want = interpret(graph, inputs, dtype=np.float32)
    got = _run(graph, inputs)
    for name in names:
        np.testing.assert_array_equal(got.spikes[name], want.spikes[name], name)


def _run(graph: Graph, inputs: np.ndarray) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        export(graph, Path(folder) / "net.onnx")
        return OnnxRuntimeExecutor(Path(folder) / "net.onnx", threads=1).run(inputs)


def test_a_drive_that_others_read_keeps_its_sign(tmp_path: Path) -> None:
    """A Linear that is also an output cannot come negated: the neuron subtracts it instead."""
    builder, rng = GraphBuilder(4), np.random.default_rng(3)
    x = builder.add(ops.Input((3, 4), ("channel", "token"), "TB"), name="input")
    y = builder.add(ops.Linear(Weight.dense(rng.normal(size=(5, 3)))), (x,), name="fc")
    lif = builder.add(ops.Neuron(np.array(1.7), np.array(0.4), np.array(0.0)), (y,), name="lif")
    for name in (y, lif):
        builder.add(ops.Output(f"out.{name}", "TB"), (name,), name=f"output.{name}")
    graph = validate(builder.build())
    assert not plan(graph).negated
    count = kinds(exported(graph, tmp_path / "net.onnx"))
    assert (count["Neg"], count["Sub"], count["Add"]) == (1, 3, 0)
    inputs = random_inputs(graph, 3)
    want = interpret(graph, inputs, dtype=np.float32)
    got = OnnxRuntimeExecutor(tmp_path / "net.onnx", threads=1).run(inputs)
    np.testing.assert_array_equal(got.spikes["lif"], want.spikes["lif"])
    np.testing.assert_allclose(got.outputs["out.fc"], want.outputs["out.fc"], 1e-5, 1e-5)
