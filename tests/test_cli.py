"""The program as a user meets it: streams, exit codes, refusals, and files that are whole or absent."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stdeploy import running
from stdeploy.cli.app import COMMANDS, run
from stdeploy.errors import UserError
from stdeploy.graph import Graph, GraphBuilder, ops
from stdeploy.graph.file import load_graph, save_graph
from tests.commands import ROOT, program, saved
from tests.graphs import spikformer_graph

GRAPH = spikformer_graph(steps=2, image=(2, 8, 8), masked=0.5, seed=3)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a graph file and data for it."""
    monkeypatch.chdir(tmp_path)
    saved(GRAPH, 9)
    return tmp_path


def leftovers(folder: Path, *known: str) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name not in ("net.stg", "data.npz", *known))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_ends_with_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"stdeploy {name}" in text.split("Examples:")[1]


def test_loading_the_sub_commands_loads_nothing_heavy() -> None:
    code = (
        "import sys, stdeploy.cli.app as app\n"
        "[app.LazyGroup().get_command(None, name) for name in app.COMMANDS]\n"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'nir', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_version_and_no_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("stdeploy 0.")
    assert run([]) == 2
    listed = "".join(capsys.readouterr()).split("Commands:")[1].split("Examples:")[0]
    assert all(name in listed for name in COMMANDS) and "..." not in listed


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["exprt"], "did you mean export?"),
        (["export", "net.stg", "--target", "onx"], "did you mean onnx?"),
        (["export", "net.stg", "--target", "zzz"], "known targets: event, graph, lava, nir, onnx"),
        (["export", "net.stg", "--target", "grpah"], "did you mean graph?"),
        (["export", "net.stg"], "--target"),
        (["export", "missing.stg", "--target", "onnx"], "missing.stg does not exist"),
        (["export", "missing.pt", "--target", "onnx"], "missing.pt does not exist"),
        (["export", ".", "--target", "onnx"], "is a folder"),
        (["export", "net.stg", "--target", "onnx", "-o", "net.stg"], "is the model itself"),
        (["export", "net.stg", "--target", "onnx", "-o", "no/such/folder.onnx"], "cannot write"),
        (["export", "net.stg", "--target", "onnx", "--input", "3xx"], "is not a shape"),
        (["export", "net.stg", "--target", "onnx", "--neuron", "tua=2"], "no setting 'tua'"),
        (["export", "net.stg", "--target", "onnx", "--neuron", "tau=two"], "'two' is not a value of tau"),
        (["export", "net.stg", "--target", "onnx", "--data", "gone.npz"], "gone.npz does not exist"),
        (["export", "net.stg", "--target", "onnx", "--json", "net.stg"], "does not end in .json"),
        (["verify", "net.stg", "net.onnx"], "net.onnx does not exist"),
        (["verify", "net.stg", "data.npz"], "no target writes .npz files"),
        (["inspect", "data.npz"], "data.npz holds arrays, not a model"),
        (["inspect", "."], "network.json"),
        (["compress", "net.stg", "--method", "l1p", "--sparsity", "1.5", "-o", "x.pt"], "sparsity"),
    ],
)
def test_what_the_user_got_wrong_is_said_and_exits_2(
    arguments: list[str], text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(arguments)
    streams = capsys.readouterr()
    assert code == 2
    assert text in streams.err
    assert streams.err.startswith("error: ")
    assert "Traceback" not in streams.err
    assert leftovers(folder) == [] or arguments[0] == "export"


def test_export_verifies_and_reports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["export", "net.stg", "--target", "onnx", "--data", "data.npz", "--json", "out.json"])
    streams = capsys.readouterr()
    assert code == 0, streams.err
    for phase in ("trace", "passes", "export", "verify"):
        assert f" {phase}" in streams.out
    document = json.loads((folder / "out.json").read_text())
    assert document["schema_version"] == 1
    assert document["size_bytes"] == (folder / "net.onnx").stat().st_size
    (report,) = document["verify"]
    assert report["ok"] is True
    assert report["samples"] == 9
    assert report["spikes_compared"] > 0
    assert report["outputs"][0]["argmax_agree"] == 9
    removed = [note for note in document["notes"] if "constant-channels" in note]
    assert removed, "the masked channels were not folded: the comparison of kept channels shows nothing"


