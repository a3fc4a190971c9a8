"""`stdeploy inspect x.nir`: counts against brute force, refusals, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest

from stdeploy.cli.app import run
from stdeploy.exporters.nir import export
from stdeploy.graph.file import save_graph
from stdeploy.importers.nir import survey
from stdeploy.nir_summary import Depth, summarise_nir
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from tests.graphs import spikformer_graph
from tests.nir_graphs import conv2d, damaged, lif, network, plain


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("nir") / "net.nir"
    artifact = export(run_pipeline(spikformer_graph(steps=3, masked=0.5), PIPELINES["nir"]).graph, path)
    return path, dict(artifact.metadata)


def test_counts_are_those_of_the_plan_and_of_the_file(written: tuple[Path, dict[str, Any]]) -> None:
    path, plan = written
    found = summarise_nir(survey(path))
    assert sum(found.types.values()) == plan["nodes"] and found.edges == plan["edges"]
    for role in ("model", "pooling", "attention"):
        assert found.neurons[role] == plan[f"{role}_neurons"] > 0
    assert (found.weights, found.nonzero_weights) == (plan["stored_weights"], plan["nonzero_weights"])
    with h5py.File(path) as file:
        datasets: list[int] = []
        file["node/nodes"].visititems(
            lambda _, d: datasets.append(d.id.get_storage_size()) if isinstance(d, h5py.Dataset) else None
        )
    assert sum(node.size_bytes for node in found.nodes) == sum(datasets)
    assert found.structure_bytes == path.stat().st_size - sum(datasets) > 0
    assert found.refused == ()


def test_depth_of_the_attention_is_its_digits(written: tuple[Path, dict[str, Any]]) -> None:
    """A 3x3 map has 9 tokens: AND, then 4 digits; two pools in the stem; 9 layers on the longest path."""
    found = summarise_nir(survey(written[0]))
    assert found.depth == Depth(units_between_layers=5, units=7, layers=8)


def test_synapses_equal_brute_force(tmp_path: Path) -> None:
    """Every nonzero weight at every output where it reads a position inside the map."""
    conv = conv2d(4, 2, 3, 2, stride=(2, 1), padding=(1, 2), dilation=(1, 2))
    conv.weight[1] = 0
    pool = nir.SumPool2d(np.array([3, 2]), np.array([2, 2]), np.array([1, 0]))
    nir.write(tmp_path / "net.nir", network((2, 7, 6), conv, pool, lif(4, 2, 4), output=(4, 2, 4)))
    found = summarise_nir(survey(tmp_path / "net.nir"))
    inside = 0
    for _, _, i, j in np.argwhere(conv.weight):
        for y in range(4):
            for x in range(8):
                inside += 0 <= 2 * y + i - 1 < 7 and 0 <= x + 2 * j - 2 < 6
    pooled = 0
    for y, x, i, j in np.ndindex(2, 4, 3, 2):
        pooled += 0 <= 2 * y + i - 1 < 4 and 0 <= 2 * x + j < 8
    assert found.synapses == inside and found.pool_connections == 4 * pooled
    assert found.neurons == {"model": 32} and found.contract is None
    assert found.depth is None  # without dt nobody knows which neurons keep something
    timed = summarise_nir(survey(tmp_path / "net.nir", dt=0.25, steps=4))
    assert timed.depth == Depth(0, 0, 1)


def test_the_command_shows_it_all(
    written: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, plan = written
    assert run(["inspect", str(path), "--json", str(tmp_path / "i.json")]) == 0
    text = capsys.readouterr().out
    for part in (
        "dialect portable",
        "T = 3, dt = 0.0001",
        "made from",
        "over the steps: mean",
        "as a model: yes",
    ):
        assert part in text
    assert f"model {plan['model_neurons']:,}" in text
    document = json.loads((tmp_path / "i.json").read_text())
    assert document["contract"]["steps"] == 3 and document["synapses"] > 0
    assert document["depth"]["units_between_layers"] == 5
    assert text.count("\n") < len(document["nodes"])
    assert run(["inspect", str(path), "--all"]) == 0
    everything = capsys.readouterr().out
    assert all(node["name"] in everything for node in document["nodes"])


def test_what_cannot_be_a_model_is_shown_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plain(tmp_path, n1=nir.CubaLIF(*[np.ones(4, np.float32)] * 5))
    assert run(["inspect", "net.nir", "--svg", "net.svg"]) == 0
    text = capsys.readouterr().out
    assert "CubaLIF 1" in text and "4: model 4" in text
    assert "as a model: no, 1 parts" in text and "n1: CubaLIF: its synaptic current" in text
    assert "CubaLIF 4" in (tmp_path / "net.svg").read_text()
    net = network((3,), lif(3), output=(3,))
    net.edges.append(("n0", "n0"))
    nir.write("loop.nir", net)
    assert run(["inspect", "loop.nir"]) == 0
    assert "n0: cycle: recurrence" in capsys.readouterr().out
    assert run(["inspect", "loop.nir", "--svg", "loop.svg"]) == 3
    assert "loop.nir cannot be drawn" in capsys.readouterr().err
    assert not Path("loop.svg").exists()


@pytest.mark.parametrize("how", ["cut short", "text", "newer", "ragged", "wrong edge", "huge", "endless"])
def test_damaged_files_give_one_clear_error(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = plain(tmp_path)
    damaged(path, how)
    assert run(["inspect", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ") and path.name in lines[0] and len(lines) <= 2


def test_a_picture_never_overwrites_anything_else(
    written: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(written[0])
    assert run(["inspect", path, "--svg", path]) == 2
    assert "does not end in .svg" in capsys.readouterr().err
    assert run(["inspect", path, "--svg", str(tmp_path / "no" / "x.svg")]) == 2
    assert "cannot write" in capsys.readouterr().err
    graph = tmp_path / "net.stg"
    save_graph(spikformer_graph(steps=1), graph)
    assert run(["export", str(graph), "--target", "onnx", "--no-verify", "-o", str(tmp_path / "n.onnx")]) == 0
    assert run(["inspect", str(tmp_path / "n.onnx"), "--svg", str(tmp_path / "n.svg")]) == 2
    assert "does not take an ONNX file" in capsys.readouterr().err
    assert run(["inspect", str(graph), "--svg", str(tmp_path / "n.svg")]) == 0
    assert (tmp_path / "n.svg").read_text().startswith("<svg")
