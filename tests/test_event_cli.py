"""`.sev` files through the commands: proven, timed, counted; and what is refused."""

from __future__ import annotations

import importlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stdeploy import rates, workflow
from stdeploy.cli.app import run
from stdeploy.exporters.event import export
from stdeploy.exporters.event.container import Sev, read_sev
from stdeploy.graph import Graph
from tests.chains import chain, conv, lif
from tests.commands import saved
from tests.graphs import random_inputs, spikformer_graph

pytest.importorskip("numba")
program = importlib.import_module("stdeploy.runtime.event.program")
EventSession = importlib.import_module("stdeploy.runtime.event.session").EventSession

GRAPHS = {
    "still": spikformer_graph(steps=5, image=(2, 8, 8), masked=0.5, neurons="mixed", seed=3),
    "frames": spikformer_graph(steps=1, image=(2, 8, 8), layout="TB", order="kv", per_channel=True, seed=5),
    "groups": chain((130, 4, 5), conv(130, 130, 130), lif(), conv(3, 130, 1, density=0.01), lif(), steps=5),
}
QUICK = ["--seconds", "0.05", "--rounds", "5", "--threads", "1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, graph in GRAPHS.items():
        saved(graph, 3, name, name)
    return tmp_path


def exported(name: str, *arguments: str) -> None:
    data = ["--data", f"{name}.npz"]
    assert run(["export", f"{name}.stg", "--target", "event", *data, *arguments]) == 0


def never(*given: Any, **more: Any) -> None:
    raise AssertionError("done in vain")


def document(*arguments: str, code: int = 0) -> dict[str, Any]:
    assert run([*arguments, "--json", "out.json"]) == code
    content: dict[str, Any] = json.loads(Path("out.json").read_text())
    return content


def damaged(path: Path) -> None:
    """Negate a weight of the file, checksums and all."""
    sev = read_sev(path)
    weights = sev.arrays["weights"].copy()
    weights[np.argsort(-np.abs(np.where(np.isfinite(weights), weights, 0)))[:20]] *= -1
    Sev(sev.header, {**sev.arrays, "weights": weights}).write(path)


def spikes(graph: Graph, samples: int) -> int:
    return sum(int(np.prod(n.value.shape)) for n in graph.neurons) * graph.steps * samples


@pytest.mark.parametrize("name", GRAPHS)
def test_an_export_is_proven_on_the_users_data(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(name)
    text = capsys.readouterr().out
    assert "event engine" in text and "3 samples of" in text
    found = document("verify", f"{name}.stg", f"{name}.sev", "--data", f"{name}.npz")
    (report,) = found["verify"]
    assert report["ok"] and report["candidate"].startswith("event engine")
    kept = sum(layer["spikes_compared"] for layer in report["layers"])
    assert 0 < kept <= spikes(GRAPHS[name], 3) and report["unobserved"] == []


@pytest.mark.parametrize("name", ["still", "groups"])
@pytest.mark.parametrize("kernel", ["rows", "columns"])
def test_every_plan_is_proven(folder: Path, name: str, kernel: str) -> None:
    exported(name, "--no-verify")
    layers = read_sev(folder / f"{name}.sev").header["plan"]["layers"]
    kernels = {layer: kernel for layer, row in layers.items() if kernel in row["seconds"]}
    (folder / "plan.json").write_text(json.dumps({"kernels": kernels}))
    exported(name, "--plan", "plan.json")
    held = read_sev(folder / f"{name}.sev").header["plan"]["kernels"]
    assert list(held.values()).count(kernel) == len(kernels) >= len(held) - 2


def test_what_chose_the_kernels_is_told_for_those_that_no_plan_fixed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "still.stg", "--target", "event", "--no-verify"]
    assert run(command) == 0
    assert "\n          chosen by an assumed 15%" in capsys.readouterr().out
    names = read_sev(folder / "still.sev").header["plan"]["layers"]
    for fixed, told in ((1, ["the others chosen by an assumed 15%"]), (len(names), [])):
        plan = {"kernels": dict.fromkeys(list(names)[-fixed:], "rows")}
        (folder / "plan.json").write_text(json.dumps(plan))
        assert run([*command, "--plan", "plan.json"]) == 0
        out = capsys.readouterr().out
        assert f", {fixed} of them as the plan plan.json has it" in out
        assert [line.strip()[:35] for line in out.splitlines() if "chosen" in line] == told


@pytest.mark.parametrize(
    ("target", "option", "text", "message"),
    [
        ("event", "--plan", None, "cannot read the plan wrong"),
        ("event", "--plan", '{"kernels": ', "the plan wrong is no JSON"),
        ("event", "--plan", '{"kernels": {"head": "diagonals"}}', "gives head the kernel 'diagonals'"),
        ("nir", "--dialect", "x = [", "wrong.toml"),
    ],
)
def test_a_wrong_file_is_refused_before_the_model_is_read(
    folder: Path,
    target: str,
    option: str,
    text: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(workflow, "open_source", never)
    wrong = folder / ("wrong.toml" if target == "nir" else "wrong")
    if text is not None:
        wrong.write_text(text)
    before = sorted(folder.iterdir())
    assert run(["export", "still.stg", "--target", target, option, wrong.name, "--save-graph", "s.stg"]) == 2
    assert message in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("tail", "layers that the model does not have: tail"),
        ("patch_embed.proj0_conv", "is not held as bits"),
    ],
)
def test_a_plan_of_another_model_is_refused_before_rates_are_measured(
    folder: Path,
    layer: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(rates, "rate_option", never)
    (folder / "plan.json").write_text(json.dumps({"kernels": {layer: "columns"}}))
    command = ["export", "still.stg", "--target", "event", "--data", "still.npz", "--plan", "plan.json"]
    assert run(command) == 2
    error = capsys.readouterr().err
    assert message in error and "plan.json" in error
    assert not (folder / "still.sev").exists()


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="the system shows no open files")
@pytest.mark.parametrize("python", [False, True])
def test_a_plan_that_can_be_read_only_once(folder: Path, python: bool) -> None:
    """As a shell's <(...) gives it."""
    read, write = os.pipe()
    with open(read) as pipe:
        os.write(write, b'{"kernels": {"head": "columns"}}')
        os.close(write)
        path = f"/dev/fd/{pipe.fileno()}"
        if python:
            export(GRAPHS["still"], folder / "still.sev", {"plan": path})
        else:
            exported("still", "--no-verify", "--plan", path)
    held = read_sev(folder / "still.sev").header["plan"]["layers"]
    assert [name for name, row in held.items() if row["by"] == "plan"] == ["head"]


