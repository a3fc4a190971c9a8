"""Wrong options, tampered artefacts and odd files through the program: one error, its exit code, nothing written."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from stdeploy.checkpoint import save_checkpoint
from stdeploy.cli.app import run
from stdeploy.graph.file import save_graph
from stdeploy.models import Spikformer, SpikformerConfig
from tests.commands import ROOT, program, saved
from tests.graphs import random_inputs, spikformer_graph
from tests.test_cli import nudged

GRAPH = spikformer_graph(steps=2, image=(2, 8, 8), masked=0.5, seed=3)
CONFIG = SpikformerConfig(
    depth=1,
    embed_dim=4,
    mlp_dim=6,
    num_heads=2,
    steps=2,
    stem=((3, True), (4, True)),
    image_size=(8, 8),
    neuron="slif",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a graph, data for it, and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    saved(GRAPH, 9)
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "model.pt", Spikformer(CONFIG))
    return tmp_path


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """What stderr says where the program has to refuse and to leave the folder as it was."""
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    capsys.readouterr()
    assert run(list(arguments)) == code
    streams = capsys.readouterr()
    assert streams.err.count("error: ") == 1, streams.err
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    return streams.err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--reader", "snntorch"], "no reader 'snntorch' runs onnx files"),
        (["--data", "gone.npz"], "gone.npz does not exist"),
        (["--data", "model.pt"], "no array called images"),
        (["-o", "net.txt"], "does not end in .onnx"),
        (["--input", "3x8x8"], "net.stg is a graph: it takes no --input"),
        (["--steps", "2", "--neuron", "tau=2"], "takes no --steps, --neuron"),
        (["--neuron", "tau=0.5"], "'0.5' is not a value of tau"),
        (["--neuron", "v_threshold=inf"], "'inf' is not a value of v_threshold"),
    ],
)
def test_wrong_options_write_nothing(
    options: list[str], text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert text in refused(folder, capsys, "export", "net.stg", "--target", "onnx", *options)


def test_a_native_checkpoint_takes_no_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(folder, capsys, "export", "model.pt", "--target", "onnx", "--model", "a:b")
    assert "takes no --model" in error


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("block.0.attn.q_lif.tau", 0.5, "block.0.attn.q_lif: tau < 1"),
        ("block.0.attn.q_lif.tau", -2.0, "block.0.attn.q_lif: tau < 1"),
        ("patch_embed.bn0.running_var", -1.0, "patch_embed.bn0: scale is not finite"),
    ],
)
def test_parameters_without_meaning(
    name: str, value: float, text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load("model.pt", weights_only=True)
    content["state_dict"][name].fill_(value)
    torch.save(content, "model.pt")
    assert text in refused(folder, capsys, "export", "model.pt", "--target", "onnx")


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (np.full(9, 0.5), "labels are float64"),
        (np.array(list("abcdefghi")), "labels are <U1"),
        (np.full(9, 77), "labels run from 77 to 77, the model has 5 classes"),
    ],
)
def test_labels_that_are_no_classes(
    labels: Any, text: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("odd.npz", images=random_inputs(GRAPH, 9, 1), labels=labels)
    assert text in refused(folder, capsys, "export", "net.stg", "--target", "onnx", "--data", "odd.npz")


@pytest.fixture
def artefacts(folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """`folder` with net.onnx and net.nir in it."""
    for target in ("onnx", "nir"):
        assert run(["export", "net.stg", "--target", target, "--no-verify", "-q"]) == 0
    return folder


def verified(folder: Path, capsys: pytest.CaptureFixture[str], name: str, code: int) -> str:
    reader = ["--reader", "stdeploy"] if name.endswith(".nir") else []
    return refused(folder, capsys, "verify", "net.stg", name, "--data", "data.npz", *reader, code=code)


def test_a_changed_weight_of_an_onnx_file_names_the_layer(
    artefacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = onnx.load("net.onnx")
    kernel = next(i for i in model.graph.initializer if len(i.dims) == 4)
    array = numpy_helper.to_array(kernel) + np.float32(0.01)
    kernel.CopyFrom(numpy_helper.from_array(array, kernel.name))
    onnx.save(model, "net.onnx")
    assert "spikes of onnxruntime" in verified(artefacts, capsys, "net.onnx", 1)


def test_a_changed_threshold_of_a_nir_file_names_the_layer(
    artefacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = GRAPH.neurons[0].name
    with h5py.File("net.nir", "r+") as file:
        threshold = file["node/nodes"][name]["v_threshold"]
        threshold[...] = threshold[()] + 5e-3
    assert f"error: {name}: " in verified(artefacts, capsys, "net.nir", 1)


@pytest.mark.parametrize("suffix", ["onnx", "nir"])
def test_an_artefact_of_another_network(
    suffix: str, artefacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = spikformer_graph(steps=3, image=(2, 8, 8), masked=0.25, seed=4)
    save_graph(other, artefacts / "other.stg")
    assert run(["export", "other.stg", "--target", suffix, "--no-verify", "-q"]) == 0
    error = verified(artefacts, capsys, f"other.{suffix}", 1)
    assert f"other.{suffix} is not an export of net.stg: it runs 3 steps, not 2" in error


def rewrite_onnx(**entries: str | None) -> None:
    model = onnx.load("net.onnx")
    for entry in list(model.metadata_props):
        if entry.key in entries:
            model.metadata_props.remove(entry)
    for key, value in entries.items():
        if value is not None:
            model.metadata_props.add(key=key, value=value)
    onnx.save(model, "net.onnx")


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"neurons": None}, "does not say which of its values are spikes"),
        ({"neurons": "3"}, "metadata is damaged"),
        ({"steps": '"x"'}, "metadata is damaged"),
        ({"input": "[1]"}, "metadata is damaged"),
    ],
)
def test_damaged_onnx_metadata(
    entries: dict[str, str | None], text: str, artefacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite_onnx(**entries)
    assert text in verified(artefacts, capsys, "net.onnx", 2)


@pytest.mark.parametrize(
    "change", [{"neurons": []}, {"input": {}}, {"output": {}}, {"counts": 3}, {"steps": "x"}]
)
def test_damaged_nir_metadata(
    change: dict[str, Any], artefacts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File("net.nir", "r+") as file:
        place = file["node/metadata"]
        content = {**json.loads(place["stdeploy"][()]), **change}
        del place["stdeploy"]
        place.create_dataset("stdeploy", data=json.dumps(content))
    assert "metadata is damaged" in verified(artefacts, capsys, "net.nir", 2)


def test_a_nir_file_without_its_last_edges(artefacts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File("net.nir", "r+") as file:
        edges = file["node/edges"][()]
        del file["node/edges"]
        file["node"].create_dataset("edges", data=edges[1:])
    verified(artefacts, capsys, "net.nir", 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: [1],
        lambda d: {**d, "version": 0},
        lambda d: {**d, "steps": 3},
        lambda d: {k: v for k, v in d.items() if k != "sha256"},
    ],
    ids=["list", "version", "steps", "unsigned"],
)
def test_tampered_graph_files(
    change: Callable[[dict[str, Any]], Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load("net.stg") as archive:
        arrays = {name: archive[name] for name in archive.files}
    document = change(json.loads(arrays.pop("graph.json").tobytes()))
    text = np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)
    with Path("bad.stg").open("wb") as stream:
        np.savez(stream, allow_pickle=False, **{"graph.json": text}, **arrays)
    assert "bad.stg" in refused(folder, capsys, "inspect", "bad.stg")


@pytest.mark.parametrize("name", ["image.pt", "image.stg", "image.safetensors"])
def test_a_picture_is_no_model_and_no_advice_to_load_it_unsafely(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_bytes(bytes.fromhex("89504e470d0a1a0a0000000d49484452") + bytes(range(256)))
    error = refused(folder, capsys, "inspect", name)
    assert name in error
    assert "unsafe" not in error and "pickle instruction" not in error


@pytest.mark.parametrize("arguments", [[], ["--json=-"]], ids=["text", "json"])
def test_a_reader_that_goes_away_ends_neither_the_work_nor_the_check(
    arguments: list[str], artefacts: Path
) -> None:
    other = nudged(GRAPH)
    save_graph(other, artefacts / "other.stg")
    reading, writing = os.pipe()
    os.close(reading)
    command = ["verify", "other.stg", "net.onnx", "--data", "data.npz", *arguments]
    done = program(*command, stdout=writing)
    os.close(writing)
    assert done.returncode == 1
    assert "are wrong" in done.stderr
    assert "Broken" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "model.pt", "--target", "nir", "--no-verify", "-o", "out.nir"],
        ["compress", "model.pt", "--method", "l1p", "--sparsity", "0.5", "-o", "out.pt"],
    ],
    ids=["nir", "compress"],
)
def test_a_full_disk_leaves_nothing(arguments: list[str], folder: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    before = sorted(os.listdir(folder))
    done = program(*arguments, preexec_fn=limit)
    assert done.returncode == 2, done.stderr
    assert f"cannot write {arguments[-1]}: File too large" in done.stderr
    assert sorted(os.listdir(folder)) == before


def test_sigterm_in_the_middle_of_writing_leaves_nothing(folder: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "import stdeploy.exporters.onnx.model as model\n"
        "from stdeploy.cli import app\n"
        "whole = model.Path.write_bytes\n"
        "def half(self, data):\n"
        "    whole(self, data[:100])\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "model.Path.write_bytes = half\n"
        "sys.argv[1:] = ['export', 'net.stg', '--target', 'onnx', '--no-verify']\n"
        "app.main()\n"
    )
    before = sorted(os.listdir(folder))
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert sorted(os.listdir(folder)) == before


def test_compressing_twice_says_so_and_keeps_the_record(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, out, sparsity in (("model.pt", "once.pt", "0.5"), ("once.pt", "twice.pt", "0.25")):
        assert run(["compress", source, "--method", "l1p", "--sparsity", sparsity, "-o", out]) == 0
    error = capsys.readouterr().err
    assert error.count("warning: ") == 1 and "once.pt is compressed already (l1p 0.5)" in error
    record = torch.load("twice.pt", weights_only=True)["compression"]
    assert (record["sparsity"], record["before"]["sparsity"]) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("package", "model", "target"),
    [
        ("torch", "model.pt", "onnx"),
        ("onnx", "net.stg", "onnx"),
        ("nir", "net.stg", "nir"),
        ("onnxruntime", "net.stg", "onnx"),
    ],
)
def test_a_missing_package_is_named_before_anything_is_written(
    package: str, model: str, target: str, folder: Path
) -> None:
    code = (
        "import sys, importlib.util as util\n"
        f"sys.modules[{package!r}] = None\n"
        "real = util.find_spec\n"
        f"util.find_spec = lambda name, *a: None if name == {package!r} else real(name, *a)\n"
        f"from stdeploy.cli.app import run\n"
        f"sys.exit(run(['export', {model!r}, '--target', {target!r}]))\n"
    )
    before = sorted(os.listdir(folder))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2, done.stderr
    assert f"error: {package} is not installed\nhint: " in done.stderr
    assert sorted(os.listdir(folder)) == before


def test_equal_checkpoints_are_equal_files(tmp_path: Path) -> None:
    """The archive must not hold the temporary file's random name: its checksum names the source."""
    model = Spikformer(CONFIG)
    first, second = (save_checkpoint(tmp_path / f"{n}.pt", model).read_bytes() for n in "ab")
    assert first == second
