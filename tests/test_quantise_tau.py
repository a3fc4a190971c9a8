"""tau at few levels: optimal, measured, and one NIR branch per level in every reader."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.cli.app import run
from stdeploy.errors import UserError
from stdeploy.exporters.nir import check, export
from stdeploy.graph import Graph, GraphBuilder, Node, ops, rewrite
from stdeploy.graph.file import save_graph
from stdeploy.graph.interpreter import Interpreter, interpret
from stdeploy.graph.weight import Array
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.quantise import best_clusters, channel_weights, level_layer, measure, quantise_graph
from stdeploy.runtime.nir_file import NirFile
from stdeploy.runtime.nir_readers import READERS, NirReader
from stdeploy.verify import compare
from tests.graphs import Network, every_layer_fires, random_inputs, spikformer_graph

numbers = st.lists(
    st.tuples(st.floats(0.05, 0.95), st.floats(0.01, 9)), min_size=1, max_size=9, unique_by=lambda p: p[0]
)


def spent(values: Array, weights: Array, cluster: Array) -> float:
    parts = [cluster == c for c in np.unique(cluster)]
    means = [np.average(values[p], weights=weights[p]) for p in parts]
    return float(sum((weights[p] * (values[p] - m) ** 2).sum() for p, m in zip(parts, means, strict=True)))


@settings(max_examples=80, deadline=None)
@given(numbers, st.integers(1, 5))
def test_no_partition_of_the_line_is_cheaper(points: list[tuple[float, float]], k: int) -> None:
    values, weights = np.array(sorted(points)).T
    cluster, error = best_clusters(values, weights, k)
    n = len(values)
    cheapest = min(
        spent(values, weights, np.searchsorted(np.array(cuts), np.arange(n), side="right"))
        for m in range(min(k, n))
        for cuts in itertools.combinations(range(1, n), m)
    )
    assert cluster.max() < k and (np.diff(cluster) >= 0).all()
    assert error == pytest.approx(cheapest, abs=1e-13)
    assert spent(values, weights, cluster) == pytest.approx(cheapest, abs=1e-13)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(0, 99))
def test_more_levels_never_cost_more_and_enough_of_them_change_nothing(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    tau = rng.uniform(1.01, 6, n).astype(np.float32)
    rates, weights = np.unique(1.0 / tau.astype(np.float64)), rng.uniform(0.1, 3, n)
    errors = [best_clusters(rates, np.ones(rates.size), k)[1] for k in range(1, rates.size + 1)]
    assert all(a >= b for a, b in itertools.pairwise(errors)) and errors[-1] == 0
    for k in (1, 2, 5, n):
        new, layer = level_layer(tau, k, weights)
        assert new.dtype == tau.dtype and np.unique(new).size == len(layer.levels) <= k
        assert tau.min() <= new.min() and new.max() <= tau.max()
    np.testing.assert_array_equal(new, tau)
    assert (layer.largest_change, layer.rms_change) == (0, 0)


def test_a_channel_without_weight_claims_no_level_and_the_others_keep_theirs() -> None:
    tau = np.array([1.3, 1.9, 1.7, 4.5, 2.5, 1.32], dtype=np.float32)
    weights = np.array([1, 0, 2.5, 0, 1, 0])
    new, layer = level_layer(tau, 3, weights)
    np.testing.assert_array_equal(new, tau[[0, 2, 2, 4, 4, 0]])  # the nearest in 1 / tau
    assert layer.distinct == 6 and layer.largest_change == pytest.approx(2.0)
    heavy, _ = level_layer(tau, 1, np.array([1, 1e6, 1, 1, 1, 1]))
    assert heavy[0] == pytest.approx(1.9, rel=1e-4)
    faint, _ = level_layer(tau, 2, np.array([1, 1e-40, 1e-30, 1e-35, 1e-30, 1]))
    np.testing.assert_array_equal(faint, tau[[0, 5, 5, 5, 5, 5]])  # the heavy two alone are exact
    silent, _ = level_layer(tau, 2, np.zeros(6))  # nothing was driven: all weigh the same
    np.testing.assert_array_equal(silent, level_layer(tau, 2)[0])
    with pytest.raises(UserError, match="cannot have 0 levels"):
        level_layer(tau, 0)


@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("reset", [-0.1, None])
def test_the_weight_is_the_mean_square_of_what_the_rate_multiplies(decay: bool, reset: float | None) -> None:
    """Against plain loops over the neuron's equations."""
    steps, batch, channels = 5, 3, 2
    tau, threshold = np.array([1.7, 2.4]), np.array([0.9, 1.3])
    builder = GraphBuilder(steps)
    x = builder.add(ops.Input((channels, 4), ("channel", "token"), "TB"), name="input")
    op = ops.Neuron(tau, threshold, None if reset is None else np.array(reset), decay)
    s = builder.add(op, (x,), name="lif")
    builder.add(ops.Output("y", "TB"), (s,), name="output")
    graph = builder.build()
    drive = np.random.default_rng(3).normal(0.8, 1.0, (steps, batch, channels, 4))
    wanted, r, fired = np.zeros(channels), reset or 0.0, 0
    for b, c, n in itertools.product(range(batch), range(channels), range(4)):
        v = r
        for t in range(steps):
            i = drive[t, b, c, n]
            gain = i - (v - r) if decay else -(v - r)
            wanted[c] += (gain / (threshold[c] - r)) ** 2
            h = v + (i - (v - r)) / tau[c] if decay else v - (v - r) / tau[c] + i
            fire = h >= threshold[c]
            fired += fire
            v = (r if reset is not None else h - threshold[c]) if fire else h
    assert fired > 10
    found = channel_weights(graph, [drive[:, :2], drive[:, 2:]])["lif"]
    np.testing.assert_allclose(found, wanted / (steps * 4), rtol=1e-10)


