"""Files that are smaller or faster but not the same: sparse (exact), int8 and fp16 (approximate, and say so)."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.approximate import measure_all
from stdeploy.cli.app import run
from stdeploy.errors import UnsupportedError, UserError
from stdeploy.exporters.onnx import check, export
from stdeploy.exporters.onnx.int8 import BIAS_RANGE, LARGEST, quantise, takes
from stdeploy.graph import Graph, GraphBuilder, Weight, ops, validate
from stdeploy.graph.graph import rewrite
from stdeploy.graph.interpreter import Interpreter
from stdeploy.graph.value import count
from stdeploy.passes.pipelines import PIPELINES, run_pipeline
from stdeploy.runtime.onnx_session import OnnxRuntimeExecutor, OpenVinoExecutor
from stdeploy.verify import compare, require
from tests.commands import saved
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph


def lowered(graph: Graph) -> Graph:
    return run_pipeline(graph, PIPELINES["onnx"]).graph


def dequantised(graph: Graph) -> Graph:
    """The network that an int8 file computes: the same graph with every weight as its int8 code says."""

    def visit(builder: GraphBuilder, node: Any, inputs: tuple[str, ...]) -> str | None:
        op = node.op
        if not isinstance(op, ops.Linear | ops.Conv) or not takes(node, graph[node.inputs[0]].value.domain):
            return None
        matrix = op.weight.array().reshape(op.weight.shape[0], -1)
        codes, scale, offset = quantise(matrix, op.bias)
        weight = Weight.dense((codes * scale[:, None]).astype(np.float32).reshape(op.weight.shape))
        bias = None if op.bias is None else (offset * scale).astype(np.float32)
        return builder.add(replace(op, weight=weight, bias=bias), inputs, name=node.name, source=node.source)

    return validate(rewrite(graph, visit))


NETWORKS: list[dict[str, Any]] = [
    {"steps": 4, "neurons": "spikingjelly", "heads": (5, 5), "v_heads": (5, 5)},
    {"steps": 5, "neurons": "mixed", "per_channel": True, "layout": "BT", "order": "kv"},
    {"steps": 1, "neurons": "hard", "masked": 0.4},
]


@pytest.mark.parametrize("settings_", NETWORKS, ids=lambda s: str(s["steps"]))
def test_an_int8_file_computes_exactly_its_own_network(settings_: dict[str, Any], tmp_path: Path) -> None:
    """Against the dequantised graph its spikes are a proof, as fp32 files' are; OpenVINO too."""
    graph = lowered(spikformer_graph(**settings_, seed=3))
    x = random_inputs(graph, 3, seed=5)
    artifact = export(graph, tmp_path / "net.onnx", {"weights": "int8"})
    onnx.checker.check_model(onnx.load(artifact.path), full_check=True)
    twin = dequantised(graph)
    assert every_layer_fires(twin, x)
    for runtime in (
        OnnxRuntimeExecutor(artifact.path, threads=1),
        OpenVinoExecutor(artifact.path, threads=1),
    ):
        assert runtime.file.approximate == "int8 weights"
        report = compare(Interpreter(twin, np.float32), runtime, twin, x)
        require(report)
        assert report.spike_mismatches <= 3, runtime.name


