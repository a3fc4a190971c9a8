"""Models of published families through the command line, with their own code and weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stdeploy.cli.app import run
from stdeploy.graph.file import load_graph
from stdeploy.graph.ops import Select
from tests.families import FAMILIES
from tests.families.rows import inputs

CODE = """
from tests.families import FAMILIES

def build():
    return FAMILIES[{name!r}].factory()
"""


def family(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A folder with a family's weights, code and data; the arguments that name them."""
    monkeypatch.chdir(folder)
    net = FAMILIES[name].build()
    torch.save(net.state_dict(), folder / "w.pt")
    module = f"family_{abs(hash(name))}"
    (folder / f"{module}.py").write_text(CODE.format(name=name))
    images = inputs(FAMILIES[name])
    with torch.no_grad():
        labels = torch.cat([net(torch.as_tensor(x[None])) for x in images]).argmax(-1).numpy()
    np.savez(folder / "data.npz", images=images, labels=labels)
    return ["w.pt", "--model", f"{module}:build", "--input", "3x12x8"]


def test_a_leaking_neuron_is_refused_and_taken_with_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = family(tmp_path, "QKFormer, neuron over T*B", monkeypatch)
    assert run(["export", *net, "--target", "onnx"]) == 3
    text = capsys.readouterr().err
    assert "leaks from sample to sample" in text and "--assume-reset-per-sample" in text
    assert not (tmp_path / "w.onnx").exists()
    flag = [*net, "--assume-reset-per-sample"]
    assert run(["export", *flag, "--target", "onnx", "--data", "data.npz", "--json=-"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["verify"]
    (output,) = report["outputs"]
    assert report["ok"] and report["samples"] == output["argmax_agree"] == 3
    assert output["reference_correct"] == 3  # the labels are what the model says of each image alone
    assert run(["verify", flag[0], "w.onnx", *flag[1:], "--data", "data.npz"]) == 0
    assert run(["verify", net[0], "w.onnx", *net[1:], "--data", "data.npz"]) == 3
    capsys.readouterr()
    assert run(["export", *flag, "--target", "graph"]) == 0
    assert run(["export", "w.stg", "--target", "onnx", "--assume-reset-per-sample"]) == 2
    assert "takes no --assume-reset-per-sample" in capsys.readouterr().err


def test_pruned_tokens_are_exported_verified_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = family(tmp_path, "Spikformer, tokens pruned (STATA)", monkeypatch)
    assert run(["export", *net, "--target", "onnx", "--data", "data.npz", "-v", "--json", "out.json"]) == 0
    text = capsys.readouterr().out
    assert "keeps 14 of 24 tokens: 9 compared, 0 differ" in text
    assert "keeps 6 of 14 tokens: 9 compared, 0 differ" in text
    document = json.loads((tmp_path / "out.json").read_text())
    (report,) = document["verify"]
    assert report["ok"] and [s["name"] for s in report["selections"]] == [
        "blocks.0.select",
        "blocks.1.select",
    ]
    assert sum(s["tied"] for s in report["selections"]) > 0
    assert any("torch.topk leaves that undefined" in note for note in document["notes"])
    assert run(["export", *net, "--target", "nir"]) == 3
    refused = capsys.readouterr().err
    assert (
        "blocks.0: Select: it keeps the tokens" in refused
        and "--target onnx takes the whole model" in refused
    )
    assert run(["export", *net, "--target", "graph"]) == 0
    assert len(load_graph(tmp_path / "w.stg").of(Select)) == 2
    assert run(["export", "w.stg", "--target", "onnx", "-o", "again.onnx", "--data", "data.npz"]) == 0
    assert run(["verify", net[0], "again.onnx", *net[1:], "--data", "data.npz"]) == 0
    capsys.readouterr()
    assert run(["inspect", *net]) == 0
    shown = capsys.readouterr().out
    assert "Select" in shown and "do not depend on values" in shown
