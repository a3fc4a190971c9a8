"""Whole spiking transformers through ONNX, the file's own account of itself, and how it is written."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stdeploy.errors import UnsupportedError, UserError
from stdeploy.exporters import load_target
from stdeploy.exporters.onnx import check, export
from stdeploy.exporters.onnx import model as model_module
from stdeploy.graph import GraphBuilder, Value, Weight, ops
from stdeploy.graph.interpreter import Interpreter, interpret
from stdeploy.passes.pipelines import PIPELINES, run_pipeline
from stdeploy.runtime.onnx_session import OnnxRuntimeExecutor, OpenVinoExecutor
from stdeploy.verify import compare, require
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph

NETWORKS: list[dict[str, Any]] = [
    {"steps": 4, "neurons": "spikingjelly", "heads": (5, 5), "v_heads": (5, 5)},
    {"steps": 5, "neurons": "hard", "masked": 0.4},
    {"steps": 1, "neurons": "hard"},
    {"steps": 4, "neurons": "mixed", "per_channel": True, "layout": "BT", "order": "kv"},
    {"steps": 5, "neurons": "mixed", "layout": "TB", "order": "kv", "heads": (4, 4), "v_heads": (3, 3)},
    {"steps": 4, "neurons": "mixed", "masked": 0.5, "columns": False, "batch_norm": False, "depth": 2},
]


@pytest.mark.parametrize("settings", NETWORKS, ids=lambda s: "-".join(f"{v}" for v in s.values()))
@pytest.mark.parametrize("passes", [False, True], ids=["plain", "passes"])
def test_spikes_equal_the_interpreters(settings: dict[str, Any], passes: bool, tmp_path: Path) -> None:
    """Free and forced runs in both runtimes: every difference lies within rounding of the threshold."""
    graph = spikformer_graph(**settings, seed=3)
    x = random_inputs(graph, 3, seed=5)
    assert every_layer_fires(graph, x)
    exported = run_pipeline(graph, PIPELINES["onnx"]).graph if passes else graph
    export(exported, tmp_path / "net.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "net.onnx"), full_check=True)
    reference = Interpreter(graph, np.float32)
    for runtime in (
        OnnxRuntimeExecutor(tmp_path / "net.onnx", threads=1),
        OpenVinoExecutor(tmp_path / "net.onnx", threads=1),
    ):
        report = compare(reference, runtime, graph, x, exported=exported)
        require(report)
        assert report.spike_mismatches <= 3, runtime.name
        single = random_inputs(graph, 1, seed=6)
        require(compare(reference, runtime, graph, single, exported=exported))


@pytest.mark.parametrize("opset", [17, 18, 19, 20, 21])
def test_every_opset_and_the_spike_outputs(opset: int, tmp_path: Path) -> None:
    graph = spikformer_graph(steps=3, neurons="mixed", order="kv", masked=0.3)
    artifact = export(graph, tmp_path / "net.onnx", {"opset": opset, "spikes": True})
    model = onnx.load(artifact.path)
    onnx.checker.check_model(model, full_check=True)
    assert {i.domain: i.version for i in model.opset_import} == {"": opset}
    assert artifact.size_bytes == artifact.path.stat().st_size
    x = random_inputs(graph, 3)
    want = interpret(graph, x, dtype=np.float32)
    for runtime in (
        OnnxRuntimeExecutor(artifact.path, threads=1, spikes=False),
        OpenVinoExecutor(artifact.path, threads=1, spikes=False),
    ):
        got = runtime.run(x)
        assert not got.spikes
        assert set(got.outputs) == {"output", *(f"spikes:{n.name}" for n in graph.neurons)}
        for node in graph.neurons:
            tensor = got.outputs[f"spikes:{node.name}"]
            assert tensor.dtype == np.uint8
            np.testing.assert_array_equal(tensor, want.spikes[node.name], f"{runtime.name} {node.name}")


def test_forced_spikes_reach_consumers_and_own_spikes_are_reported(tmp_path: Path) -> None:
    graph = spikformer_graph(steps=4, neurons="mixed")
    export(graph, tmp_path / "net.onnx")
    runtime = OnnxRuntimeExecutor(tmp_path / "net.onnx", threads=1)
    x = random_inputs(graph, 2)
    rng = np.random.default_rng(1)
    names = [n.name for n in graph.neurons]
    for forced_names in (names, names[2:3], names[:1]):
        forced = {n: rng.integers(0, 2, (4, 2, *graph[n].value.shape)).astype(np.uint8) for n in forced_names}
        want, got = interpret(graph, x, dtype=np.float32, forced=forced), runtime.run(x, forced)
        np.testing.assert_allclose(got.outputs["output"], want.outputs["output"], 1e-5, 1e-5)
        for name in names:
            np.testing.assert_array_equal(got.spikes[name], want.spikes[name], name)
    assert not np.array_equal(got.spikes[names[0]], forced[names[0]])


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    graph = spikformer_graph(steps=4).with_metadata(
        source_sha256="ab" * 32, model="Spikformer", passes=["fold-affine: 7 folded"]
    )
    export(graph, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    props = {p.key: p.value for p in model.metadata_props}
    assert props["source_sha256"] == "ab" * 32
    assert props["model"] == "Spikformer"
    assert json.loads(props["passes"]) == ["fold-affine: 7 folded"]
    assert json.loads(props["steps"]) == 4
    assert json.loads(props["input"]) == {
        "name": "input",
        "layout": "B",
        "shape": [2, 12, 12],
        "axes": ["channel", "y", "x"],
        "dtype": "float32",
    }
    assert set(json.loads(props["neurons"])) == {n.name for n in graph.neurons}
    assert model.producer_name == "stdeploy"
    assert str(tmp_path) not in model.SerializeToString().decode("latin-1")
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert dim.dim_param == "B"


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(spikformer_graph(steps=2), tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@dataclass(frozen=True, eq=False)
class Sine(ops.Op):
    """An operator that no exporter knows."""

    def infer(self, inputs: list[Value], steps: int) -> Value:
        return inputs[0]


def test_a_refusal_lists_every_offender(tmp_path: Path) -> None:
    builder = GraphBuilder(2)
    x = builder.add(ops.Input((3, 4), ("channel", "token")), name="input")
    x = builder.add(Sine(), (x,), name="wave", source="stem.wave")
    x = builder.add(ops.Linear(Weight.dense(np.full((3, 3), 1e39))), (x,), name="fc", source="stem.fc")
    x = builder.add(ops.Neuron(np.array(-2.0), np.array(1.0), None), (x,), name="lif", source="stem.lif")
    builder.add(ops.Output("input", "TB"), (x,), name="output")
    empty = builder.add(ops.Linear(Weight.dense(np.zeros((0, 3)))), (x,), name="none", source="stem.none")
    builder.add(ops.Readout("sum"), (empty,), name="sum", source="sum")
    items = check(builder.build())
    assert [i.where for i in items] == ["stem.wave", "stem.fc", "stem.lif", "stem.none", "sum", "output"]
    with pytest.raises(UnsupportedError) as caught:
        export(builder.build(), tmp_path / "net.onnx")
    assert len(caught.value.items) == 6
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [{"opset": 16}, {"opset": "17"}, {"opset": True}, {"spikes": 1}, {"sparse": 1}, {"layout": "x"}],
)
def test_wrong_options_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    graph = spikformer_graph(steps=1)
    for call in (lambda: check(graph, options), lambda: export(graph, tmp_path / "net.onnx", options)):
        with pytest.raises(UserError):
            call()
    assert list(tmp_path.iterdir()) == []


def test_it_is_the_registered_onnx_target() -> None:
    target = load_target("onnx")
    assert target.SUFFIX == ".onnx"
    assert target.check(spikformer_graph(steps=1)) == []


def test_a_model_above_the_format_s_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "PROTOBUF_LIMIT", 1000)
    with pytest.raises(UserError, match="2 GiB"):
        export(spikformer_graph(steps=1), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def _export_with_little_disk(folder: Path, queue: Any) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        export(spikformer_graph(steps=1), folder / "net.onnx")
    except UserError as error:
        queue.put(str(error))
    else:
        queue.put("written")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"old")
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_export_with_little_disk, args=(tmp_path, queue))
    process.start()
    message = queue.get(timeout=60)
    process.join()
    assert "cannot write" in message
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_bytes() == b"old"


def test_an_interrupted_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Path, data: bytes) -> int:
        with self.open("wb") as stream:
            stream.write(data[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(spikformer_graph(steps=1), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_an_unwritable_folder_is_the_users_error(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UserError, match="cannot write"):
        export(spikformer_graph(steps=1), tmp_path / "net.onnx")


def test_a_missing_folder_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        export(spikformer_graph(steps=1), tmp_path / "none" / "net.onnx")
