"""The exported run.py by itself, as somebody without stdeploy runs it: its messages, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from stdeploy.exporters import lava
from stdeploy.passes.pipelines import PIPELINES, run_pipeline
from stdeploy.runtime.lava_process import LavaExecutor, lava_python
from stdeploy.runtime.lava_reference import LavaReference
from tests.graphs import random_inputs, spikformer_graph
from tests.test_export_lava import repeated_sums

GRAPH = run_pipeline(spikformer_graph(image=(2, 8, 8)), PIPELINES["lava"]).graph
INPUTS = random_inputs(GRAPH, 3)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an exported network `net` and its inputs."""
    lava.export(GRAPH, tmp_path / "net", {"attention": "process"})
    np.savez(tmp_path / "x.npz", inputs=INPUTS)
    return tmp_path


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    scratch = place / "tmp"
    scratch.mkdir(exist_ok=True)
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}
    command = [str(lava_python().absolute()), "net/run.py", *arguments]
    return subprocess.Popen(
        command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def test_relative_paths_and_nothing_but_lava(place: Path) -> None:
    child = start(place, "x.npz", "y.npz", "--spikes")
    assert child.communicate()[1] == "" and child.returncode == 0
    wanted = LavaReference(place / "net").run(INPUTS)
    with np.load(place / "y.npz") as got:
        np.testing.assert_allclose(got["output"], wanted.outputs["output"], atol=1e-12)
        for name, spikes in wanted.spikes.items():
            np.testing.assert_array_equal(got[f"spikes:{name}"], spikes, err_msg=name)
    assert list((place / "tmp").iterdir()) == []


def test_a_value_summed_with_itself(tmp_path: Path) -> None:
    graph = repeated_sums()
    lava.export(graph, tmp_path / "net", {"fixed": True, "input_unit": 1})
    x = random_inputs(graph, 3)
    got, wanted = LavaExecutor(tmp_path / "net").run(x), LavaReference(tmp_path / "net").run(x)
    for name, spikes in wanted.spikes.items():
        assert spikes.any()
        np.testing.assert_array_equal(got.spikes[name], spikes, err_msg=name)


WRONG = {
    "no such file": ("cannot be read as an .npz file", lambda p: (p / "x.npz").unlink()),
    "junk": ("cannot be read as an .npz file", lambda p: (p / "x.npz").write_bytes(b"junk" * 9)),
    "another key": ("holds no `inputs`, but images", lambda p: np.savez(p / "x.npz", images=INPUTS)),
    "a channel less": ("[B, 2, 8, 8]", lambda p: np.savez(p / "x.npz", inputs=INPUTS[:, :1])),
    "no sample": ("[B, 2, 8, 8]", lambda p: np.savez(p / "x.npz", inputs=INPUTS[:0])),
    "a number": ("[B, 2, 8, 8]", lambda p: np.savez(p / "x.npz", inputs=np.zeros(()))),
    "not a number": ("not a finite number", lambda p: np.savez(p / "x.npz", inputs=INPUTS * np.nan)),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_inputs_are_one_line(what: str, place: Path) -> None:
    text, harm = WRONG[what]
    harm(place)
    child = start(place, "x.npz", "y.npz")
    said = child.communicate()[1]
    assert child.returncode == 1 and text in said and said.count("\n") == 1


def test_a_result_that_cannot_be_written_is_found_before_the_run(place: Path) -> None:
    child = start(place, "x.npz", "nowhere/y.npz")
    assert "nowhere/y.npz cannot be written" in child.communicate()[1]


def members(group: int) -> list[int]:
    """Processes of a process group, without those that ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                state, _, pgrp = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:3]
            except OSError:
                continue
            if int(pgrp) == group and state != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_no_process(number: signal.Signals, place: Path) -> None:
    np.savez(place / "x.npz", inputs=np.repeat(INPUTS, 400, axis=0))
    child = start(place, "x.npz", "y.npz")
    while len(members(child.pid)) < 20:
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(number)
    child.communicate(timeout=60)
    for _ in range(200):
        if not members(child.pid):
            break
        time.sleep(0.05)
    assert members(child.pid) == []
    if number is signal.SIGTERM:
        assert child.returncode == 128 + number and list((place / "tmp").iterdir()) == []
