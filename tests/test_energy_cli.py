"""`stdeploy energy` as a user meets it: streams, files, shards, artefacts, refusals."""

from __future__ import annotations

import csv
import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from stdeploy import workflow
from stdeploy.cli.app import run
from stdeploy.energy.counting import count
from stdeploy.graph.file import save_graph
from stdeploy.graph.interpreter import interpret
from tests.commands import saved
from tests.graphs import spikformer_graph

GRAPH = spikformer_graph(steps=2, image=(2, 8, 8), masked=0.5, seed=3)
SMALLER = spikformer_graph(steps=2, image=(2, 8, 8), masked=0.8, seed=3)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with two graph files and data for them."""
    monkeypatch.chdir(tmp_path)
    saved(GRAPH, 7)
    save_graph(SMALLER, tmp_path / "smaller.stg")
    return tmp_path


def energy(*arguments: str) -> int:
    return run(["energy", *arguments])


def document(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_the_answer_goes_to_stdout_and_to_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert energy("net.stg", "--data", "data.npz", "--json", "out.json") == 0
    streams = capsys.readouterr()
    for text in (
        "Energy per sample",
        "45 nm, fp32",
        "Intel Loihi",
        "H100",
        "Counts per sample",
        "synops.binary",
    ):
        assert text in streams.out
    found = document(folder / "out.json")
    assert found["schema_version"] == 1 and found["samples"] == 7 and found["steps"] == 2
    names = [e["profile"]["name"] for e in found["energies"]]
    assert names == ["45nm-fp32", "45nm-int8", "loihi1"]
    first = found["energies"][0]
    assert 0 < first["synaptic"]["mean_j"] < first["total"]["mean_j"] < first["dense"]["total_j"] * 10
    low, high = first["total"]["ci95_j"]
    assert low < first["total"]["mean_j"] < high
    assert sum(first["parts_j"].values()) == pytest.approx(first["total"]["mean_j"])
    assert all(len(rows) in (1, 2) for layer in found["layers"] for rows in layer["per_step"].values())


def test_json_on_stdout_is_alone_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert energy("net.stg", "--data", "data.npz", "-n", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 2


def test_every_format_is_written_and_agrees(folder: Path) -> None:
    files = ("t.csv", "t.md", "t.tex", "t.html", "t.json")
    flags = ("--csv", "--markdown", "--latex", "--html", "--json")
    pairs = [part for pair in zip(flags, files, strict=True) for part in pair]
    assert energy("smaller.stg", "--data", "data.npz", "--baseline", "net.stg", *pairs, "-q") == 0
    total = document(folder / "t.json")["energies"][0]["total"]["mean_j"]
    with (folder / "t.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    *layers, whole = rows
    assert whole["layer"] == "total" and float(whole["45nm-fp32 total J"]) == pytest.approx(total)
    assert sum(float(row["45nm-fp32 total J"]) for row in layers) == pytest.approx(total)
    markdown = (folder / "t.md").read_text()
    tables = [block for block in markdown.split("\n\n") if block.startswith("| ")]
    assert len(tables) >= 6 and "Ratio to the baseline" in markdown
    for block in tables:
        assert len({line.count("|") - line.count("\\|") for line in block.splitlines()}) == 1
    latex = (folder / "t.tex").read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == len(tables)
    body = [line for line in latex.splitlines() if not line.startswith("%")]
    assert not any("%" in line.replace(r"\%", "") or "_" in line.replace(r"\_", "") for line in body)


class _Page(HTMLParser):
    """Checks that elements nest, and collects what a browser would fetch."""

    VOID = frozenset({"meta", "br", "img", "input", "link", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.seen: set[str] = set()
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "action", "data", "poster") and not str(
                value
            ).startswith("#"):
                self.fetched.append(f"{tag} {name}={value}")
            if name == "id":
                self.ids.append(str(value))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag


@pytest.mark.parametrize("baseline", [False, True])
def test_the_page_is_whole_and_fetches_nothing(folder: Path, baseline: bool) -> None:
    extra = ("--baseline", "net.stg") if baseline else ()
    assert energy("smaller.stg", "--data", "data.npz", "--html", "r.html", "-q", *extra) == 0
    text = (folder / "r.html").read_text()
    page = _Page()
    page.feed(text)
    page.close()
    assert page.open == [] and page.fetched == []
    assert {"svg", "table", "figure", "style"} <= page.seen and "script" not in page.seen
    assert "url(http" not in text and "@import" not in text
    assert text.count("<svg") == (3 if baseline else 2)
    assert ("baseline, total" in text) == baseline
    start = text.index("<svg")
    picture = ElementTree.fromstring(text[start : text.index("</svg>") + 6])
    assert len(picture.findall(".//{http://www.w3.org/2000/svg}path")) > 20
    assert "currentColor" in text and "#010203" not in text


def test_the_page_is_the_same_every_time(folder: Path) -> None:
    for name in ("a.html", "b.html"):
        assert energy("net.stg", "--data", "data.npz", "--html", name, "-q") == 0
    assert (folder / "a.html").read_bytes() == (folder / "b.html").read_bytes()


def test_shards_merge_to_the_one_run(folder: Path) -> None:
    common = ("net.stg", "--data", "data.npz", "-q")
    assert energy(*common, "--counts", "whole.json", "--json", "one.json") == 0
    for i in (1, 2, 3):
        assert energy(*common, "--shard", f"{i}/3", "--counts", f"part{i}.json", "--batch", "2") == 0
    assert sum(document(folder / f"part{i}.json")["samples"] for i in (1, 2, 3)) == 7
    merge = [part for i in (3, 1, 2) for part in ("--merge", f"part{i}.json")]
    assert energy(*merge, "--counts", "merged.json", "--json", "two.json", "-q") == 0
    assert document(folder / "merged.json") == document(folder / "whole.json")
    assert document(folder / "two.json") == document(folder / "one.json")


def test_a_baseline_may_be_counts(folder: Path) -> None:
    common = ("--data", "data.npz", "-q")
    assert energy("net.stg", *common, "--counts", "net.json") == 0
    for name in ("net.stg", "net.json"):
        assert energy("smaller.stg", *common, "--baseline", name, "--json", f"by_{name[4:]}.json") == 0
    assert document(folder / "by_stg.json") == document(folder / "by_json.json")
    assert document(folder / "by_stg.json")["baseline"]["samples"] == 7


def test_a_baseline_counted_over_other_data_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--data", "data.npz")
    assert energy("net.stg", *common, "-n", "3", "--counts", "three.json") == 0
    assert energy("net.stg", *common, "--counts", "seven.json") == 0
    for name, said in (("three.json", True), ("seven.json", False)):
        capsys.readouterr()
        assert energy("smaller.stg", *common, "--baseline", name) == 0
        assert ("counted over other data: 3 samples" in capsys.readouterr().out) == said


def test_event_frames_with_time_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is the second axis then; T = 1 has one column of rates; counts cost no multiplication."""
    monkeypatch.chdir(tmp_path)
    graph = spikformer_graph(steps=1, image=(2, 8, 8), layout="TB", seed=4)
    saved(graph, 5)
    common = ("net.stg", "--data", "data.npz", "-q")
    assert energy(*common, "--input-class", "count", "--html", "r.html", "--json", "count.json") == 0
    assert energy(*common, "--json", "real.json", "--counts", "whole.json") == 0
    for i in (1, 2):
        assert energy(*common, "--shard", f"{i}/2", "--counts", f"{i}.json", "--batch", "1") == 0
    assert energy("--merge", "1.json", "--merge", "2.json", "--counts", "both.json", "-q") == 0
    assert document(tmp_path / "both.json") == document(tmp_path / "whole.json")
    counted, real = (
        document(tmp_path / name)["energies"][0]["synaptic"]["mean_j"] for name in ("count.json", "real.json")
    )
    assert counted < real


