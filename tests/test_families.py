"""Every family through trace, interpreter, passes and the targets; and the README's table of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from stdeploy.energy.counting import Counter
from stdeploy.energy.signals import Signals
from stdeploy.errors import UnsupportedError
from stdeploy.exporters import load_target
from stdeploy.graph.interpreter import interpret
from stdeploy.models.calibration import firing_rates
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.running import executors
from stdeploy.trace import trace
from stdeploy.verify import compare
from tests.families import FAMILIES
from tests.families.rows import inputs, lowered, row, table, verified

README = Path(__file__).parent.parent / "README.md"
TAKEN = {name: family for name, family in FAMILIES.items() if family.refused is None}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_neuron_layer_fires(name: str) -> None:
    family = FAMILIES[name]
    net = family.build()
    rates = firing_rates(net, torch.as_tensor(inputs(family)))
    assert len(rates) >= 8
    assert all(0.01 < rate < 0.95 for rate in rates.values()), rates


@pytest.mark.parametrize("name", TAKEN)
def test_spikes_everywhere_as_the_model(name: str) -> None:
    """In float64 exactly, before and after the passes; the files of all targets within rounding, or NIR's reasons."""
    _, traced, interpreter, onnx, nir, event = row(name)
    assert (traced, interpreter, onnx, event) == ("yes", "yes", "yes", "yes")
    reasons = (
        nir.removeprefix("refused: ").replace("2; readers", "2: readers").split("; ") if nir != "yes" else []
    )
    assert len(reasons) == len(TAKEN[name].nir), nir
    assert all(any(part in reason for reason in reasons) for part in TAKEN[name].nir), nir


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.refused is not None])
def test_refused_families_say_why(name: str) -> None:
    family = FAMILIES[name]
    with pytest.raises(UnsupportedError) as caught:
        trace(family.build(), family.shape, layout=family.layout)
    assert [family.refused in str(item) for item in caught.value.items] == [True]  # type: ignore[operator]


def test_readme_shows_the_table() -> None:
    text = README.read_text(encoding="utf-8")
    shown = text.split("<!-- families -->")[1].split("<!-- /families -->")[0]
    assert shown.strip() == table()


def test_pruned_rows_of_a_model_that_prunes_tokens(tmp_path: Path) -> None:
    """Constant query and key channels, some firing, leave the scores' order as it is; in OpenVINO too."""
    family = FAMILIES["Spikformer, tokens pruned (STATA)"]
    net = family.build()
    for block in range(2):
        for part, drives in (("q", (2.5, 2.5, 0.2)), ("k", (2.5, 1.2, 2.5)), ("v", (2.5, 0.1, 0.3))):
            for c, drive in zip((0, 5, 8), drives, strict=True):
                net.get_parameter(f"blocks.{block}.attn.{part}.map.weight").data[c] = 0
                net.get_parameter(f"blocks.{block}.attn.{part}.bn.weight").data[c] = 0
                net.get_parameter(f"blocks.{block}.attn.{part}.bn.bias").data[c] = drive
    traced = family.traced(net.double())
    x = inputs(family).astype(np.float64)
    wanted = traced.run(x)
    graph = run_pipeline(traced.graph, PIPELINES["onnx"]).graph
    found = interpret(graph, x)
    assert any("constant q, k pairs joined" in note for note in graph.metadata["passes"])
    for name, positions in found.selections.items():
        np.testing.assert_array_equal(positions, wanted.selections[name])
    np.testing.assert_allclose(found.outputs["output"], wanted.outputs["output"], rtol=1e-9)
    single = family.traced(net.float())
    path = tmp_path / "net.onnx"
    load_target("onnx").export(graph, path)
    for reader in ("onnxruntime", *(["openvino"] if importlib.util.find_spec("openvino") else [])):
        (executor,) = executors(path, [reader])
        report = compare(single, executor, single.graph, inputs(family), exported=graph)
        assert report.ok and not any(s.mismatches for s in report.selections), report.problems


@pytest.mark.parametrize("name", ["Spikformer, IAND residuals", "Spikformer, tokens pruned (STATA)"])
def test_operations_of_derived_spikes_are_counted(name: str) -> None:
    """Counting takes the graph's own values: a residual that is a NOT, and the tokens that are kept."""
    family = FAMILIES[name]
    _, graph, _ = lowered(family, "onnx")
    run = interpret(graph, inputs(family))
    signals = Signals(graph, inputs(family), run.spikes, run.selections)
    known = [n for n in graph if n.value.domain.maximum is not None]
    assert len(known) > 20
    for node in known:
        assert 0 < signals.units(node.name).max() <= (node.value.domain.maximum or 0), node.name
    Counter(graph).add(inputs(family), run.spikes, run.selections)


def test_the_comparison_can_fail() -> None:
    """A changed network is not the same."""
    family = FAMILIES["Spikingformer"]
    traced, graph, _ = lowered(family, "onnx")
    net = family.build()
    net.get_parameter("stem.layer.weight").data.mul_(-1)
    other = trace(net, family.shape, layout=family.layout)
    assert verified(family, other, graph, "onnx")
    assert not np.array_equal(
        other.run(inputs(family)).outputs["output"], traced.run(inputs(family)).outputs["output"]
    )
