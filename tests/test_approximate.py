"""Artefacts that say they are approximate: agreement in every bit, and the measured effect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stdeploy.approximate import approximation_of, measure_all
from stdeploy.errors import ParityError
from stdeploy.exporters import lava
from stdeploy.graph.execution import Execution
from stdeploy.graph.weight import Array
from stdeploy.passes.pipelines import PIPELINES, run_pipeline
from stdeploy.runtime.lava_reference import LavaReference
from tests.graphs import random_inputs, spikformer_graph

GRAPH = run_pipeline(spikformer_graph(steps=3, image=(2, 8, 8)), PIPELINES["lava"]).graph
INPUTS = random_inputs(GRAPH, 4)


class Software:
    """Runs a folder as its reference does, but for `wrong` spikes of one layer."""

    def __init__(self, folder: Path, wrong: int = 0) -> None:
        self.reference = LavaReference(folder)
        self.file = self.reference.file
        self.name, self.wrong = "software 1.0", wrong

    def run(self, inputs: Array, forced: Mapping[str, Array] | None = None) -> Execution:
        found = self.reference.run(inputs, forced)
        name = next(iter(found.spikes))
        spikes = found.spikes[name].copy()
        spikes.reshape(-1)[: self.wrong] ^= 1
        return replace(found, spikes={**found.spikes, name: spikes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lava") / "net"
    lava.export(GRAPH, path, {"fixed": True})
    return path


def test_only_what_says_so_is_approximate(folder: Path, tmp_path: Path) -> None:
    lava.export(GRAPH, tmp_path / "exact")
    assert approximation_of(LavaReference(tmp_path / "exact")) is None
    assert approximation_of(SimpleNamespace(name="x")) is None  # type: ignore[arg-type]
    assert "8-bit weights" in str(approximation_of(LavaReference(folder)))


def test_the_effect_of_what_agrees_with_its_reference(folder: Path) -> None:
    (found,) = measure_all(GRAPH, [Software(folder)], INPUTS, np.zeros(4, dtype=np.int64))
    assert found.spikes_equal == sum(layer.spikes for layer in found.effect.layers.values())
    assert sum(layer.changed for layer in found.effect.layers.values()) > 0
    assert found.summary().startswith("software 1.0 = stdeploy")
    assert found.to_dict()["effect"]["samples"] == 4


def test_one_wrong_bit_is_an_error_that_names_the_layer(folder: Path) -> None:
    with pytest.raises(ParityError, match=r"differ in patch_embed\.proj0_lif \(1\)"):
        measure_all(GRAPH, [Software(folder, wrong=1)], INPUTS)


def test_software_without_a_reference_is_measured_alone(folder: Path) -> None:
    reference = LavaReference(folder)
    (found,) = measure_all(GRAPH, [reference], INPUTS)
    assert found.reference is None and found.summary().startswith("approximate (Lava")
