"""`stdeploy bench` as a user meets it: candidates, refusals, JSON, picture, exit codes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from stdeploy import benchmark
from stdeploy.checkpoint import save_checkpoint
from stdeploy.cli.app import run
from stdeploy.exporters.onnx import export
from stdeploy.graph.file import save_graph
from stdeploy.models import Spikformer, SpikformerConfig
from stdeploy.models.calibration import calibrate_batchnorm
from stdeploy.runtime.bench import needs
from stdeploy.workflow import SourceOptions
from tests.graphs import spikformer_graph

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["--seconds", "0.05", "--rounds", "5", "--threads", "1"]


def checkpoint(path: Path, seed: int, rate: float = 0.3) -> Spikformer:
    torch.manual_seed(seed)
    stem = ((4, False), (4, True), (8, True), (8, True))
    config = SpikformerConfig(1, 8, 16, 2, steps=3, stem=stem, tau=1.7, v_reset=-0.1, scale=0.5)
    net = Spikformer(config).eval()
    calibrate_batchnorm(net, torch.randn(4, 3, 32, 32), rate)
    save_checkpoint(path, net)
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    checkpoint(folder / "net.pt", 1)
    checkpoint(folder / "before.pt", 2)
    graph = spikformer_graph(steps=2, image=(2, 8, 8), seed=3)
    save_graph(graph, folder / "net.stg")
    export(graph, folder / "net.onnx")
    rng = np.random.default_rng(0)
    np.savez(folder / "data.npz", images=rng.standard_normal((5, 3, 32, 32)).astype(np.float32))
    return folder


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def document(*arguments: str, code: int = 0) -> dict[str, Any]:
    assert run(["bench", *arguments, *QUICK, "--json", "out.json"]) == code
    content: dict[str, Any] = json.loads(Path("out.json").read_text())
    return content


def test_model_and_baseline_in_every_quick_candidate(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["--candidate", "torch", "--candidate", "onnx"]
    found = document(
        "net.pt", "--baseline", "before.pt", "--data", "data.npz", "--batch", "1,3", "--plot", "p.svg", *names
    )
    assert found["schema_version"] == 1 and found["problems"] == []
    assert [(p["threads"], p["batch"]) for p in found["points"]] == [(1, 1), (1, 3)]
    for point in found["points"]:
        rows = {row["candidate"]: row for row in point["candidates"]}
        assert set(rows) == {f"{b}{n}" for b in ("", "baseline:") for n in ("torch", "onnx")}
        for row in rows.values():
            assert row["status"] == "ok"
            assert len(row["latency_ms_by_round"]) == row["rounds"] == 5
            assert row["latency_ms_p50"] == pytest.approx(np.median(row["latency_ms_by_round"]), rel=0.01)
            assert (row["latency_ms_p99"] is None) == (row["calls"] < 100)
            assert row["ratio"]["value"] == pytest.approx(
                row["latency_ms_p50"] / rows["torch"]["latency_ms_p50"], rel=0.01
            )
            assert row["ratio"]["low"] <= row["ratio"]["high"]
            assert row["peak_bytes"] > 1e7 and row["first_call_s"] > 0 and row["load_s"] > 0
        assert rows["onnx"]["agreement"]["argmax_agree"] == rows["onnx"]["agreement"]["rows"] >= 16
        assert rows["torch"]["agreement"] is None, "it is what the others are compared with"
        assert point["overlapping_turns"] == 0 and len(point["order"]) == 20
        # torch's process holds torch; onnxruntime's must not, or its memory would be torch's
        assert rows["onnx"]["peak_bytes"] < 0.7 * rows["torch"]["peak_bytes"]
    assert {(g["candidate"], g["batch"]) for g in found["against_baseline"]} == {
        (n, b) for n in ("torch", "onnx") for b in (1, 3)
    }
    for group in ("model", "baseline"):
        rates = found["firing_rates"][group]
        assert rates["mean"] == pytest.approx(np.mean(list(rates["layers"].values())))
        assert 0.05 < rates["mean"] < 0.5
    assert found["machine"]["packages"]["onnxruntime"] and found["machine"]["date"].endswith("UTC")
    assert "<svg" in Path("p.svg").read_text() and "batch size" in Path("p.svg").read_text()
    text = capsys.readouterr().out
    assert "compressed / baseline" in text and "CPUExecutionProvider" in text


def test_torchs_own_export_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    found = document(
        "net.pt", "--candidate", "dynamo", "--candidate", "onnx", "--reference", "onnx", "--batch", "2"
    )
    rows = {row["candidate"]: row for row in found["points"][0]["candidates"]}
    assert rows["dynamo"]["status"] == rows["onnx"]["status"] == "ok", found["problems"]
    assert rows["onnx"]["ratio"]["value"] == 1.0
    assert "ratios are of onnx" in capsys.readouterr().out


def test_a_graph_file_and_files_of_others(capsys: pytest.CaptureFixture[str]) -> None:
    found = document("net.stg", "net.onnx", "--candidate", "onnx")
    assert [row["candidate"] for row in found["points"][0]["candidates"]] == ["onnx", "net.onnx"]
    assert found["points"][0]["candidates"][1]["agreement"]["max_difference"] == 0
    assert len(found["firing_rates"]["model"]["layers"]) > 5


def test_an_onnx_file_alone(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    found = document("net.onnx", "--candidate", "onnx", "--candidate", "openvino")
    assert [row["status"] for row in found["points"][0]["candidates"]] == ["ok", "ok"]
    assert "CPU f32" in capsys.readouterr().out
    assert len(found["firing_rates"]["model"]["layers"]) > 5


def test_a_file_that_computes_something_else_is_not_timed(capsys: pytest.CaptureFixture[str]) -> None:
    model = onnx.load("net.onnx")
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim >= 2 and array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(-array, tensor.name))
    onnx.save(model, "wrong.onnx")
    found = document("net.stg", "wrong.onnx", "--candidate", "onnx", code=1)
    right, wrong = found["points"][0]["candidates"]
    assert right["status"] == "ok" and wrong["status"] == "mismatch"
    assert wrong["latency_ms_p50"] is None and wrong["latency_ms_by_round"] == []
    assert "wrong.onnx: its outputs are not the reference's" in found["problems"][0]
    assert "problem: wrong.onnx" in capsys.readouterr().err


def test_a_silent_network_is_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    stem = tuple((4, True) for _ in range(4))
    save_checkpoint("silent.pt", Spikformer(SpikformerConfig(1, 4, 8, 1, steps=2, stem=stem)).eval())
    found = document("silent.pt", "--candidate", "onnx")
    assert any("never fire" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["gone.pt"], "gone.pt"),
        (["net.pt", "gone.onnx"], "gone.onnx does not exist"),
        (["net.pt", "net.stg"], "net.stg is no .onnx or .sev file"),
        (["net.pt", "--candidate", "tvm"], "no candidate 'tvm'"),
        (["net.stg", "--candidate", "torch"], "holds no PyTorch model"),
        (["net.pt", "--reference", "nobody", "--candidate", "torch"], "no candidate 'nobody'"),
        (["net.pt", "--batch", "0"], "'0' is not a list of positive numbers"),
        (["net.pt", "--threads", "1,x"], "'1,x' is not a list"),
        (["net.pt", "--device", "npu"], "unknown device 'npu'"),
        (["net.pt", "--cuda-graph"], "CUDA graphs run on a CUDA device only"),
        (["net.pt", "--plot", "p.gif"], "its suffix is none of"),
        (["net.pt", "--plot", "no/such/p.svg"], "its folder does not exist"),
        (["net.pt", "--baseline", "net.stg", "--candidate", "onnx"], "does not take what net.pt takes"),
        (["net.pt", "--data", "gone.npz", "--candidate", "onnx"], "gone.npz does not exist"),
    ],
)
def test_what_the_user_got_wrong(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_a_plot_without_matplotlib_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(["bench", "net.pt", "--plot", "p.png"]) == 2
    assert 'pip install "stdeploy[plots]"' in capsys.readouterr().err


def test_a_device_that_is_not_there_fails_every_candidate(capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    if torch.cuda.is_available() or "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has CUDA")
    found = document("net.pt", "--device", "cuda", "--candidate", "torch", "--candidate", "onnx", code=1)
    reasons = {row["candidate"]: row["reason"] for row in found["points"][0]["candidates"]}
    assert "no CUDA device" in reasons["torch"] and "no CUDAExecutionProvider" in reasons["onnx"]


def test_candidates_that_cannot_run_here_are_left_out_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = {"model": benchmark.open_network(Path("net.pt"), SourceOptions())}
    assert needs.lacking("compile", "cuda") is None and needs.lacking("torch") is None
    assert needs.lacking("openvino", "cuda") in ("it runs on the CPU only", "openvino is not installed")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert needs.lacking("compile") == "torch.compile finds no C++ compiler"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert needs.lacking("dynamo") == "onnxscript is not installed"
    able, remarks = needs.summary()
    assert able == "4 of 6"
    assert "no dynamo: onnxscript is not installed" in remarks and "no compile" in remarks
    names, notes = benchmark._chosen(benchmark.BenchOptions(), networks)
    assert names == ["torch", "onnx", "openvino", "event"]
    assert notes[1] == "dynamo is left out: onnxscript is not installed"


def test_ctrl_c_leaves_neither_process_nor_folder(folder: Path, tmp_path: Path) -> None:
    # A shell that runs the tests behind & has them, and whatever they start, ignore SIGINT.
    main = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from stdeploy.cli import main; main()"
    arguments = ["bench", "net.stg", "--candidate", "onnx", "--seconds", "60"]
    child = subprocess.Popen(
        [sys.executable, "-c", main, *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        start_new_session=True,
    )
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith("timing"):
            break
    workers = children(child.pid)
    assert workers
    child.send_signal(signal.SIGINT)
    _, rest = child.communicate(timeout=30)
    assert child.returncode == 130 and "interrupted" in rest
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("stdeploy")] == []


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
