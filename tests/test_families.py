"""Every family through trace, interpreter, passes and both targets; and the README's table of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stdeploy.energy.counting import Counter
from stdeploy.energy.signals import Signals
from stdeploy.errors import UnsupportedError
from stdeploy.graph.interpreter import interpret
from stdeploy.models.calibration import firing_rates
from stdeploy.trace import trace
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
    """In float64 exactly, before and after the passes; the ONNX and NIR files within rounding, or the reasons."""
    _, traced, interpreter, onnx, nir = row(name)
    assert (traced, interpreter, onnx) == ("yes", "yes", "yes")
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
