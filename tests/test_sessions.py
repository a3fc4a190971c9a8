"""Sessions: what an options record refuses, that binding changes nothing, and that no device is ever replaced."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from stdeploy.errors import UserError
from stdeploy.exporters.onnx import export
from stdeploy.graph import Graph
from stdeploy.runtime.sessions import OpenVinoSession, OrtSession, SessionOptions
from tests.graphs import random_inputs, spikformer_graph


@pytest.fixture(scope="module")
def graph() -> Graph:
    return spikformer_graph(steps=3, layout="BT")


@pytest.fixture(scope="module")
def file(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    export(graph, path)
    return path


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"device": "npu"}, "unknown device 'npu'"),
        ({"threads": 0}, "0 threads"),
        ({"cuda_graph": True}, "run on a CUDA device only"),
        ({"cuda_graph": True, "device": "cuda", "io_binding": False}, "need IO binding"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        SessionOptions(**options)


def test_binding_is_for_devices_unless_asked_for() -> None:
    assert not SessionOptions().bound
    assert SessionOptions(io_binding=True).bound
    assert SessionOptions("cuda").bound
    assert not SessionOptions("cuda", io_binding=False).bound


def test_bound_and_plain_runs_give_the_same_outputs_again_and_again(file: Path, graph: Graph) -> None:
    for batch in (1, 3):
        x = random_inputs(graph, batch)
        plain = OrtSession(file, SessionOptions(threads=1))
        bound = OrtSession(file, SessionOptions(threads=1, io_binding=True))
        want = plain.run({"input": x})
        assert want["output"].shape[0] == batch and want["output"].any()
        for session in (plain, bound):
            prepared = session.prepare({"input": x})
            for _ in range(3):
                prepared.call()
                np.testing.assert_array_equal(prepared.outputs()["output"], want["output"])


def test_openvino_states_the_precision_that_it_reports(file: Path, graph: Graph) -> None:
    pytest.importorskip("openvino")
    session = OpenVinoSession(file, SessionOptions(threads=1))
    assert session.precision == "f32" and session.name.endswith("CPU f32")
    x = random_inputs(graph, 2)
    prepared = session.prepare({"input": x})
    prepared.call()
    first = prepared.outputs()["output"]
    np.testing.assert_allclose(
        first, OrtSession(file, SessionOptions()).run({"input": x})["output"], atol=1e-5
    )
    prepared.call()
    np.testing.assert_array_equal(prepared.outputs()["output"], first)
    with pytest.raises(UserError, match="runs on the CPU here"):
        OpenVinoSession(file, SessionOptions("cuda"))


@pytest.mark.parametrize("kind", [OrtSession, OpenVinoSession])
def test_an_input_that_does_not_fit_is_the_users_error(kind: Any, file: Path) -> None:
    session = kind(file, SessionOptions(threads=1))
    with pytest.raises(UserError, match="cannot run"):
        session.run({"input": np.zeros((2, 3), np.float32)})


def test_the_cpu_session_counts_its_nodes_and_profiles(file: Path, graph: Graph, tmp_path: Path) -> None:
    session = OrtSession(file, SessionOptions(threads=1, profile=tmp_path / "profile"))
    assert session.placement is None or session.placement["CPUExecutionProvider"] > 10
    session.run({"input": random_inputs(graph, 1)})
    events = json.loads(session.end_profile().read_text())
    assert any(event.get("args", {}).get("op_name") == "Conv" for event in events)


class Gpu:
    """onnxruntime as a machine with a GPU would present it: the seam is the module, not our own code."""

    def __init__(self, providers: list[str], nodes: dict[str, int] | None) -> None:
        self.providers, self.nodes, self.loaded, self.asked = providers, nodes, False, []

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> Gpu:
        everything = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: everything)
        monkeypatch.setattr(onnxruntime, "preload_dlls", self.preload, raising=False)
        monkeypatch.setattr(onnxruntime, "InferenceSession", self.open)
        return self

    def preload(self) -> None:
        self.loaded = True

    def open(self, model: str, options: Any, providers: list[Any]) -> Any:
        self.asked = providers
        session = SimpleNamespace(get_providers=lambda: self.providers, get_inputs=list, get_outputs=list)
        if self.nodes is not None:
            session.get_provider_graph_assignment_info = lambda: [
                SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [None] * count)
                for name, count in (self.nodes or {}).items()
            ]
        return session


def test_a_gpu_session_says_how_many_nodes_run_there(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {"CUDAExecutionProvider": 590, "CPUExecutionProvider": 28}
    gpu = Gpu(["CUDAExecutionProvider", "CPUExecutionProvider"], nodes).patch(monkeypatch)
    session = OrtSession(b"", SessionOptions("cuda", cuda_graph=True))
    assert session.name.endswith("CUDAExecutionProvider (590 of 618 nodes)")
    assert gpu.loaded and gpu.asked == [("CUDAExecutionProvider", {"enable_cuda_graph": "1"})]


def test_an_old_onnxruntime_cannot_tell_and_the_name_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    Gpu(["CUDAExecutionProvider"], None).patch(monkeypatch)
    assert "does not tell" in OrtSession(b"", SessionOptions("cuda")).name


@pytest.mark.parametrize(
    ("providers", "nodes", "text"),
    [
        (["CPUExecutionProvider"], None, "runs net on CPUExecutionProvider, not on CUDA"),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], {"CPUExecutionProvider": 9}, "no node of net"),
    ],
)
def test_a_session_that_fell_back_to_the_cpu_is_refused(
    providers: list[str], nodes: dict[str, int] | None, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Gpu(providers, nodes).patch(monkeypatch)
    with pytest.raises(UserError, match=text):
        OrtSession(b"", SessionOptions("cuda"), "net")
