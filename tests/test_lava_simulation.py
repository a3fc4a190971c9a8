"""Exported folders in Lava itself: every spike, and one clear error where something is wrong with it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stdeploy import workflow
from stdeploy.cli.app import run
from stdeploy.errors import UserError
from stdeploy.exporters import lava
from stdeploy.graph.interpreter import interpret
from stdeploy.passes.pipelines import PIPELINES, run_pipeline
from stdeploy.runtime import lava_process
from stdeploy.runtime.lava_process import LavaExecutor, lava_python, lava_version
from stdeploy.runtime.lava_reference import LavaReference
from tests.families import FAMILIES
from tests.families.rows import inputs as family_inputs
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
GRAPH = run_pipeline(spikformer_graph(), PIPELINES["lava"]).graph
INPUTS = random_inputs(GRAPH, 5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small network whose every neuron layer fires."""
    assert every_layer_fires(GRAPH, INPUTS)
    lava.export(GRAPH, tmp_path / "net", {"attention": "process"})
    return tmp_path / "net"


def left_behind(folder: Path) -> list[str]:
    """Processes that still run something of `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(folder) in command:
                found.append(command)
    return found


@pytest.mark.parametrize("sample", ["pruned_dsp", "pruned_l1p"])
def test_a_hundred_test_images_back_to_back(sample: str, tmp_path: Path) -> None:
    source = workflow.open_source(SAMPLES / f"{sample}.pt")
    lowered = workflow.lower(source.graph, "lava")
    workflow.export(source, lowered, tmp_path / "net")
    images = np.load(SAMPLES / "test_images.npz")["images"][:100]
    got, wanted = LavaExecutor(tmp_path / "net").run(images), interpret(lowered.graph, images)
    assert set(got.spikes) == set(wanted.spikes)
    for name, spikes in wanted.spikes.items():
        assert spikes.any(), name
        np.testing.assert_array_equal(got.spikes[name], spikes, err_msg=name)
    np.testing.assert_allclose(got.outputs["output"], wanted.outputs["output"], atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"attention": "units"},
        {"attention": "process", "fixed": True},
        {"attention": "units", "fixed": True},
    ],
)
def test_lava_is_the_reference_bit_for_bit(options: dict[str, Any], tmp_path: Path) -> None:
    lava.export(GRAPH, tmp_path / "net", options)
    got, wanted = LavaExecutor(tmp_path / "net").run(INPUTS), LavaReference(tmp_path / "net").run(INPUTS)
    for name, spikes in wanted.spikes.items():
        np.testing.assert_array_equal(got.spikes[name], spikes, err_msg=name)
    assert all(0 < spikes.mean() < 1 for spikes in got.spikes.values())
    np.testing.assert_array_equal(got.outputs["output"], wanted.outputs["output"])


@pytest.mark.parametrize("fixed", [False, True])
def test_products_with_what_did_not_fire(fixed: bool, tmp_path: Path) -> None:
    family = FAMILIES["Spikformer, IAND residuals"]
    graph = run_pipeline(family.traced(family.build()).graph, PIPELINES["lava"]).graph
    lava.export(graph, tmp_path / "net", {"fixed": fixed})
    x = family_inputs(family)
    got, wanted = LavaExecutor(tmp_path / "net").run(x), LavaReference(tmp_path / "net").run(x)
    for name, spikes in wanted.spikes.items():
        np.testing.assert_array_equal(got.spikes[name], spikes, err_msg=name)


def test_a_sample_in_fixed_point(tmp_path: Path) -> None:
    source = workflow.open_source(SAMPLES / "pruned.pt")
    workflow.export(source, workflow.lower(source.graph, "lava"), tmp_path / "net", {"fixed": True})
    images = np.load(SAMPLES / "test_images.npz")["images"][:10]
    got, wanted = LavaExecutor(tmp_path / "net").run(images), LavaReference(tmp_path / "net").run(images)
    for name, spikes in wanted.spikes.items():
        np.testing.assert_array_equal(got.spikes[name], spikes, err_msg=name)
    np.testing.assert_array_equal(got.outputs["output"], wanted.outputs["output"])


def test_forced_spikes(folder: Path) -> None:
    name = "patch_embed.proj0_lif"
    forced = {name: 1 - interpret(GRAPH, INPUTS).spikes[name]}
    got, wanted = LavaExecutor(folder).run(INPUTS, forced), interpret(GRAPH, INPUTS, forced=forced)
    for layer, spikes in wanted.spikes.items():
        np.testing.assert_array_equal(got.spikes[layer], spikes, err_msg=layer)
    assert left_behind(folder) == []


def test_verify_runs_lava(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from stdeploy.graph.file import save_graph

    save_graph(GRAPH, tmp_path / "net.stg")
    assert run(["verify", str(tmp_path / "net.stg"), str(folder), "-n", "3"]) == 0
    printed = capsys.readouterr().out
    assert "lava 0.10.0 simulation" in printed and "0 of " in printed


def test_fixed_point_is_proven_against_its_reference_and_its_effect_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from stdeploy.graph.file import save_graph

    save_graph(GRAPH, tmp_path / "net.stg")
    np.savez(tmp_path / "data.npz", images=INPUTS, labels=np.arange(len(INPUTS)) % 5)
    model, out, data = (str(tmp_path / name) for name in ("net.stg", "net_lava", "data.npz"))
    command = ["export", model, "--target", "lava", "--fixed", "-o", out, "--data", data, "--json"]
    assert run(command) == 0
    document = json.loads(capsys.readouterr().out)
    (found,) = document["approximations"]
    assert document["verify"] == [] and "int64" in found["reference"]
    assert found["spikes_equal"] == sum(s.size for s in interpret(GRAPH, INPUTS).spikes.values())
    changed = sum(layer["changed"] for layer in found["effect"]["layers"].values())
    assert 0 < changed < 0.2 * found["spikes_equal"]
    assert run(["verify", model, out, "--data", data]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "spikes equal bit for bit" in printed and "accuracy" in printed
    assert "approximate (Lava's fixed point" in printed


def broken(folder: Path, change: Any) -> Path:
    path = folder / "network.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return folder


def test_a_crash_in_a_lava_process_ends_at_once_with_its_reason(folder: Path) -> None:
    program = folder / "stdeploy_lava" / "attention.py"
    program.write_text(program.read_text().replace("out, row, column = ", "1 / 0\n    out, row, column = "))
    start = time.monotonic()
    with pytest.raises(UserError, match="Lava failed on") as caught:
        LavaExecutor(folder, timeout=300).run(INPUTS)
    assert "ZeroDivisionError" in str(caught.value) and time.monotonic() - start < 200
    assert left_behind(folder) == []


def test_a_hang_ends_with_the_timeout(folder: Path) -> None:
    child = "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)', __file__])\n"
    (folder / "run.py").write_text(child + "print('waiting', flush=True)\ntime.sleep(99)\n")
    executor = LavaExecutor(folder, timeout=3)
    with pytest.raises(UserError, match=r"did not finish .* in 3 s: waiting") as caught:
        executor.run(INPUTS)
    assert "STDEPLOY_LAVA_TIMEOUT" in str(caught.value)
    assert left_behind(folder) == []


def test_what_an_older_program_does_not_know(folder: Path) -> None:
    def rename(document: dict[str, Any]) -> None:
        document["processes"][1]["kind"] = "quantum"

    with pytest.raises(UserError, match="is a quantum, which this program does not know"):
        LavaExecutor(broken(folder, rename)).run(INPUTS)


def test_a_python_without_lava(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STDEPLOY_LAVA_PYTHON", sys.executable)
    with pytest.raises(UserError, match="No module named 'lava'") as caught:
        LavaExecutor(folder).run(INPUTS)
    assert caught.value.hint is not None and "make lava" in caught.value.hint
    with pytest.raises(UserError, match="has no lava-nc"):
        lava_version(lava_python())


def test_no_python_at_all(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STDEPLOY_LAVA_PYTHON", str(tmp_path / "python"))
    with pytest.raises(UserError, match="which is no program"):
        LavaExecutor(folder)
    monkeypatch.delenv("STDEPLOY_LAVA_PYTHON")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    with pytest.raises(UserError, match=r"there is no \.venv-lava here") as caught:
        LavaExecutor(folder)
    assert caught.value.hint is not None and "make lava" in caught.value.hint
    broken_link = tmp_path / "text"
    broken_link.write_text("not a program")
    os.chmod(broken_link, 0o755)
    monkeypatch.setenv("STDEPLOY_LAVA_PYTHON", str(broken_link))
    with pytest.raises(UserError, match="does not run"):
        LavaExecutor(folder).run(INPUTS)


def test_a_time_limit_that_is_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("soon", "-3", "nan"):
        monkeypatch.setenv(lava_process.TIMEOUT_VARIABLE, text)
        with pytest.raises(UserError, match="not a number of seconds"):
            LavaExecutor(folder)


def test_without_lava_export_says_so_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stdeploy.graph.file import save_graph

    save_graph(GRAPH, tmp_path / "net.stg")
    monkeypatch.setenv("STDEPLOY_LAVA_PYTHON", str(tmp_path / "none"))
    command = ["export", str(tmp_path / "net.stg"), "--target", "lava", "-o", str(tmp_path / "out")]
    assert run(command) == 2
    assert "make lava" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert run([*command, "--no-verify"]) == 0
    assert (tmp_path / "out" / "run.py").is_file()