def test_json_on_stdout_is_json_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "net.stg", "--target", "onnx", "-n", "3", "--json=-"]) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["verify"][0]["samples"] == 3
    assert "noise" in streams.err
    assert run(["verify", "net.stg", "net.onnx", "-n", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verify"][0]["samples"] == 4


def test_readers_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    arguments = ["--reader", "openvino", "--reader", "onnxruntime"]
    assert run(["export", "net.stg", "--target", "onnx", "-n", "3", *arguments]) == 0
    text = capsys.readouterr().out
    assert text.index("OpenVINO") < text.index("onnxruntime")
    assert run(["verify", "net.stg", "net.onnx", "--reader", "snntorch"]) == 2
    assert "readers: onnxruntime" in capsys.readouterr().err


def test_quiet_says_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "net.stg", "--target", "onnx", "-q"]) == 0
    assert "".join(capsys.readouterr()) == ""


def test_no_verify_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "net.stg", "--target", "onnx", "--no-verify"]) == 0
    streams = capsys.readouterr()
    assert "not verified" in streams.err
    assert "verify" not in streams.out


def test_graph_target_round_trips(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "net.stg", "--target", "graph", "-o", "copy.stg"]) == 0
    assert len(load_graph(folder / "copy.stg")) == len(GRAPH)
    assert run(["verify", "net.stg", "copy.stg", "-n", "3"]) == 0
    assert "interpreter float64" in capsys.readouterr().out


def test_an_artefact_of_another_model_fails_with_exit_1(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", "net.stg", "--target", "onnx", "--no-verify"]) == 0
    other = spikformer_graph(steps=2, image=(2, 8, 8), masked=0.5, seed=3, classes=5)
    changed = nudged(other)
    save_graph(changed, folder / "other.stg")
    capsys.readouterr()
    code = run(["verify", "other.stg", "net.onnx", "--data", "data.npz", "--json", "r.json"])
    streams = capsys.readouterr()
    assert code == 1
    assert "are wrong" in streams.err
    assert "do not use" in streams.err
    report = json.loads((folder / "r.json").read_text())["verify"][0]
    assert report["ok"] is False
    assert any(m["kind"] == "unexplained" for m in report["mismatches"])


def nudged(graph: Graph) -> Graph:
    """`graph` with the threshold of its last neuron layer raised by a hundredth."""
    builder = GraphBuilder(graph.steps, graph.metadata)
    last = graph.neurons[-1].name
    for node in graph:
        op = node.op
        if node.name == last and isinstance(op, ops.Neuron):
            op = ops.Neuron(op.tau, op.v_threshold + 0.01, op.v_reset, op.decay_input, op.kind)
        builder.add(op, node.inputs, name=node.name, source=node.source)
    return builder.build()


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"images": np.zeros((4, 2, 8, 9), np.float32)}, "shape 4x2x8x9, the model takes Bx2x8x8"),
        ({"images": np.zeros((4, 8, 8), np.float32)}, "shape 4x8x8, the model takes Bx2x8x8"),
        ({"images": np.zeros((4, 2, 8, 8))}, "float64, not float32"),
        ({"images": np.full((4, 2, 8, 8), np.nan, np.float32)}, "not finite"),
        ({"images": np.zeros((0, 2, 8, 8), np.float32)}, "no sample"),
        ({"images": np.zeros((4, 2, 8, 8), np.float32), "labels": np.zeros(3)}, "labels have shape [3]"),
        ({"pictures": np.zeros((4, 2, 8, 8), np.float32)}, "no array called images (it has: pictures)"),
    ],
)
def test_bad_data_is_one_clear_error(
    arrays: dict[str, Any], text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(folder / "bad.npz", **arrays)
    assert run(["export", "net.stg", "--target", "onnx", "--data", "bad.npz"]) == 2
    error = capsys.readouterr().err
    assert "bad.npz" in error and text in error
    assert error.count("error: ") == 1


def test_data_that_is_no_npz(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.npz").write_text("images,labels\n")
    assert run(["export", "net.stg", "--target", "onnx", "--data", "bad.npz"]) == 2
    assert "is not a readable npz file" in capsys.readouterr().err
    np.save(folder / "plain.npy", np.zeros(3))
    assert run(["export", "net.stg", "--target", "onnx", "--data", "plain.npy"]) == 2
    assert "is not a readable npz file" in capsys.readouterr().err


def test_inspect_shows_layers_neurons_and_targets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "net.stg", "--json", "i.json"]) == 0
    text = capsys.readouterr().out
    for expected in (
        "block.0.attn.q",
        "rows kept",
        "1.7",
        "folds exactly",
        "export onnx: yes",
        "export nir: ",
    ):
        assert expected in text
    document = json.loads((folder / "i.json").read_text())
    weights = [layer for layer in document["layers"] if layer["rows"] is not None]
    assert document["params"] > document["nnz"] > 0
    assert any(layer["rows_kept"] < layer["rows"] for layer in weights)
    assert len(document["neurons"]) == len(GRAPH.neurons)
    assert set(document["targets"]) >= {"onnx", "nir"}


