"""Lava folders as files: written whole, complete, small, and refused where they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stdeploy.cli.app import run
from stdeploy.errors import UserError
from stdeploy.exporters import lava
from stdeploy.graph import GraphBuilder, Weight, ops
from stdeploy.graph.file import save_graph
from stdeploy.runtime.lava_folder import LavaFolder
from stdeploy.runtime.lava_reference import LavaReference
from tests.graphs import random_inputs, spikformer_graph
from tests.test_export_lava import exported, passed


def test_a_folder_is_replaced_whole_and_nothing_else_is(tmp_path: Path) -> None:
    graph, folder = passed(), tmp_path / "net"
    lava.export(graph, folder)
    (folder / "stray").write_text("left by a former export")
    lava.export(graph, folder)
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert names == [
        "network.json",
        "run.py",
        "stdeploy_lava/attention.py",
        "stdeploy_lava/compat.py",
        "stdeploy_lava/recorder.py",
        "weights.npz",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match="a folder of something else"):
        lava.export(graph, other)
    assert (other / "thesis.tex").read_text() == "mine"
    with pytest.raises(UserError, match="cannot write"):
        lava.export(graph, tmp_path / "nowhere" / "net")


def test_export_replaces_its_own_folder_and_refuses_others_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_graph(spikformer_graph(steps=2, image=(2, 8, 8)), "net.stg")
    command = ["export", "net.stg", "--target", "lava", "--no-verify"]
    for _ in range(2):
        assert run(command) == 0
    assert (tmp_path / "net_lava" / "network.json").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "file").write_text("mine")
    capsys.readouterr()
    for name, text in (
        ("other", "a folder of something else"),
        ("file", "is a file"),
        ("no/net", "not exist"),
    ):
        assert run([*command, "-o", name]) == 2
        out, err = capsys.readouterr()
        assert out == "" and text in err
    assert (tmp_path / "file").read_text() == "mine" and not list((tmp_path / "other").iterdir())


def test_network_json_says_what_is_needed_to_run_it(tmp_path: Path) -> None:
    graph = passed(steps=5, layout="BT").with_metadata(source_sha256="abc")
    exported(graph, tmp_path / "net")
    document = json.loads((tmp_path / "net" / "network.json").read_text())
    assert (
        document["steps"] == 5
        and document["source_sha256"] == "abc"
        and document["precision"] == "floating_pt"
    )
    assert document["input"] == {"layout": "BT", "shape": [2, 12, 12]}
    assert set(document["neurons"]) == {n.name for n in graph.neurons}
    assert document["counts"]["latency_steps"] == document["processes"][-1]["valid"] - 1


def test_equal_weights_are_stored_once(tmp_path: Path) -> None:
    builder = GraphBuilder(2)
    x = builder.add(ops.Input((3, 2), ("channel", "token"), "TB"), name="input")
    weight = Weight.dense(np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32))
    for i in range(3):
        x = builder.add(ops.Linear(weight), (x,), name=f"fc{i}")
        x = builder.add(ops.Neuron(np.asarray(2.0), np.asarray(0.1), np.asarray(0.0)), (x,), name=f"lif{i}")
    builder.add(ops.Output("output", "TB"), (x,), name="out")
    reference = exported(builder.build(), tmp_path / "net")
    assert sum(name.endswith(".data") for name in reference.file.arrays) == 1


DAMAGE: dict[str, tuple[str, Any]] = {
    "no weights": ("has no weights.npz", lambda f: (f / "weights.npz").unlink()),
    "cut weights": (
        "cannot be read",
        lambda f: (f / "weights.npz").write_bytes((f / "weights.npz").read_bytes()[:-900]),
    ),
    "cut json": ("is damaged", lambda f: (f / "network.json").write_text('{"format": 1, "steps": 4')),
    "json of something else": ("is damaged", lambda f: (f / "network.json").write_text("[]")),
    "a later format": (
        "has format 2",
        lambda f: (f / "network.json").write_text(
            (f / "network.json").read_text().replace('"format": 1', '"format": 2', 1)
        ),
    ),
    "weights of another": ("lacks", lambda f: np.savez(f / "weights.npz", a=np.zeros(1))),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_one_clear_error(damage: str, tmp_path: Path) -> None:
    text, harm = DAMAGE[damage]
    exported(passed(), tmp_path / "net")
    harm(tmp_path / "net")
    with pytest.raises(UserError, match=text):
        LavaFolder(tmp_path / "net")


@pytest.mark.parametrize("place", ["input", "output", "source", "synapses", "delay", "population", "part"])
def test_every_key_that_is_read_is_needed(place: str, tmp_path: Path) -> None:
    """A missing key is an error of the folder, never a KeyError."""
    graph = passed(depth=2)
    exported(graph, tmp_path / "net", fixed=True)
    path = tmp_path / "net" / "network.json"
    text = path.read_text()
    told = {"label", "valid", "role", "synapses", "steps"}  # read by run.py, or for people

    def part(document: Any) -> Any:
        if place in ("input", "output"):
            return document[place]
        if place == "part":
            return next(iter(document["neurons"].values()))["parts"][0]
        return next(p for p in document["processes"] if p["kind"] == place)

    for key in set(part(json.loads(text))) - told:
        document = json.loads(text)
        del part(document)[key]
        path.write_text(json.dumps(document))
        with pytest.raises(UserError, match=r"network\.json is damaged"):
            LavaReference(tmp_path / "net")


def test_arrays_that_do_not_fit_together(tmp_path: Path) -> None:
    exported(passed(), tmp_path / "net")
    path = tmp_path / "net" / "weights.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    names = [next(n for n in arrays if n.endswith(end)) for end in ("data", "indices", "indptr", "shape")]
    for name in (*names, next(n for n in arrays if n.startswith("bias"))):
        np.savez(path, **{n: a[:-1] if n == name else a for n, a in arrays.items()})
        with pytest.raises(UserError, match=r"weights\.npz is damaged"):
            LavaFolder(tmp_path / "net")
        np.savez(path, **{n: a for n, a in arrays.items() if n != name})
        with pytest.raises(UserError, match=f"lacks {name}"):
            LavaFolder(tmp_path / "net")


def test_inputs_and_forced_spikes_that_do_not_fit(tmp_path: Path) -> None:
    graph = passed()
    reference = exported(graph, tmp_path / "net")
    x = random_inputs(graph, 2)
    with pytest.raises(UserError, match="the model takes Bx2x12x12"):
        reference.run(x[:, :1])
    with pytest.raises(UserError, match="which the folder does not have"):
        reference.run(x, {"nothing": np.zeros((4, 2, 5))})
    with pytest.raises(UserError, match="have shape"):
        reference.run(x, {"patch_embed.proj0_lif": np.zeros((4, 2, 5))})
