"""NIR files of whole spiking transformers, their sizes, and the readers' edges; spikes are in tests/conformance."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
import torch

from stdeploy.compress import prune
from stdeploy.compress.masks import apply_masks
from stdeploy.errors import UserError
from stdeploy.exporters.nir import check, export
from stdeploy.graph import Graph
from stdeploy.graph.interpreter import Interpreter
from stdeploy.models import Spikformer, spikformer_cifar10
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.runtime import nir_readers
from stdeploy.runtime.nir_readers import READERS, REFUSED, NirReader
from stdeploy.trace import trace
from stdeploy.verify import compare
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph


def lowered(**how: Any) -> tuple[Graph, Graph]:
    """A calibrated net and what the NIR pipeline makes of it."""
    graph = spikformer_graph(**how)
    every_layer_fires(graph, random_inputs(graph, 8, seed=1))
    return graph, run_pipeline(graph, PIPELINES["nir"]).graph


def test_model_without_any_pass_is_the_same_network(tmp_path: Path) -> None:
    """BatchNorms as 1x1 convolutions: more nodes, the same spikes."""
    graph = spikformer_graph(steps=2)
    export(graph, tmp_path / "net.nir")
    x = random_inputs(graph, 3)
    for reader in ("snntorch", "stdeploy"):
        report = compare(Interpreter(graph, np.float32), NirReader(tmp_path / "net.nir", reader), graph, x)
        assert report.ok, report.problems


def test_mixed_neurons_are_refused_one_by_one() -> None:
    graph = run_pipeline(spikformer_graph(neurons="mixed"), PIPELINES["nir"]).graph
    items = check(graph)
    reasons = {item.where: item.reason for item in items}
    soft = {n.name for n in graph.neurons if n.op.v_reset is None}
    assert set(reasons) == soft and len(soft) < len(graph.neurons)


def test_the_papers_cifar10_net_follows_the_formulas(tmp_path: Path) -> None:
    """Spikformer-4-48-153 as DSP leaves it: the counts of its file, read back, against docs/nir.md written out here."""
    torch.manual_seed(0)
    model = Spikformer(spikformer_cifar10()).eval()
    masks, record = prune(model, "dsp", 0.9, rounding="down")
    apply_masks(model, masks)
    assert {(len(la["attention"]), len(la["mlp"])) for la in record.layers.values()} == {(48, 153)}
    graph = run_pipeline(trace(model, (3, 32, 32)).graph, PIPELINES["nir"]).graph
    artifact = export(graph, tmp_path / "net.nir")
    pairs, digits, blocks, tokens = 12 * 4 * 4, 7, 4, 64
    assert artifact.metadata["attention_neurons"] == blocks * pairs * tokens * (1 + digits)
    pooled = 192 * 16 * 16 + 384 * 8 * 8
    assert artifact.metadata["pooling_neurons"] == pooled
    stem = 3 * 48 + 48 * 96 + 96 * 192 + 192 * 384 + 384 * 384
    layers = 384 * 48 * 4 + 384 * 153 * 2
    product = pairs * (2 * 48 + (1 + digits) * 48) + (digits - 1) * pairs**2
    weights = 9 * stem + blocks * (layers + product) + 384 * 10
    assert artifact.metadata["stored_weights"] == weights
    assert product < 313_345 and product * 60 < 19_000_000  # the one-hot lowering's 19.0 M
    read = nir.read(tmp_path / "net.nir").nodes.values()
    assert sum(int(n.weight.size) for n in read if isinstance(n, nir.Conv2d)) == weights
    assert artifact.size_bytes < 50_000_000 and len(read) == artifact.metadata["nodes"] == 174


def test_batches_are_cut_to_fit_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, graph = lowered(steps=3)
    export(graph, tmp_path / "net.nir")
    x = random_inputs(graph, 7)
    for reader in READERS:
        executor = NirReader(tmp_path / "net.nir", reader)
        whole = executor.run(x)
        forced = {name: 1 - spikes for name, spikes in whole.spikes.items()}
        taught = executor.run(x, forced)
        monkeypatch.setattr(nir_readers, "MEMORY_BYTES", 200_000)
        assert executor._chunk() < 7
        for first, second in ((whole, executor.run(x)), (taught, executor.run(x, forced))):
            for name, spikes in first.spikes.items():
                np.testing.assert_array_equal(spikes, second.spikes[name])
            np.testing.assert_allclose(first.outputs["output"], second.outputs["output"], 1e-6, 1e-6)
        monkeypatch.undo()


@pytest.fixture
def written(tmp_path: Path) -> Path:
    _, graph = lowered(steps=2)
    export(graph, tmp_path / "net.nir")
    return tmp_path / "net.nir"


def test_refused_and_unknown_readers_say_why(written: Path) -> None:
    for reader, reason in REFUSED.items():
        with pytest.raises(UserError, match=reader) as error:
            NirReader(written, reader)
        assert reason in str(error.value)
    with pytest.raises(UserError, match="unknown NIR reader"):
        NirReader(written, "brian2")


def test_missing_package_names_the_install(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(nir_readers.importlib, "import_module", missing)
    with pytest.raises(UserError, match="norse is not installed") as error:
        NirReader(written, "norse")
    assert error.value.hint == 'pip install "stdeploy[readers]"'


def test_own_runner_needs_no_other_package(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nirtorch", None)
    assert NirReader(written, "stdeploy").name == "stdeploy NIR runner"


def test_damaged_and_foreign_files_are_user_errors(written: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.nir"
    cut.write_bytes(written.read_bytes()[:5000])
    foreign = tmp_path / "foreign.nir"
    nir.write(foreign, nir.NIRGraph.from_list(nir.Linear(np.ones((2, 3)))))
    damaged = tmp_path / "damaged.nir"
    damaged.write_bytes(written.read_bytes())
    with h5py.File(damaged, "r+") as file:
        del file["node/metadata/stdeploy"]
        file["node/metadata/stdeploy"] = "{"
    for path in (cut, foreign, damaged, tmp_path / "missing.nir"):
        with pytest.raises(UserError, match=path.name):
            NirReader(path, "stdeploy")


def test_wrong_inputs_and_forced_spikes_are_user_errors(written: Path) -> None:
    executor = NirReader(written, "stdeploy")
    with pytest.raises(UserError, match="takes Bx2x12x12"):
        executor.run(np.zeros((3, 2, 12, 13), np.float32))
    x = np.zeros((3, 2, 12, 12), np.float32)
    with pytest.raises(UserError, match="does not have: nobody"):
        executor.run(x, {"nobody": x})
    name = next(iter(executor.file.shapes))
    with pytest.raises(UserError, match="forced spikes of"):
        executor.run(x, {name: x})


def test_a_reader_meets_every_node_after_its_inputs(written: Path) -> None:
    """nirtorch queues a node again while an input is missing; sorted by name, large nets load ten times slower."""
    graph = nir.read(written)
    place = {name: i for i, name in enumerate(graph.nodes)}
    assert list(place) != sorted(place)
    assert all(place[a] < place[b] for a, b in graph.edges)


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    _, graph = lowered(steps=2)
    for name in ("a", "b"):
        export(graph, tmp_path / f"{name}.nir")
    assert (tmp_path / "a.nir").read_bytes() == (tmp_path / "b.nir").read_bytes()


def test_docs_show_what_the_benchmark_measured() -> None:
    root = Path(__file__).parent.parent
    spec = importlib.util.spec_from_file_location("scale", root / "benchmarks" / "nir_paper_scale.py")
    assert spec is not None and spec.loader is not None
    scale = importlib.util.module_from_spec(spec)
    sys.modules["scale"] = scale  # dataclasses look their module up
    spec.loader.exec_module(scale)
    document = json.loads(scale.RESULT.read_text())
    text = (root / "docs" / "nir.md").read_text(encoding="utf-8")
    shown = text.split("<!-- nir_paper_scale -->")[1].split("<!-- /nir_paper_scale -->")[0]
    assert shown.strip() == scale.table(document)
    for net in document["nets"].values():
        made = net["portable"]
        assert made["seconds"] < 60 and made["peak_mib"] < 4096 and made["bytes"] < 50_000_000
        assert made["attention_neurons"] == made["formula"]["attention_neurons"]
        assert made["formula"]["attention_weights"] * 10 < made["formula"]["one_hot_weights"]
        for reader in net["verified"]["readers"].values():
            assert reader["ok"] and reader["unexplained"] == 0
        assert net["verified"]["rates"][0] > 0
