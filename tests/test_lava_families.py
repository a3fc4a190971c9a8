"""Every published family as a Lava folder, run by the numpy reference; or refused with its reasons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stdeploy.errors import UnsupportedError
from stdeploy.exporters import lava
from stdeploy.graph.interpreter import interpret
from stdeploy.passes.pipelines import PIPELINES, run_pipeline
from stdeploy.runtime.lava_reference import LavaReference
from tests.families import FAMILIES
from tests.families.rows import inputs

REFUSED = {
    "Spikformer, scores and features": "the graph has 2",
    "Spikingformer, CML": "a maximum over real values",
    "Spike-driven Transformer V1": "a maximum over real values",
    "QKFormer": "a maximum over real values",
    "QKFormer, neuron over T*B, --assume-reset-per-sample": "a maximum over real values",
    "Spikformer, tokens pruned (STATA)": "the tokens with the best scores",
    "Spikformer, tokens pruned, kept in place": "the tokens with the best scores",
    "Max-Former": "a maximum over real values",
}
UNTRACED = {"QKFormer, neuron over T*B"}


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in UNTRACED])
def test_a_family(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    graph = run_pipeline(family.traced(family.build()).graph, PIPELINES["lava"]).graph
    x = inputs(family)
    if name in REFUSED:
        with pytest.raises(UnsupportedError) as caught:
            lava.export(graph, tmp_path / "net")
        assert any(REFUSED[name] in item.reason for item in caught.value.items)
        return
    wanted = interpret(graph, x)
    for attention in ("process", "units"):
        lava.export(graph, tmp_path / "net", {"attention": attention, "max_units": 200_000})
        found = LavaReference(tmp_path / "net").run(x)
        for layer, spikes in wanted.spikes.items():
            assert spikes.any()
            np.testing.assert_array_equal(found.spikes[layer], spikes, err_msg=layer)
        for label, value in wanted.outputs.items():
            np.testing.assert_allclose(found.outputs[label], value, atol=1e-11)


@pytest.mark.parametrize("name", ["Spikformer, Linear, (QKᵀ)V", "Spikformer, IAND residuals"])
def test_a_family_in_fixed_point_is_close_layer_by_layer(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    graph = run_pipeline(family.traced(family.build()).graph, PIPELINES["lava"]).graph
    x = inputs(family)
    lava.export(graph, tmp_path / "net", {"fixed": True})
    wanted = interpret(graph, x)
    found = LavaReference(tmp_path / "net").run(x, wanted.spikes)
    for layer, spikes in wanted.spikes.items():
        assert float((found.spikes[layer] != spikes).mean()) < 0.05, layer