def test_inspect_of_artefacts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "net.stg", "--target", "onnx", "--no-verify", "-q"]) == 0
    assert run(["inspect", "net.onnx"]) == 0
    text = capsys.readouterr().out
    assert "input[B,2,8,8]" in text and "GreaterOrEqual" in text
    for name in ("broken.onnx", "broken.nir"):
        (folder / name).write_bytes(b"\x00nothing")
        assert run(["inspect", name]) == 2
        assert "is not a readable" in capsys.readouterr().err


def test_targets_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["targets", "--json"]) == 0
    names = {t["name"] for t in json.loads(capsys.readouterr().out)["targets"]}
    assert names >= {"onnx", "nir"}
    assert run(["targets"]) == 0
    assert "graph    .stg" in capsys.readouterr().out
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "torch" in text and "CPUExecutionProvider" in text and "target onnx" in text


def test_what_a_target_cannot_take_exits_3_and_lists_everything(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    b = GraphBuilder(2)
    x = b.add(ops.Input((2, 8, 8), ("channel", "y", "x")), name="input")
    for k in range(2):
        x = b.add(ops.MaxPool((2, 2), (2, 2), (0, 0), (1, 1)), (x,), name=f"pool{k}", source=f"stem.pool{k}")
    x = b.add(ops.Flatten(), (x,), name="flat")
    b.add(ops.Output(), (x,), name="output")
    save_graph(b.build(), folder / "pool.stg")
    assert run(["export", "pool.stg", "--target", "nir"]) == 3
    error = capsys.readouterr().err
    assert "stem.pool0" in error and "stem.pool1" in error
    assert "--target onnx takes the whole model" in error
    assert leftovers(folder, "pool.stg") == []


def test_a_bug_exits_70_and_shows_its_traceback_on_request(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import stdeploy.workflow

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(stdeploy.workflow, "open_source", broken)
    assert run(["inspect", "net.stg"]) == 70
    assert "Traceback" not in capsys.readouterr().err
    assert run(["inspect", "net.stg", "--traceback"]) == 70
    assert "ZeroDivisionError: on purpose" in capsys.readouterr().err


def test_piped_output_has_no_colour(folder: Path) -> None:
    done = program("inspect", "net.stg", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr


def test_a_full_disk_leaves_nothing(folder: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    for target, name in (("onnx", "out.onnx"), ("graph", "out.stg")):
        done = program("export", "net.stg", "--target", target, "-o", name, cwd=folder, preexec_fn=limit)
        assert done.returncode == 2, done.stderr
        assert f"cannot write {name}" in done.stderr
        assert leftovers(folder) == []


def test_a_folder_that_cannot_be_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/proc takes no files, not even from root, whom a folder's mode does not stop."""
    assert run(["export", "net.stg", "--target", "onnx", "-o", "/proc/out.onnx"]) == 2
    assert "cannot write /proc/out.onnx" in capsys.readouterr().err
    if os.geteuid() != 0:
        (folder / "closed").mkdir(mode=0o500)
        assert run(["export", "net.stg", "--target", "onnx", "-o", "closed/out.onnx"]) == 2


def test_an_interrupted_export_leaves_nothing(folder: Path) -> None:
    """SIGINT while the file is being written: the write is held open, then the signal arrives."""
    code = (
        "import pathlib, signal, sys, time, stdeploy.files as files\n"
        "from stdeploy.cli.app import run\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background inherits its neglect\n"
        "def slow(handle):\n"
        "    pathlib.Path('writing').touch()\n"
        "    time.sleep(60)\n"
        "files.os.fsync = slow\n"
        "sys.exit(run(['export', 'net.stg', '--target', 'onnx', '--no-verify']))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 60
    while not (folder / "writing").exists() and time.monotonic() < deadline:
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.05)
    assert any(name.endswith(".part") for name in leftovers(folder)), "nothing was being written"
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "interrupted" in error
    assert leftovers(folder, "writing") == []


@pytest.mark.parametrize(
    ("reader", "reason"), [("sinabs", "subtracts the threshold"), ("rockpool", "maps neither")]
)
def test_a_reader_known_to_be_wrong_is_refused_with_what_was_measured(
    reader: str, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "net.nir"
    file.write_bytes(b"")
    with pytest.raises(UserError, match=reason):
        running.executors(file, (reader,))


def test_inspect_prints_the_graph_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "net.stg", "--graph", "--json=graph.json"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0] == f"graph steps=2 nodes={len(GRAPH)} neurons={len(GRAPH.neurons)}"
    assert "%head: [channel:5] final real = Linear(" in text
    assert json.loads(Path("graph.json").read_text())["graph"] == text.splitlines()