def test_which_products_become_int8(tmp_path: Path) -> None:
    """The stem reads real pixels and the head a mean: both stay, and the note says so."""
    graph = lowered(spikformer_graph(steps=3, neurons="spikingjelly", masked=0.3))
    artifact = export(graph, tmp_path / "net.onnx", {"weights": "int8"})
    (note,) = [n for n in artifact.notes if n.startswith("int8")]
    first = next(n.name for n in graph if isinstance(n.op, ops.Conv))
    assert note.endswith(f"{first}, head stay float32")
    assert any("approximate" in n for n in artifact.notes)
    model = onnx.load(artifact.path)
    stored = {i.name: i.data_type for i in model.graph.initializer}
    assert stored["head.weight"] == stored[f"{first}.weight"] == onnx.TensorProto.FLOAT
    int8 = [n for n, kind in stored.items() if kind == onnx.TensorProto.INT8 and n.endswith(".weight")]
    assert any("q_conv+k_conv+v_conv" in n for n in int8) and any(
        "conv" in n and "attn" not in n for n in int8
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 9), st.floats(1e-6, 1e6), st.booleans())
def test_codes_lie_within_half_a_step(seed: int, rows: int, terms: int, size: float, zero: bool) -> None:
    rng = np.random.default_rng(seed)
    weight, bias = (rng.normal(size=(rows, terms)) * size).astype(np.float32), rng.normal(size=rows)
    if zero:
        weight[0] = 0
    codes, scale, offset = quantise(weight, bias)
    assert codes.dtype == np.int8 and offset.dtype == np.int32 and np.all(scale > 0)
    assert np.abs(codes.astype(int)).max() <= LARGEST and np.abs(offset.astype(np.int64)).max() <= BIAS_RANGE
    assert np.all(np.abs(codes * scale[:, None] - weight) <= 0.501 * scale[:, None])
    assert np.all(np.abs(offset * scale.astype(np.float64) - bias) <= 0.501 * scale + 1e-6 * np.abs(bias))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_int8_convolutions_gather_their_windows(data: st.DataObject) -> None:
    """One and two axes, strides, dilations and paddings, groups that stay float32; against the dequantised graph."""
    axes = data.draw(st.integers(1, 2))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))

    def draw(low: int, high: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(low, high)) for _ in range(axes))

    kernel, stride, padding, dilation = draw(1, 3), draw(1, 2), draw(0, 2), draw(1, 2)
    groups, largest = data.draw(st.sampled_from([1, 1, 2])), data.draw(st.sampled_from([1, 3, 127, 128]))
    names = ("channel", "y", "x")[: axes + 1]
    builder = GraphBuilder(2)
    x = builder.add(ops.Input((4, *draw(5, 7)), names, "TB", count(1.0, largest)), name="input")
    weight = rng.normal(size=(6, 4 // groups, *kernel)) * (rng.random((6,) + (1,) * (axes + 1)) < 0.8)
    bias = rng.normal(size=6) if data.draw(st.booleans()) else None
    op = ops.Conv(Weight.dense(weight), bias, stride, padding, dilation, groups)
    y = builder.add(op, (x,), name="conv")
    y = builder.add(ops.Neuron(np.array(1.7), np.array(0.9), np.array(-0.1)), (y,), name="lif")
    builder.add(ops.Output("out", "TB"), (y,), name="output")
    graph = validate(builder.build())
    assert takes(graph["conv"], graph["input"].value.domain) == (groups == 1 and largest < 128)
    op_ = graph["input"].op
    assert isinstance(op_, ops.Input)
    inputs = rng.integers(0, largest + 1, (2, 3, *op_.shape)).astype(np.float32)
    twin = dequantised(graph)
    with tempfile.TemporaryDirectory() as folder:
        artifact = export(graph, Path(folder) / "net.onnx", {"weights": "int8"})
        runtime = OnnxRuntimeExecutor(artifact.path, threads=1)
        require(compare(Interpreter(twin, np.float32), runtime, twin, inputs))
    assert any(n.startswith("int8 weights in 1") for n in artifact.notes) == (groups == 1 and largest < 128)


def test_a_sum_that_could_overflow_is_refused(tmp_path: Path) -> None:
    builder = GraphBuilder(2)
    x = builder.add(ops.Input((140_000,), ("channel",), "TB", count(1.0, 127)), name="input")
    y = builder.add(ops.Linear(Weight.dense(np.ones((1, 140_000)))), (x,), name="fc", source="head.fc")
    builder.add(ops.Output("out", "TB"), (y,), name="output")
    graph = validate(builder.build())
    assert check(graph) == []
    (item,) = check(graph, {"weights": "int8"})
    assert item.where == "head.fc" and "int32" in item.reason
    with pytest.raises(UnsupportedError):
        export(graph, tmp_path / "net.onnx", {"weights": "int8"})


@pytest.mark.parametrize("approximation", [{"weights": "int8"}, {"precision": "fp16"}], ids=str)
def test_the_effect_is_measured_and_is_no_proof(approximation: dict[str, Any], tmp_path: Path) -> None:
    graph = lowered(spikformer_graph(steps=4, neurons="mixed", depth=2, seed=2))
    x = random_inputs(graph, 8, seed=1)
    export(graph, tmp_path / "net.onnx", approximation)
    runtime = OnnxRuntimeExecutor(tmp_path / "net.onnx", threads=1, spikes=False)
    (found,) = measure_all(graph, [runtime], x, np.arange(8) % 5)
    assert found.how == runtime.file.approximate and found.reference is None
    assert set(found.effect.layers) == {n.name for n in graph.neurons}
    exact = Interpreter(graph, np.float32).run(x)
    taught = runtime.run(x, exact.spikes)
    for name, layer in found.effect.layers.items():
        assert layer.spikes == exact.spikes[name].size
        assert layer.changed_alone == np.count_nonzero(taught.spikes[name] != exact.spikes[name])
    assert sum(layer.changed for layer in found.effect.layers.values()) > 0
    assert "accuracy" in found.summary()
    report = compare(Interpreter(graph, np.float32), runtime, graph, x)
    assert not report.ok  # as a file that claims to be exact it would fail


def test_fp16_stores_halves_and_takes_and_gives_floats(tmp_path: Path) -> None:
    graph = lowered(spikformer_graph(steps=3, neurons="hard"))
    half = export(graph, tmp_path / "half.onnx", {"precision": "fp16"})
    model = onnx.load(half.path)
    onnx.checker.check_model(model, full_check=True)
    kinds = {i.data_type for i in model.graph.initializer}
    assert kinds == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}
    ends = [*model.graph.input, *model.graph.output]
    assert {v.type.tensor_type.elem_type for v in ends} == {onnx.TensorProto.FLOAT}


def test_fp16_refuses_what_it_cannot_hold() -> None:
    builder = GraphBuilder(1)
    x = builder.add(ops.Input((2,), ("channel",)), name="input")
    y = builder.add(ops.Linear(Weight.dense(np.full((2, 2), 1e5))), (x,), name="fc", source="fc")
    builder.add(ops.Output("out", "B"), (y,), name="output")
    graph = validate(builder.build())
    assert check(graph) == []
    assert "float16" in check(graph, {"precision": "fp16"})[0].reason


@pytest.mark.parametrize(
    "options",
    [
        {"weights": "int4"},
        {"precision": "bf16"},
        {"precision": None},
        {"weights": "int8", "sparse": True},
        {"weights": "int8", "precision": "fp16"},
    ],
    ids=str,
)
def test_options_that_do_not_exist_or_go_together(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError):
        export(spikformer_graph(steps=1), tmp_path / "net.onnx", options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("density", [0.02, 0.19, 0.3, 0.34, 1.0])
def test_sparse_weights_are_stored_where_they_pay(density: float, half: bool, tmp_path: Path) -> None:
    """12 bytes a nonzero against 4 a weight (10 against 2 in fp16); the same spikes, byte for byte the same outputs."""
    rng = np.random.default_rng(4)
    weight = np.zeros(2000, np.float32)
    weight[: int(2000 * density)] = rng.normal(size=int(2000 * density))
    builder = GraphBuilder(2)
    x = builder.add(ops.Input((40, 3), ("channel", "token"), "TB"), name="input")
    y = builder.add(ops.Linear(Weight.dense(rng.permutation(weight).reshape(50, 40))), (x,), name="fc")
    builder.add(ops.Output("out", "TB"), (y,), name="output")
    graph = validate(builder.build())
    options = {"precision": "fp16"} if half else {}
    dense = export(graph, tmp_path / "dense.onnx", options)
    sparse = export(graph, tmp_path / "sparse.onnx", {**options, "sparse": True})
    pays = density < (0.2 if half else 1 / 3)
    assert (sparse.size_bytes < dense.size_bytes) == pays
    model = onnx.load(sparse.path)
    onnx.checker.check_model(model)  # onnx's shape inference knows no operator that takes sparse tensors
    assert len(model.graph.sparse_initializer) == pays
    inputs = random_inputs(graph, 2)
    a, b = (OnnxRuntimeExecutor(p.path, threads=1).run(inputs).outputs["out"] for p in (dense, sparse))
    np.testing.assert_array_equal(a, b)


def test_a_pruned_network_is_smaller_and_still_proven(tmp_path: Path) -> None:
    graph = lowered(
        spikformer_graph(steps=3, neurons="spikingjelly", dim=24, heads=(6, 6), v_heads=(6, 6), mlp=60)
    )
    rng = np.random.default_rng(0)

    def prune(builder: GraphBuilder, node: Any, inputs: tuple[str, ...]) -> str | None:
        if not isinstance(node.op, ops.Linear) or node.name == "head":
            return None
        weight = node.op.weight.array() * (rng.random(node.op.weight.shape) < 0.1)
        return builder.add(replace(node.op, weight=Weight.dense(weight * 3)), inputs, name=node.name)

    pruned = lowered(validate(rewrite(graph, prune)))
    sizes = [export(pruned, tmp_path / f"{i}.onnx", {"sparse": bool(i)}).size_bytes for i in range(2)]
    assert sizes[1] < sizes[0]
    x = random_inputs(pruned, 3)
    runtime = OnnxRuntimeExecutor(tmp_path / "1.onnx", threads=1)
    require(compare(Interpreter(pruned, np.float32), runtime, pruned, x))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    graph = spikformer_graph(steps=2, image=(2, 8, 8), seed=3)
    saved(graph, 9)
    return tmp_path


def test_the_program_prints_the_effect_and_verify_knows_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["export", "net.stg", "--target", "onnx", "--data", "data.npz"]
    assert run([*base, "-o", "q.onnx", "--weights", "int8", "--json", "q.json"]) == 0
    text = "".join(capsys.readouterr())
    assert "approximate (int8 weights): 9 inputs" in text and "stay float32" in text
    assert "change on exact input" in text and "accuracy" in text
    document = json.loads((folder / "q.json").read_text())
    assert document["verify"] == [] and document["approximations"][0]["how"] == "int8 weights"
    assert run(["verify", "net.stg", "q.onnx", "--data", "data.npz"]) == 0
    assert "approximate (int8 weights): 9 inputs" in "".join(capsys.readouterr())
    assert run([*base, "-o", "h.onnx", "--precision", "fp16", "--opset", "20"]) == 0
    assert "approximate (fp16): 9 inputs" in "".join(capsys.readouterr())
    assert run([*base, "-o", "s.onnx", "--sparse"]) == 0
    text = "".join(capsys.readouterr())
    assert "sparse initialisers" in text and "approximate" not in text
    assert run(["inspect", "q.onnx"]) == 0
    assert "int8" in capsys.readouterr().out


@pytest.mark.parametrize(
    "extra", [["--sparse"], ["--weights", "int8"], ["--precision", "fp16"], ["--opset", "18"]]
)
def test_options_of_another_target_are_refused(
    extra: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", "net.stg", "--target", "nir", *extra]) == 2
    assert "option of onnx" in capsys.readouterr().err
    assert not list(folder.glob("*.nir"))
