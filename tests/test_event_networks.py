"""Whole networks in the event engine: proven against the interpreter by verify's own rule, streamed, and counted."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from stdeploy.energy.counting import count
from stdeploy.graph import Graph
from stdeploy.graph.interpreter import Interpreter
from stdeploy.graph.weight import Array
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.verify import batch_axis, compare
from tests.conformance.models import MODELS
from tests.event import KERNELS, counted_as_energy, same, session, streamed_as_batched
from tests.families import FAMILIES
from tests.families.rows import inputs
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph

NETWORKS = [*(name for name, family in FAMILIES.items() if not family.refused), *MODELS]


@functools.cache
def network(name: str) -> tuple[Graph, Array]:
    """The graph as the target is given it, and a batch."""
    if name in MODELS:
        whole = MODELS[name]()
        return run_pipeline(whole.graph, PIPELINES["default"]).graph, whole.inputs
    family = FAMILIES[name]
    graph = run_pipeline(family.traced(family.build()).graph, PIPELINES["default"]).graph
    return graph, inputs(family)


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_is_proven_streamed_and_counted(name: str, kind: str) -> None:
    graph, x = network(name)
    report = compare(Interpreter(graph, np.float32), session(graph, kind), graph, x)
    assert not report.problems
    assert all(layer.spikes_compared and layer.firing_rate > 0 for layer in report.layers)
    with session(graph, kind, counting=True) as engine:
        found = engine.run(x)
        counted_as_energy(graph, engine, x, found)
        streamed_as_batched(engine, np.take(x, [1], axis=batch_axis(graph)))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize(
    "name", ["QKFormer", "Spikformer, frames BT, T = 5", "Spikformer, tokens pruned (STATA)"]
)
def test_threads_change_no_bit(name: str, kind: str, threads: int) -> None:
    graph, x = network(name)
    axis = batch_axis(graph)
    x = np.concatenate([x, x[::-1]], axis=axis).take(
        range(5), axis=axis
    )  # 5 samples: some apart, some together
    with session(graph, kind, counting=True) as one, session(graph, kind, threads, counting=True) as several:
        same(one.run(x), several.run(x))
        assert one.synops.keys() == several.synops.keys()
        for node, counts in one.synops.items():
            np.testing.assert_array_equal(counts, several.synops[node], err_msg=node)
        streamed_as_batched(several, np.take(x, [0], axis=axis))


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize(
    "how",
    [
        {"steps": 1, "neurons": "mixed"},
        {"steps": 5, "neurons": "mixed", "per_channel": True, "layout": "TB"},
        {"steps": 10, "neurons": "mixed", "order": "kv", "layout": "BT", "depth": 2},
        {"steps": 5, "per_channel": True, "batch_norm": False, "classes": 65},
        {
            "steps": 2,
            "image": (1, 20, 36),
            "dim": 66,
            "mlp": 113,
            "heads": (33, 1, 32),
            "v_heads": (2, 63, 1),
        },
    ],
)
def test_awkward_spikformers(how: dict[str, object], kind: str) -> None:
    graph = spikformer_graph(**how)  # type: ignore[arg-type]
    x = random_inputs(graph)
    every_layer_fires(graph, x)
    report = compare(Interpreter(graph, np.float32), session(graph, kind), graph, x)
    assert not report.problems
    with session(graph, kind, counting=True) as engine:
        counted_as_energy(graph, engine, x, engine.run(x))
        streamed_as_batched(engine, np.take(x, [2], axis=batch_axis(graph)))


def test_a_silent_network_does_only_what_its_real_inputs_ask_for() -> None:
    graph = spikformer_graph()
    x = np.zeros_like(random_inputs(graph))
    with session(graph, "rows", counting=True) as engine:
        found = engine.run(x)
        counted_as_energy(graph, engine, x, found)
        assert not engine.synops["patch_embed.proj0_conv"].any()
    ledger = count(graph, x, found.spikes)
    assert ledger.samples == 3