AWKWARD: list[dict[str, Any]] = [
    {"tau": 1.7, "v_threshold": 0.9, "v_reset": -0.1},
    {"tau": 2.6, "v_threshold": 1.1, "v_reset": 0.15, "decay_input": False},
    {"tau": None, "v_threshold": 1.2, "v_reset": 0.05, "kind": "IF"},
]


def awkward_graph(steps: int = 5) -> Graph:
    """tau, threshold and reset per channel, undecayed input and IF between; neurons behind residual Adds."""
    net = Network(steps, (2, 8, 8), "BT", "hard", per_channel=True, seed=4)
    net.styles = AWKWARD
    x = net.stem(8)
    for i, parts in enumerate(((net.linear, net.linear), (net.linear, None))):
        a = parts[0](f"join{i}.a", x, 8)
        b = x if parts[1] is None else parts[1](f"join{i}.b", x, 8)
        y = net.builder.add(ops.Add(), (a, b), name=f"join{i}.add")
        op = net._sized(net.neuron(8, 1.0), net.observe(y))
        x = net.builder.add(op, (y,), name=f"join{i}.lif")
    x = net.attention("block.attn", x, (3, 2), (2, 3))
    return net.head(x, 4)


def scattered(graph: Graph, spread: float = 0.35) -> Graph:
    """Every tau per channel, all different."""
    rng = np.random.default_rng(8)

    def visit(builder: GraphBuilder, node: Node, inputs: tuple[str, ...]) -> str | None:
        if not isinstance(node.op, ops.Neuron) or node.op.tau is None:
            return None
        tau = 1.05 + (node.op.tau - 1.0) * np.exp(rng.normal(0, spread, node.value.shape[0]))
        op = replace(node.op, tau=tau.astype(np.float32))
        return builder.add(op, inputs, name=node.name, source=node.source)

    return rewrite(graph, visit)


