"""What the onnxruntime and OpenVINO executors refuse, and what they say about themselves."""

from __future__ import annotations

import builtins
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from stdeploy.errors import UserError
from stdeploy.exporters.onnx import export
from stdeploy.graph import Graph
from stdeploy.graph.interpreter import interpret
from stdeploy.runtime import sessions
from stdeploy.runtime.onnx_session import OnnxRuntimeExecutor, OpenVinoExecutor
from tests.graphs import random_inputs, spikformer_graph

RUNTIMES: list[Callable[..., Any]] = [OnnxRuntimeExecutor, OpenVinoExecutor]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return spikformer_graph(steps=3, layout="BT")


@pytest.fixture(scope="module")
def file(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    export(graph, path)
    return path


def test_names_state_version_and_what_really_runs(file: Path) -> None:
    assert OnnxRuntimeExecutor(file).name == f"onnxruntime {onnxruntime.__version__} CPUExecutionProvider"
    assert OpenVinoExecutor(file).name.startswith("OpenVINO 20")
    assert OpenVinoExecutor(file).name.endswith("CPU f32")


def test_a_device_that_is_not_there_is_an_error_and_never_a_fallback(file: Path) -> None:
    for device in ("cuda", "tensorrt"):
        if sessions.PROVIDERS[device] in onnxruntime.get_available_providers():
            pytest.skip(f"this machine has {device}")
        with pytest.raises(UserError, match="has no"):
            OnnxRuntimeExecutor(file, device)
    with pytest.raises(UserError, match="unknown device"):
        OnnxRuntimeExecutor(file, "npu")


def test_a_session_that_fell_back_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with pytest.warns(UserWarning), pytest.raises(UserError):
        OnnxRuntimeExecutor(file, "cuda")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("shape", [(3, 2, 12, 12), (1, 2, 2, 12, 12), (1, 3, 2, 12, 13), (3, 3, 3, 12, 12)])
def test_a_wrong_input_shape_names_the_right_one(
    runtime: Callable[..., Any], shape: tuple[int, ...], file: Path
) -> None:
    with pytest.raises(UserError, match="the model takes Bx3x2x12x12"):
        runtime(file).run(np.zeros(shape, np.float32))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_wrong_forced_spikes_are_refused(runtime: Callable[..., Any], file: Path, graph: Graph) -> None:
    x = random_inputs(graph, 2)
    name = graph.neurons[0].name
    with pytest.raises(UserError, match="does not have: nobody"):
        runtime(file).run(x, {"nobody": np.zeros((3, 2, 4))})
    with pytest.raises(UserError, match="forced spikes of"):
        runtime(file).run(x, {name: np.zeros((3, 1, *graph[name].value.shape))})


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "missing", "folder", "metadata"])
def test_a_damaged_file_is_the_users_error(
    runtime: Callable[..., Any], damage: str, file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bad.onnx"
    if damage == "truncated":
        path.write_bytes(file.read_bytes()[:-500])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("not a model, but some text\n" * 9)
    elif damage == "folder":
        path.mkdir()
    elif damage == "metadata":
        model = onnx.load(file)
        for prop in model.metadata_props:
            if prop.key == "neurons":
                prop.value = prop.value[:-10]
        onnx.save(model, path)
    with pytest.raises(UserError) as caught:
        runtime(path)
    assert "bad.onnx" in str(caught.value)


def test_both_builds_of_onnxruntime_are_reported(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    with pytest.raises(UserError, match="both installed") as caught:
        OnnxRuntimeExecutor(file)
    assert "pip uninstall both" in (caught.value.hint or "")


@pytest.mark.parametrize(("runtime", "module"), zip(RUNTIMES, ("onnxruntime", "openvino"), strict=True))
def test_a_missing_runtime_says_what_to_install(
    runtime: Callable[..., Any], module: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == module:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match="is not installed") as caught:
        runtime(file)
    assert "pip install" in (caught.value.hint or "")


def test_a_file_of_another_exporter_runs_without_spikes(file: Path, graph: Graph, tmp_path: Path) -> None:
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    x = random_inputs(graph, 2)
    got = OnnxRuntimeExecutor(tmp_path / "other.onnx").run(x)
    want = interpret(graph, x, dtype=np.float32).outputs["output"]
    np.testing.assert_allclose(got.outputs["output"], want, 1e-5, 1e-5)
    assert got.spikes == {}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_each_call_starts_from_reset_membranes(runtime: Callable[..., Any], file: Path, graph: Graph) -> None:
    executor, x = runtime(file), random_inputs(graph, 2)
    first, second = executor.run(x), executor.run(x)
    for name, spikes in first.spikes.items():
        np.testing.assert_array_equal(spikes, second.spikes[name])
    np.testing.assert_array_equal(first.outputs["output"], second.outputs["output"])
