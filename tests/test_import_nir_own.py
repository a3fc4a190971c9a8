"""stdeploy's own NIR files read back: the same spikes, layers under their names, tau branches as one neuron."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from stdeploy.chips import read_network
from stdeploy.cli.app import run
from stdeploy.errors import UnsupportedError, UserError
from stdeploy.exporters.nir import export
from stdeploy.graph import Graph, GraphBuilder, ops, validate
from stdeploy.graph.file import save_graph
from stdeploy.graph.graph import Node, rewrite
from stdeploy.graph.interpreter import interpret
from stdeploy.importers.nir import import_nir
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.runtime.nir_readers import NirReader
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph

ROOT = Path(__file__).resolve().parent.parent
EVENTS, SLIF = "event frames BT, two blocks", "sLIF, tau per channel"
NETS: dict[str, dict[str, Any]] = {
    "static image, hard reset": {"steps": 5, "masked": 0.5},
    "one step": {"steps": 1, "neurons": "spikingjelly"},
    EVENTS: {"steps": 3, "layout": "BT", "depth": 2},
    SLIF: {"steps": 4, "layout": "TB", "per_channel": True},
}


def levelled(graph: Graph) -> Graph:
    """At most three tau per layer: NIR gets one branch for each."""

    def visit(builder: GraphBuilder, node: Node, inputs: tuple[str, ...]) -> str | None:
        op = node.op
        if not isinstance(op, ops.Neuron) or op.tau is None or not op.tau.ndim:
            return None
        few = np.asarray([1.6, 1.75, 2.3], dtype=np.float32)[np.arange(op.tau.size) % 3]
        return builder.add(replace(op, tau=few), inputs, name=node.name, source=node.source)

    return rewrite(graph, visit)


def lowered(**how: Any) -> Graph:
    return run_pipeline(levelled(spikformer_graph(**how)), PIPELINES["nir"]).graph


def same_spikes(model: Graph, imported: Graph, batch: int = 3) -> None:
    """Every neuron layer of the model and its output, in float64, on inputs that make every layer fire."""
    x = random_inputs(model, batch, 7)
    want, got = interpret(model, x), interpret(imported, x)
    assert every_layer_fires(model, x)
    for name, spikes in want.spikes.items():
        np.testing.assert_array_equal(got.spikes[name].reshape(spikes.shape), spikes, err_msg=name)
    assert set(got.outputs) == set(want.outputs)
    for label, values in want.outputs.items():
        np.testing.assert_allclose(got.outputs[label], values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "dialect"),
    [*((net, "portable") for net in NETS), ("one step", "compact"), (EVENTS, "compact"), (SLIF, "arrays")],
)
def test_round_trip_keeps_every_spike(net: str, dialect: str, tmp_path: Path) -> None:
    model, how = lowered(**NETS[net]), {"dialect": dialect}
    first = export(model, tmp_path / "net.nir", how).metadata
    imported = import_nir(tmp_path / "net.nir")
    same_spikes(model, imported)
    assert imported.steps == model.steps
    assert imported.metadata["original_source"] == model.metadata["source"]
    # and again: the importer and the exporter lose nothing to each other
    again = export(run_pipeline(imported, PIPELINES["nir"]).graph, tmp_path / "again.nir", how).metadata
    same_spikes(model, import_nir(tmp_path / "again.nir"))
    assert again["stored_weights"] == first["stored_weights"]
    assert again["nodes"] == first["nodes"]


def test_branches_come_back_as_one_neuron_with_the_model_s_tau(tmp_path: Path) -> None:
    model = lowered(**NETS[SLIF])
    export(model, tmp_path / "net.nir")
    imported = import_nir(tmp_path / "net.nir")
    with h5py.File(tmp_path / "net.nir") as file:
        assert len([n for n in file["node/nodes"] if ".tau" in n]) > 3 * len(model.neurons)
    for node in model.neurons:
        old, new = node.op, imported[node.name].op
        assert isinstance(old, ops.Neuron) and isinstance(new, ops.Neuron)
        assert old.tau is not None and new.tau is not None and len(np.unique(new.tau)) > 1
        np.testing.assert_array_equal(new.tau, old.tau)
    assert not [n.name for n in imported if ".tau" in n.name]


def test_a_memoryless_layer_needs_a_threshold_node(tmp_path: Path) -> None:
    """tau = 1 is nir.Threshold exactly, and no portable LIF."""
    b = GraphBuilder(3)
    x = b.add(ops.Input((4, 2, 3), ("channel", "y", "x"), "TB"), name="input")
    x = b.add(ops.Neuron(np.ones(()), np.array(0.25), np.array(-0.5)), (x,), name="unit")
    b.add(ops.Output("output", "TB"), (x,), name="output")
    model = validate(b.build())
    with pytest.raises(UnsupportedError, match="the dialect compact writes a layer of tau = 1"):
        export(model, tmp_path / "net.nir")
    export(model, tmp_path / "net.nir", {"dialect": "compact"})
    drive = np.random.default_rng(2).integers(-2, 5, (3, 2, 4, 2, 3)) / 4
    want, got = interpret(model, drive), interpret(import_nir(tmp_path / "net.nir"), drive)
    assert 0.1 < want.spikes["unit"].mean() < 0.9
    np.testing.assert_array_equal(got.spikes["unit"], want.spikes["unit"])


def test_integrate_and_fire_and_undecayed_input(tmp_path: Path) -> None:
    b = GraphBuilder(5, {"source": "test"})
    x = b.add(ops.Input((3, 4, 6), ("channel", "y", "x"), "TB"), name="input")
    x = b.add(ops.Neuron(None, np.array(1.25), np.array(-0.25), kind="IF"), (x,), name="if")
    x = b.add(ops.MaxPool((2, 2), (2, 2), (0, 0), (1, 1)), (x,), name="pool")
    y = b.add(ops.Neuron(np.array(4.0), np.array(0.75), np.array(0.25), decay_input=False), (x,), name="lif")
    x = b.add(ops.Add(), (x, y), name="add")
    b.add(ops.Output("logits", "BT"), (x,), name="output")
    model = validate(b.build())
    export(model, tmp_path / "net.nir")
    imported = import_nir(tmp_path / "net.nir")
    drive = np.random.default_rng(2).integers(-2, 5, (5, 3, 3, 4, 6)) / 4
    want, got = interpret(model, drive), interpret(imported, drive)
    for name, spikes in want.spikes.items():
        assert 0.05 < spikes.mean() < 0.95
        np.testing.assert_array_equal(got.spikes[name], spikes)
    np.testing.assert_array_equal(got.outputs["logits"], want.outputs["logits"])


def edited(source: Path, target: Path, **changes: Any) -> Path:
    """A copy whose contract has other entries."""
    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        contract = json.loads(file["node/metadata/stdeploy"][()])
        del file["node/metadata/stdeploy"]
        file["node/metadata/stdeploy"] = json.dumps({**contract, **changes})
    return target


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("nir") / "net.nir"
    export(lowered(steps=2, per_channel=True), path)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "many"}, "metadata is damaged"),
        ({"steps": 0}, "metadata is damaged"),
        ({"dt": -1e-4}, "metadata is damaged"),
        ({"dt": 1e-3}, "shorter than a step"),
        ({"input": {"layout": "BTC", "shape": [2, 12, 12]}}, "metadata is damaged"),
        ({"neurons": {"a": {"shape": [1], "parts": []}}}, "metadata is damaged"),
        ({"neurons": {"a": {"shape": [1], "parts": [{"node": "b", "channels": None}]}}}, "does not have: b"),
        (
            {"neurons": {"a": {"shape": [1], "parts": [{"node": "output", "channels": None}]}}},
            "neuron layers that are none: a",
        ),
        (
            {"neurons": {"a": {"shape": [2], "parts": [{"node": "output", "channels": [0]}] * 2}}},
            "do not hold each",
        ),
        ({"steps": 2.5}, "metadata is damaged"),
        ({"neurons": {"a": {"shape": [1], "parts": [{"node": "b", "channels": 2}]}}}, "metadata is damaged"),
        ({"neurons": {"a": {"shape": [True], "parts": []}}}, "metadata is damaged"),
        ({"output": {"label": "y", "layout": "B", "shape": [9], "over_steps": "mean"}}, "has shape"),
    ],
)
def test_a_contract_that_does_not_fit_is_refused(
    written: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        import_nir(edited(written, tmp_path / "edited.nir", **changes))
    assert "edited.nir" in str(caught.value)


def test_whatever_opens_a_damaged_file_says_what_is_wrong(written: Path, tmp_path: Path) -> None:
    """Importer, readers and chip budgets: one check for all, before a number is computed."""
    with h5py.File(written) as file:
        neurons = json.loads(file["node/metadata/stdeploy"][()])["neurons"]
        branch = next(
            n for layer in neurons.values() for n in [p["node"] for p in layer["parts"]] if ".tau" in n
        )
        edges = file["node/edges"][()]
    layer, entry = next(iter(neurons.items()))
    wider = {**neurons, layer: {**entry, "shape": [entry["shape"][0], *(n + 1 for n in entry["shape"][1:])]}}
    unfed = edges[[target.decode() != branch for _, target in edges]]
    damage: dict[str, tuple[str, Any]] = {
        "says that": ("metadata/stdeploy", None),
        "nothing feeds its branch": ("edges", unfed.astype(object)),
        "not a legal LIF": (f"nodes/{branch}/v_threshold", 3),
        "groups is out of range": (f"nodes/{branch}.place/groups", 0),
        "is no convolution of its rows": (f"nodes/{_driver(edges, branch)}/groups", 3),
        "does not have": (f"nodes/{branch}/type", None),
    }
    for message, (place, value) in damage.items():
        path = tmp_path / "damaged.nir"
        if message == "says that":
            edited(written, path, neurons=wider)
        else:
            path.write_bytes(written.read_bytes())
            with h5py.File(path, "r+") as file:
                del file[f"node/{place if value is not None else f'nodes/{branch}'}"]
                if value is not None:
                    file[f"node/{place}"] = value
        for opened in (import_nir, NirReader, read_network):
            with pytest.raises(UserError, match=message) as caught:
                opened(path)
            assert "damaged.nir" in str(caught.value)


def _driver(edges: np.ndarray[Any, Any], name: str) -> str:
    return next(str(source.decode()) for source, target in edges if target.decode() == name)


def test_branches_that_are_wired_otherwise_are_refused(written: Path, tmp_path: Path) -> None:
    with h5py.File(written) as file:
        contract = json.loads(file["node/metadata/stdeploy"][()])
    (layer, entry), (_, other) = list(contract["neurons"].items())[:2]
    entry["parts"][0]["node"] = other["parts"][0]["node"]
    path = edited(written, tmp_path / "edited.nir", neurons={**contract["neurons"], layer: entry})
    with pytest.raises(UserError, match=r"edited\.nir"):
        import_nir(path)


def test_the_file_says_itself_how_it_runs(written: Path) -> None:
    with pytest.raises(UserError, match="it takes no --dt, --steps"):
        import_nir(written, dt=1e-4, steps=4)


@pytest.mark.parametrize("target", ["onnx", "graph", "nir"])
def test_a_nir_file_is_a_model_on_the_command_line(
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    out = {"graph": "out.stg"}.get(target, f"out.{target}")
    reader = ["--reader", "stdeploy"] if target == "nir" else []
    export_to = ["export", str(written), "--target", target, "-o", out]
    assert run([*export_to, "-n", "3", "--json", "e.json", *reader]) == 0
    capsys.readouterr()
    for report in json.loads((tmp_path / "e.json").read_text()).get("verify", []):
        assert report["ok"] and report["spikes_compared"] > 10_000
    assert run(["verify", str(written), out, "-n", "2", *reader]) == 0
    assert "ok" in capsys.readouterr().out
    assert run([*export_to, "--dt", "1e-4"]) == 2
    assert "takes no --dt" in capsys.readouterr().err


def test_sample_to_nir_to_graph_to_onnx_gives_the_model_s_spikes(tmp_path: Path) -> None:
    """PyTorch against onnxruntime, spike for spike, with a NIR file between them."""
    from stdeploy import running, workflow
    from stdeploy.verify import compare

    source = workflow.open_source(ROOT / "samples" / "pruned_dsp.pt")
    folded = workflow.lower(source.graph, "nir")
    workflow.export(source, folded, tmp_path / "sample.nir")
    middle = workflow.open_source(tmp_path / "sample.nir")
    workflow.export(middle, workflow.lower(middle.graph, "onnx"), tmp_path / "sample.onnx")
    (onnx,) = running.executors(tmp_path / "sample.onnx")
    images = np.load(ROOT / "samples" / "test_images.npz")["images"][:8]
    report = compare(source.reference, onnx, source.graph, images, exported=folded.graph)
    assert report.ok, report.problems
    assert report.spikes_compared > 1_000_000 and not report.warnings
    assert {layer.name for layer in report.layers if layer.present} == {n.name for n in folded.graph.neurons}


def test_options_of_other_files_are_refused(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(ROOT / "samples" / "pruned.pt"), "--dt", "1e-4"]) == 2
    assert "takes no --dt" in capsys.readouterr().err
    save_graph(lowered(steps=1), tmp_path / "g.stg")
    assert run(["inspect", str(tmp_path / "g.stg"), "--dt", "1e-4"]) == 2
    assert "takes no --dt" in capsys.readouterr().err
    assert run(["export", str(written), "--target", "onnx", "--input", "3x4x4"]) == 2
    assert "takes no --input" in capsys.readouterr().err