@pytest.mark.parametrize("levels", [1, 3])
def test_one_branch_per_level_and_every_reader_spikes_as_the_graph(levels: int, tmp_path: Path) -> None:
    quantised, record = quantise_graph(scattered(awkward_graph()), levels)
    x = random_inputs(quantised, 8, seed=2)
    assert every_layer_fires(quantised, x)
    lowered = run_pipeline(quantised, PIPELINES["nir"]).graph
    export(lowered, tmp_path / "net.nir")
    file = NirFile(tmp_path / "net.nir")
    for node in lowered.neurons:
        assert isinstance(node.op, ops.Neuron)
        wanted = 1 if node.op.tau is None else np.unique(node.op.tau).size
        assert len(file.parts[node.name]) == wanted <= levels
    assert record.layers and all(len(layer.levels) == levels for layer in record.layers.values())
    assert file.metadata["tau_levels"] == json.loads(json.dumps(record.to_dict()))
    for reader in READERS:
        candidate = NirReader(tmp_path / "net.nir", reader)
        report = compare(Interpreter(quantised, np.float32), candidate, quantised, x, exported=lowered)
        assert report.ok, (candidate.name, report.problems)
        tied = ("attn_lif", "join0.lif", "join1.lif")  # bisected onto a value of the data
        assert sum(la.mismatches for la in report.layers if not la.name.endswith(tied)) <= 2, reader


def test_too_many_levels_are_refused_with_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = spikformer_graph(dim=20, heads=(3, 2), per_channel=True)
    refused = check(run_pipeline(graph, PIPELINES["nir"]).graph)
    assert refused and all("--tau-levels 16" in str(item) for item in refused)
    assert check(run_pipeline(quantise_graph(graph, 16)[0], PIPELINES["nir"]).graph) == []
    save_graph(graph, tmp_path / "net.stg")
    assert run(["export", str(tmp_path / "net.stg"), "--target", "nir", "--no-verify"]) == 3
    assert "stdeploy compress --tau-levels 16" in capsys.readouterr().err


def test_the_effect_is_what_two_runs_differ_by() -> None:
    graph = scattered(spikformer_graph(steps=3, image=(2, 8, 8), masked=0.5))
    x, labels = random_inputs(graph, 5, seed=1), np.arange(5) % 5
    changed, _ = quantise_graph(graph, 1, channel_weights(graph, [x]))
    told: list[int] = []
    effect = measure(Interpreter(graph), Interpreter(changed), graph, x, labels, told.append)
    assert told == [5] and effect.samples == 5
    old, new = interpret(graph, x), interpret(changed, x)
    forced = interpret(changed, x, forced=old.spikes)
    for name, layer in effect.layers.items():
        assert layer.changed == int((old.spikes[name] != new.spikes[name]).sum())
        assert layer.changed_alone == int((old.spikes[name] != forced.spikes[name]).sum())
        assert layer.rate_before == pytest.approx(old.spikes[name].mean())
        assert layer.rate_after == pytest.approx(new.spikes[name].mean())
    assert sum(layer.changed for layer in effect.layers.values()) > 0
    (output,) = effect.outputs.values()
    (a,), (b,) = old.outputs.values(), new.outputs.values()
    assert output.largest_change == pytest.approx(np.abs(a - b).max())
    assert output.rms_change == pytest.approx(np.sqrt(np.mean((a - b) ** 2)))
    assert output.agree == int((a.argmax(1) == b.argmax(1)).sum())
    assert output.correct_after == int((b.argmax(1) == labels).sum())
    same, _ = quantise_graph(graph, 99)
    nothing = measure(Interpreter(graph), Interpreter(same), graph, x)
    assert not any(layer.changed or layer.changed_alone for layer in nothing.layers.values())
    assert next(iter(nothing.outputs.values())).largest_change == 0


def test_channels_that_the_passes_remove_weigh_nothing() -> None:
    graph = spikformer_graph(masked=0.6, per_channel=True, seed=2)
    lowered = run_pipeline(graph, PIPELINES["nir"]).graph
    weights = channel_weights(graph)
    removed = 0
    for node in lowered.neurons:
        assert isinstance(node.op, ops.Neuron)
        kept = np.ones(weights[node.name].size, bool)
        if node.op.kept is not None:
            kept = np.isin(np.arange(kept.size), node.op.kept)
        np.testing.assert_array_equal(weights[node.name], kept.astype(float))
        removed += int((~kept).sum())
    assert removed > 3