def test_other_tools_numbers_and_what_lies_between(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (
        "net.stg",
        "--data",
        "data.npz",
        "--as",
        "neurobench",
        "--as",
        "spikformer",
        "--json",
        "o.json",
    )
    assert energy(*arguments) == 0
    out = capsys.readouterr().out
    assert "Effective_ACs" in out and "SOPs" in out and "SynOp_" not in out
    found = document(folder / "o.json")
    first = found["energies"][0]
    views = found["views"]["spikformer"]
    assert first["literature_j"] == pytest.approx((views["SOPs"] * 0.9 + views["MACs"] * 4.6) * 1e-12)
    assert found["reconciliation"] and all(row["remainder"] == 0 for row in found["reconciliation"])
    for row in found["reconciliation"]:
        terms = sum(value for name, value in row.items() if name not in ("layer", "literature", "exact"))
        assert row["literature"] == pytest.approx(row["exact"] + terms)


def test_a_shard_is_merged_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert energy("net.stg", "--data", "data.npz", "-q", "--shard", "1/2", "--counts", "a.json") == 0
    (folder / "copy.json").write_text((folder / "a.json").read_text())
    assert energy("--merge", "a.json", "--merge", "copy.json") == 2
    assert "copy.json is merged twice" in capsys.readouterr().err
    assert energy("smaller.stg", "--data", "data.npz", "-q", "--shard", "2/2", "--counts", "b.json") == 0
    assert energy("--merge", "a.json", "--merge", "b.json") == 2
    assert "counts of different networks" in capsys.readouterr().err


def test_an_onnx_artefact_counts_as_its_model(folder: Path) -> None:
    assert run(["export", "net.stg", "--target", "onnx", "-o", "net.onnx", "--no-verify", "-q"]) == 0
    assert energy("net.stg", "--data", "data.npz", "--json", "model.json", "-q") == 0
    assert energy("net.stg", "--artefact", "net.onnx", "--data", "data.npz", "--json", "file.json", "-q") == 0
    model, file = document(folder / "model.json"), document(folder / "file.json")
    assert "onnxruntime" in file["graph"]["counted"]
    assert file["counts"] == model["counts"]
    assert file["energies"] == model["energies"]


def test_a_nir_artefact_counts_the_network_it_was_made_from(folder: Path) -> None:
    assert run(["export", "net.stg", "--target", "nir", "-o", "net.nir", "--no-verify", "-q"]) == 0
    arguments = ("--artefact", "net.nir", "--reader", "stdeploy", "--data", "data.npz", "-n", "3")
    assert energy("net.stg", *arguments, "--json", "file.json", "-q") == 0
    lowered = workflow.lower(GRAPH, "nir").graph
    images = np.load("data.npz")["images"][:3]
    expected = count(lowered, images, interpret(lowered, images).spikes)
    found = document(folder / "file.json")["counts"]
    assert {name: m["mean"] for name, m in found.items()} == {
        name: m.mean for name, m in expected.network.each.items()
    }
    assert found["attention.coincidence"]["mean"] > 0


def test_a_nir_file_alone_is_counted_with_its_auxiliary_units(folder: Path) -> None:
    assert run(["export", "net.stg", "--target", "nir", "-o", "net.nir", "--no-verify", "-q"]) == 0
    assert energy("net.nir", "--data", "data.npz", "-n", "2", "--json", "raw.json", "-q") == 0
    assert energy("net.stg", "--data", "data.npz", "-n", "2", "--json", "model.json", "-q") == 0
    raw, model = (document(folder / name)["counts"] for name in ("raw.json", "model.json"))
    assert raw["neuron.spikes"]["mean"] > model["neuron.spikes"]["mean"] > 0
    assert raw["attention.coincidence"]["mean"] == 0  # attention is spiking units there


def test_the_source_graph_can_be_counted_too(folder: Path) -> None:
    for which in ("source", "deployed"):
        assert energy("net.stg", "--data", "data.npz", "--graph", which, "--json", f"{which}.json", "-q") == 0
    source, deployed = document(folder / "source.json"), document(folder / "deployed.json")
    assert source["dense_macs"] > deployed["dense_macs"]  # masked dimensions are not there any more


def test_choices_move_the_energies_as_they_should(folder: Path) -> None:
    def total(*arguments: str) -> float:
        assert energy("net.stg", "--data", "data.npz", "--json", "out.json", "-q", *arguments) == 0
        return float(document(folder / "out.json")["energies"][0]["total"]["mean_j"])

    usual = total()
    assert total("--graded", "unary") > usual
    assert total("--first-layer", "every-step") > usual
    assert total("--memory", "dram") > usual
    assert total("--profile", "45nm-int8") < usual


def test_a_users_price_and_profile(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("net.stg", "--data", "data.npz", "-n", "1")
    assert energy(*arguments, "--profile", "loihi2") == 2
    assert "no energy per synaptic operation is published" in capsys.readouterr().err
    assert energy(*arguments, "--profile", "loihi2", "--synop-pj", "1.0") == 0
    assert "Intel Loihi 2, user-supplied" in capsys.readouterr().out
    (folder / "mine.toml").write_text('title = "x"\nkind = "chip"\n')
    assert energy(*arguments, "--profile", "mine.toml") == 2
    assert "mine.toml: node is missing" in capsys.readouterr().err


def test_profiles_and_self_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert energy("--profiles", "--json", "p.json") == 0
    assert "Loihi" in capsys.readouterr().out
    assert set(document(folder / "p.json")["refused"]) == {"loihi2", "speck", "xylo", "akida"}
    assert energy("--self-check", "--json", "s.json") == 0
    out = capsys.readouterr().out
    assert "7.463502602" in out and "0.399 mJ too high" in out
    assert document(folder / "s.json")["ok"] is True


def test_without_matplotlib_the_page_is_refused_before_anything_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert energy("net.stg", "--data", "data.npz", "--html", "r.html") == 2
    streams = capsys.readouterr()
    assert "matplotlib is not installed" in streams.err and "stdeploy[plots]" in streams.err
    assert streams.out == "" and not (folder / "r.html").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "name a MODEL"),
        (["net.stg"], "--data is needed"),
        (["gone.stg", "--data", "data.npz"], "gone.stg does not exist"),
        (["net.onnx", "--data", "data.npz"], "--artefact net.onnx"),
        (["net.stg", "--data", "gone.npz"], "gone.npz does not exist"),
        (["net.stg", "--data", "data.npz", "--artefact", "gone.onnx"], "gone.onnx does not exist"),
        (["net.stg", "--data", "data.npz", "--reader", "norse"], "--reader runs an --artefact"),
        (["net.stg", "--data", "data.npz", "--profile", "loihi3"], "no profile 'loihi3'"),
        (["net.stg", "--data", "data.npz", "--profile", "h100-fp16"], "only bounds"),
        (["net.stg", "--data", "data.npz", "--html", "no/such/r.html"], "its folder does not exist"),
        (["net.stg", "--data", "data.npz", "--baseline", "gone.json"], "gone.json"),
        (["net.stg", "--data", "data.npz", "--as", "fvcore"], "no view 'fvcore'"),
        (["net.stg", "--data", "data.npz", "--synop-pj", "2"], "price of one chip"),
        (["net.stg", "--data", "data.npz", "--shard", "3/2"], "is not a shard"),
        (["net.stg", "--data", "data.npz", "--shard", "8/8"], "7 samples do not make 8 shards"),
        (["net.stg", "--data", "data.npz", "--csv", "net.stg"], "does not end in .csv"),
        (["net.stg", "--data", "data.npz", "--html", "net.stg"], "does not end in .html"),
        (["net.stg", "--data", "data.npz", "--counts", "net.stg"], "does not end in .json"),
        (["net.stg", "--data", "data.npz", "--input-class", "binary"], "the input holds other values"),
        (
            ["net.stg", "--data", "data.npz", "--graph", "source", "--artefact", "net.stg"],
            "leave out --artefact",
        ),
        (["net.stg", "--merge", "c.json"], "leave out MODEL"),
        (["--merge", "c.json", "--artefact", "net.stg"], "leave out MODEL"),
        (["--merge", "c.json"], "c.json"),
        (["net.stg", "--profiles"], "leave out MODEL"),
        (["--merge", "data.npz"], "data.npz"),
    ],
)
def test_refusals(folder: Path, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.iterdir())
    assert energy(*arguments) == 2
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error
    assert sorted(folder.iterdir()) == before
