"""From a checkpoint to proven artefacts through the program: native, foreign, event frames, graph file."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stdeploy.checkpoint import save_checkpoint
from stdeploy.cli.app import run
from stdeploy.models import Spikformer, SpikformerConfig, calibrate_batchnorm

CONFIG = SpikformerConfig(
    depth=1,
    embed_dim=12,
    mlp_dim=18,
    num_heads=3,
    steps=3,
    stem=((6, True), (12, True)),
    in_channels=2,
    image_size=(12, 12),
    num_classes=5,
    scale=0.25,
    tau=1.7,
    v_reset=-0.1,
)
EVENTS = replace(CONFIG, input_kind="event_frames", tau=2.0, v_reset=0.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def checkpoint(folder: Path, config: SpikformerConfig) -> Spikformer:
    """model.pt and data.npz in `folder`: a net whose every layer fires on the data."""
    torch.manual_seed(1)
    model = Spikformer(config)
    generator = torch.Generator().manual_seed(2)
    shape = (config.in_channels, *config.image_size)
    if config.input_kind == "image":
        images = torch.randn(11, *shape, generator=generator)
    else:
        images = torch.poisson(torch.full((11, config.steps, *shape), 0.5), generator=generator)
    calibrate_batchnorm(model, images, rate=0.2)
    save_checkpoint(folder / "model.pt", model)
    with torch.no_grad():
        labels = model.eval()(images).argmax(-1)
    np.savez(folder / "data.npz", images=images.numpy(), labels=labels.numpy())
    return model


def exported(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON of an export that has to succeed."""
    code = run(["export", *arguments, "--json=-"])
    streams = capsys.readouterr()
    assert code == 0, streams.err
    document: dict[str, Any] = json.loads(streams.out)
    return document


@pytest.mark.parametrize("target", ["onnx", "nir"])
@pytest.mark.parametrize("config", [CONFIG, EVENTS], ids=["image", "event_frames"])
def test_a_pruned_spikformer_computes_the_same_spikes(
    target: str, config: SpikformerConfig, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(folder, config)
    assert run(["compress", "model.pt", "--method", "dsp", "--sparsity", "0.5", "-o", "pruned.pt", "-q"]) == 0
    document = exported(capsys, "pruned.pt", "--target", target, "--data", "data.npz")
    assert document["verify"], "nothing verified the artefact"
    for report in document["verify"]:
        assert report["samples"] == 11
        assert report["reference"].startswith("torch")
        assert report["spikes_compared"] > 10_000
        (output,) = report["outputs"]
        assert output["argmax_agree"] == 11
        assert output["reference_correct"] == output["candidate_correct"]
        fired = [layer for layer in report["layers"] if layer["firing_rate"] > 0]
        assert len(fired) == len(report["layers"])
    assert any("constant-channels" in note and "removed" in note for note in document["notes"])


def test_labels_give_the_accuracy_of_both(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(folder, CONFIG)
    document = exported(capsys, "model.pt", "--target", "onnx", "--data", "data.npz")
    (output,) = document["verify"][0]["outputs"]
    assert output["reference_correct"] == output["candidate_correct"] == 11


def test_l1p_and_unpruned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(folder, CONFIG)
    assert run(["compress", "model.pt", "--method", "l1p", "--sparsity", "0.6", "-o", "pruned.pt"]) == 0
    assert "parameters" in capsys.readouterr().out
    for name in ("model.pt", "pruned.pt"):
        document = exported(capsys, name, "--target", "onnx", "-o", "out.onnx", "-n", "5")
        assert document["verify"][0]["ok"]


def test_a_graph_file_exports_without_torch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(folder, CONFIG)
    document = exported(capsys, "model.pt", "--target", "graph")
    assert document["path"] == "model.stg"
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from stdeploy.cli.app import run\n"
        "sys.exit(run(['export', 'model.stg', '--target', 'onnx', '--data', 'data.npz']))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "11 inputs" in done.stdout and "ok" in done.stdout
    # the file made from the graph still proves itself against the PyTorch model
    assert run(["verify", "model.pt", "model.onnx", "--data", "data.npz"]) == 0
    assert "torch" not in done.stdout


FACTORY = """
from stdeploy.models import Spikformer, SpikformerConfig

def build():
    return Spikformer(SpikformerConfig.from_dict({config!r}))
"""


def test_foreign_weights_with_their_own_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = checkpoint(folder, CONFIG)
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}}, folder / "w.pth")
    (folder / "their_code.py").write_text(FACTORY.format(config=CONFIG.to_dict()))
    their = ["w.pth", "--model", "their_code:build"]
    assert run(["export", *their, "--target", "onnx"]) == 2
    assert "--input 3x32x32" in capsys.readouterr().err
    document = exported(capsys, *their, "--target", "onnx", "--input", "2x12x12", "--data", "data.npz")
    assert document["verify"][0]["outputs"][0]["argmax_agree"] == 11
    assert run(["export", *their, "--target", "onnx", "--input", "2x12x12", "--steps", "4"]) == 2
    assert "4" in capsys.readouterr().err


def test_inspect_names_kept_dimensions_and_neuron_ranges(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(folder, CONFIG)
    assert run(["compress", "model.pt", "--method", "dsp", "--sparsity", "0.5", "-o", "pruned.pt", "-q"]) == 0
    assert run(["inspect", "pruned.pt", "--json", "i.json"]) == 0
    text = capsys.readouterr().out
    assert "method=dsp sparsity=0.5" in text and "Spikformer" in text
    document = json.loads((folder / "i.json").read_text())
    (q,) = [layer for layer in document["layers"] if layer["name"] == "block.0.attn.q_linear"]
    assert (q["rows"], q["rows_kept"]) == (12, 6)
    assert all(n["tau"] == pytest.approx([1.7, 1.7]) for n in document["neurons"])
    assert document["targets"]["onnx"]["supported"] and document["targets"]["nir"]["supported"]
