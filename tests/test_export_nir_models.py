"""Whole spiking transformers through NIR, judged spike for spike by stdeploy.verify; and the readers' edges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest

from stdeploy.errors import UserError
from stdeploy.exporters.nir import check, export
from stdeploy.exporters.nir.attention import cost
from stdeploy.graph import Graph, GraphBuilder, Node, ops, rewrite
from stdeploy.graph.interpreter import Interpreter
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.runtime import nir_readers
from stdeploy.runtime.nir_readers import READERS, REFUSED, NirReader
from stdeploy.verify import compare
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph

NETS: dict[str, dict[str, Any]] = {
    "plain": {"neurons": "spikingjelly"},
    "one step": {"steps": 1, "order": "kv"},
    "five steps, frames": {"steps": 5, "layout": "BT", "heads": (3, 1, 2), "v_heads": (2, 4, 1)},
    "sLIF": {"per_channel": True, "layout": "TB"},
    "pruned, two blocks": {"depth": 2, "masked": 0.5, "heads": (4, 3), "v_heads": (4, 3)},
    "wide maps": {"image": (2, 12, 20), "order": "kv"},
}


def lowered(**how: Any) -> tuple[Graph, Graph]:
    """A calibrated net and what the NIR pipeline makes of it."""
    graph = few_taus(spikformer_graph(**how))
    every_layer_fires(graph, random_inputs(graph, 8, seed=1))
    return graph, run_pipeline(graph, PIPELINES["nir"]).graph


def few_taus(graph: Graph) -> Graph:
    """Per-channel tau rounded to tenths: four levels a layer, as quantised sLIF has."""

    def visit(builder: GraphBuilder, node: Node, inputs: tuple[str, ...]) -> str | None:
        if not isinstance(node.op, ops.Neuron) or node.op.tau is None or node.op.tau.ndim == 0:
            return None
        op = replace(node.op, tau=np.round(node.op.tau, 1))
        return builder.add(op, inputs, name=node.name, source=node.source)

    return rewrite(graph, visit)


@pytest.mark.parametrize("net", NETS, ids=NETS)
def test_every_reader_spikes_as_the_model(net: str, tmp_path: Path) -> None:
    graph, exported = lowered(**NETS[net])
    export(exported, tmp_path / "net.nir")
    x = random_inputs(graph, 8, seed=1)
    for reader in READERS:
        candidate = NirReader(tmp_path / "net.nir", reader)
        report = compare(Interpreter(graph, np.float32), candidate, graph, x, exported=exported)
        assert report.ok, (candidate.name, report.problems)
        assert report.spikes_compared > 1000
        # The test nets' attention thresholds were bisected onto a value of the data, so ties are systematic there.
        elsewhere = [la.mismatches for la in report.layers if not la.name.endswith("attn_lif")]
        assert sum(elsewhere) <= 2, candidate.name


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


def test_full_size_counts_follow_the_formula(tmp_path: Path) -> None:
    """The sample's size: 7x7 tokens, 6 heads of 8, of which DSP keeps 2."""
    for kept in (8, 2):
        heads = (kept,) * 6
        _, graph = lowered(image=(1, 28, 28), dim=48, heads=heads, v_heads=heads, depth=2, mlp=60)
        artifact = export(graph, tmp_path / "net.nir")
        spent = cost(heads, heads, 49)
        assert spent.digits == 6 and spent.pairs == 6 * kept**2
        assert artifact.metadata["attention_neurons"] == 2 * spent.neurons == 2 * spent.pairs * 49 * 7
        assert artifact.size_bytes < 2_000_000


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