def test_a_file_that_computes_something_else_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported("still")
    damaged(folder / "still.sev")
    found = document("verify", "still.stg", "still.sev", "--data", "still.npz", code=1)
    assert not found["verify"][0]["ok"]
    found = document(
        "bench", "still.stg", "still.sev", "--candidate", "onnx", "--data", "still.npz", *QUICK, code=1
    )
    rows = {row["candidate"]: row for row in found["points"][0]["candidates"]}
    assert rows["still.sev"]["status"] == "mismatch" and rows["onnx"]["status"] == "ok"


def test_another_models_file_is_no_export_of_this_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported("frames", "--no-verify")
    assert run(["verify", "still.stg", "frames.sev"]) == 1
    assert "frames.sev is not an export of still.stg" in capsys.readouterr().err


def test_bench_runs_the_model_and_files(folder: Path) -> None:
    exported("still", "--no-verify")
    names = ["--candidate", "onnx", "--candidate", "event"]
    found = document(
        "bench", "still.stg", "still.sev", *names, "--batch", "1,3", "--data", "still.npz", *QUICK
    )
    assert found["problems"] == []
    for point in found["points"]:
        rows = {row["candidate"]: row for row in point["candidates"]}
        assert set(rows) == {"onnx", "event", "still.sev"}
        for name in ("event", "still.sev"):
            assert rows[name]["status"] == "ok" and "event engine" in rows[name]["software"]
            assert rows[name]["agreement"]["rows"] >= 3 and rows[name]["first_call_s"] > 0


def test_bench_of_a_file_alone(folder: Path) -> None:
    exported("frames", "--no-verify")
    found = document("bench", "frames.sev", "--baseline", "frames.stg", "--candidate", "event", *QUICK)
    assert {row["candidate"] for row in found["points"][0]["candidates"]} == {"event", "baseline:event"}
    assert found["firing_rates"]["model"].keys() == found["firing_rates"]["baseline"].keys()


def test_the_count_is_of_the_files_own_run_and_the_engines(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported("still", "--no-verify")
    capsys.readouterr()
    counted = document("energy", "still.stg", "--artefact", "still.sev", "--data", "still.npz")
    text = capsys.readouterr().out
    assert "event engine" in counted["graph"]["counted"] and "the engine's own count agrees" in text
    model = document("energy", "still.stg", "--data", "still.npz")
    assert counted["counts"] == model["counts"] and counted["energies"] == model["energies"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["bench", "still.stg", "still.sev", "--device", "cuda"], "still.sev runs on the CPU, not on cuda"),
        (["bench", "still.sev", "--candidate", "torch"], "torch cannot run it"),
        (["bench", "still.sev", "--candidate", "onnx"], "onnx cannot run still.sev"),
        (["energy", "still.sev", "--data", "still.npz"], "from which no network is read back"),
        (["export", "still.sev", "--target", "onnx"], "from which no network is read back"),
        (["verify", "still.sev", "still.sev"], "from which no network is read back"),
        (["verify", "still.stg", "cut.sev"], "cut.sev is cut short"),
        (["verify", "still.stg", "other.sev"], "other.sev holds no event program"),
        (["energy", "still.stg", "--artefact", "cut.sev", "--data", "still.npz"], "cut.sev is cut short"),
    ],
)
def test_what_the_user_got_wrong(
    folder: Path, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exported("still", "--no-verify")
    (folder / "cut.sev").write_bytes((folder / "still.sev").read_bytes()[:-100])
    Sev({"metadata": {}}, {}).write(folder / "other.sev")
    before = sorted(folder.iterdir())
    capsys.readouterr()
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error
    assert sorted(folder.iterdir()) == before


def test_compiling_is_said_where_it_takes_long(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exported("still", "--no-verify")
    capsys.readouterr()
    real = EventSession.compile
    with EventSession("still.sev") as session:
        real(session)
        known = list(program.run.signatures)
        session.run(random_inputs(GRAPHS["still"], 1))
        assert known and program.run.signatures == known, "nothing was left to compile"
    assert run(["verify", "still.stg", "still.sev"]) == 0
    assert "compiling" not in capsys.readouterr().err

    def slow(session: Any) -> None:
        time.sleep(2.3)
        real(session)

    monkeypatch.setattr(EventSession, "compile", slow)
    assert run(["verify", "still.stg", "still.sev"]) == 0
    assert "compiling the event engine's kernels" in capsys.readouterr().err
    assert run(["energy", "still.stg", "--artefact", "still.sev", "--data", "still.npz"]) == 0
    assert "compiling the event engine's kernels" in capsys.readouterr().err
