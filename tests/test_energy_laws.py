"""The laws that an exact count obeys, what it refuses, and how it is driven over data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stdeploy.energy.counting import Counter, count, count_executor, spikes_of, with_input_class
from stdeploy.energy.ledger import NETWORK, Ledger
from stdeploy.energy.synaptic import FIXED
from stdeploy.errors import UserError
from stdeploy.graph import Graph, GraphBuilder, Weight, ops
from stdeploy.graph.interpreter import Interpreter, interpret
from stdeploy.graph.weight import Array
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from tests.energy import layer_graph, values
from tests.graphs import random_inputs, spikformer_graph


@pytest.fixture(scope="module")
def network() -> tuple[Graph, Array, dict[str, Array], Ledger]:
    graph = spikformer_graph(5, masked=0.4, neurons="mixed")
    x = random_inputs(graph)
    spikes = interpret(graph, x).spikes
    return graph, x, spikes, count(graph, x, spikes)


def test_steps_layers_and_samples_sum_to_the_total(
    network: tuple[Graph, Array, dict[str, Array], Ledger],
) -> None:
    graph, x, spikes, ledger = network
    for layer in ledger.layers:
        for quantity, rows in layer.steps.items():
            assert sum(m.total for m in rows) == layer.total[quantity].total
    for kind in ("binary", "count", "real"):
        for prefix, static in (("", False), ("static.", True)):
            layers = [
                s for s in ledger.of("synapse") if s.input_class == kind and (s.time == "static") == static
            ]
            assert ledger.network[f"{prefix}synops.{kind}"].total == sum(
                s.total["synops"].total for s in layers
            )
    assert set(ledger.network.each) == {*NETWORK, *(f"static.{name}" for name in NETWORK)}
    alone = [count(graph, x[i : i + 1], {n: s[:, i : i + 1] for n, s in spikes.items()}) for i in range(3)]
    assert sum(a.network["synops.count"].total for a in alone) == ledger.network["synops.count"].total > 0
    twice = count(graph, np.concatenate([x, x]), {n: np.concatenate([s, s], 1) for n, s in spikes.items()})
    for a, b in zip(twice.layers, ledger.layers, strict=True):
        assert all(a.mean(q) == b.mean(q) for q in a.steps)


def test_pruning_a_weight_never_adds_an_operation(
    network: tuple[Graph, Array, dict[str, Array], Ledger],
) -> None:
    graph, x, spikes, before = network
    rng = np.random.default_rng(0)
    builder = GraphBuilder(graph.steps)
    for node in graph:
        op = node.op
        if isinstance(op, ops.Linear | ops.Conv):
            weight = op.weight.array() * (rng.random(op.weight.shape) < 0.5)
            op = replace(op, weight=Weight.dense(weight))
        builder.add(op, node.inputs, name=node.name)
    after = count(builder.build(), x, spikes)
    for old, new in zip(before.of("synapse"), after.of("synapse"), strict=True):
        assert new.total["synops"].total < old.total["synops"].total
        assert new.total["blind"].total == old.total["blind"].total
    for old, new in zip(before.of("neuron"), after.of("neuron"), strict=True):
        assert new.total["touched"].total <= old.total["touched"].total


def test_the_order_of_channels_and_positions_does_not_matter() -> None:
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((6, 5)) * (rng.random((6, 5)) < 0.5)
    x = values(rng, (2, 3, 5, 7), "binary")
    channels, tokens = rng.permutation(5), rng.permutation(7)
    straight = count(layer_graph(ops.Linear(Weight.dense(weight)), (5, 7)), x, {}, input_class="binary")
    op = ops.Linear(Weight.dense(weight[:, channels]))
    mixed = count(layer_graph(op, (5, 7)), x[:, :, channels][..., tokens], {}, input_class="binary")
    assert mixed.layers[0].total == straight.layers[0].total


def test_equal_steps_count_equally() -> None:
    op = ops.Linear(Weight.dense(np.random.default_rng(0).standard_normal((4, 5))))
    x = values(np.random.default_rng(1), (1, 3, 5), "binary")
    once = count(layer_graph(op, (5,), steps=1), x, {}, input_class="binary").layer("layer")
    often = count(layer_graph(op, (5,), steps=5), np.repeat(x, 5, 0), {}, input_class="binary").layer("layer")
    assert often.total["synops"].total == 5 * once.total["synops"].total > 0
    assert set(often.steps["synops"]) == set(once.steps["synops"])


def test_tokens_masked_to_zero_cost_nothing() -> None:
    rng = np.random.default_rng(0)
    op = ops.Linear(Weight.dense(rng.standard_normal((4, 5))))
    x = values(rng, (2, 3, 5, 6), "binary")
    graph = layer_graph(op, (5, 6))
    kept = x * (np.arange(6) < 4)
    masked = count(graph, kept, {}, input_class="binary").layer("layer")
    shorter = count(layer_graph(op, (5, 4)), kept[..., :4], {}, input_class="binary").layer("layer")
    assert masked.total == shorter.total
    assert (
        0
        < masked.total["synops"].total
        < count(graph, x, {}, input_class="binary").layer("layer").total["synops"].total
    )


def test_a_static_layer_runs_once_and_says_so(network: tuple[Graph, Array, dict[str, Array], Ledger]) -> None:
    ledger = network[3]
    first = ledger.of("synapse")[0]
    assert (first.time, first.rows, first.input_class) == ("static", 1, "real")
    assert ledger.network["static.synops.real"].total == first.total["synops"].total > 0
    head = ledger.layer("head")
    assert (head.time, head.rows, head.input_class) == ("final", 1, "count")


def test_what_does_not_fit_is_refused(network: tuple[Graph, Array, dict[str, Array], Ledger]) -> None:
    graph, x, spikes, _ = network
    name = next(iter(spikes))
    with pytest.raises(UserError, match=f"no spikes of {name}"):
        count(graph, x, {n: s for n, s in spikes.items() if n != name})
    with pytest.raises(UserError, match="have shape"):
        count(graph, x, {**spikes, name: spikes[name][:, :1]})
    with pytest.raises(UserError, match="are not 0 and 1"):
        count(graph, x, {**spikes, name: spikes[name] * 2})
    with pytest.raises(UserError, match="are not 0 and 1"):
        count(graph, x, {**spikes, name: np.where(spikes[name], 0.5, 0.0)})
    with pytest.raises(UserError, match="not finite"):
        count(graph, np.full_like(x, np.nan), spikes)
    with pytest.raises(UserError, match="the input has shape"):
        count(graph, x[:, :1], spikes)
    with pytest.raises(UserError, match="real-valued"):
        count(graph, x, spikes, input_class="count")
    with pytest.raises(UserError, match="no sample"):
        Counter(graph).ledger()
    with pytest.raises(UserError, match="a batch of 0"):
        count_executor(graph, Interpreter(graph), x, batch=0)
    with pytest.raises(UserError, match="no sample to count"):
        count_executor(graph, Interpreter(graph), x[:0])
    with pytest.raises(UserError, match="not numbers"):
        count(graph, x.astype(str), spikes)
    with pytest.raises(UserError, match="beyond"):
        count(graph, x * np.float32(1e30), spikes)


def test_a_refused_batch_leaves_the_count_as_it_was(
    network: tuple[Graph, Array, dict[str, Array], Ledger],
) -> None:
    graph, x, spikes, ledger = network
    counter = Counter(graph)
    counter.add(x, spikes)
    with pytest.raises(UserError):
        counter.add(x, {})
    assert counter.ledger() == ledger


def test_an_executor_is_driven_over_the_data(network: tuple[Graph, Array, dict[str, Array], Ledger]) -> None:
    graph, x, _, ledger = network
    seen: list[int] = []
    found = count_executor(graph, Interpreter(graph), x, batch=2, progress=seen.append)
    assert found == ledger and seen == [2, 1]
    deployed = run_pipeline(graph, PIPELINES["onnx"]).graph
    through_source = count_executor(deployed, Interpreter(graph), x, source=graph)
    assert through_source.layers == count_executor(deployed, Interpreter(deployed), x).layers


def test_large_values_are_summed_exactly() -> None:
    """Beyond what int64 holds: sums of a real input are Python integers then."""
    x = np.array([[[2.0**50, -3.0]], [[2.0**50, 0.5]]]).reshape(2, 1, 2)
    op = ops.Linear(Weight.dense(np.ones((3000, 2))))
    layer = count(layer_graph(op, (2,)), x, {}).layer("layer")
    assert layer.total["magnitude"].total == (2**51 + 3) * FIXED + FIXED // 2
    assert layer.total["blind_sum"].total == 3000 * ((2**51 - 3) * FIXED + FIXED // 2)
    assert layer.total["magnitude"].squares == layer.total["magnitude"].total ** 2


def test_a_large_layer_is_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = spikformer_graph(5, masked=0.4)
    x = random_inputs(graph)
    spikes = interpret(graph, x).spikes
    whole = count(graph, x, spikes)
    monkeypatch.setattr("stdeploy.energy.synaptic.CHUNK", 200)
    assert count(graph, x, spikes) == whole


def test_event_frames_count_as_integers() -> None:
    graph = spikformer_graph(5, layout="TB")
    x = random_inputs(graph)
    spikes = interpret(graph, x).spikes
    real, frames = count(graph, x, spikes), count(graph, x, spikes, input_class="count")
    assert real.layer("patch_embed.proj0_conv").input_class == "real"
    first = frames.layer("patch_embed.proj0_conv")
    assert first.input_class == "count" and first.total["magnitude"].total == x.sum()
    assert first.total["synops"] == real.layer("patch_embed.proj0_conv").total["synops"]
    assert with_input_class(graph, "real") is graph
    assert set(spikes_of(graph, graph, spikes)) == set(spikes)


def test_a_bias_per_step_on_a_static_input_leaves_its_operations_static() -> None:
    builder = GraphBuilder(3)
    x = builder.add(ops.Input((4,), ("channel",)), name="input")
    weight = np.arange(8, dtype=np.float32).reshape(2, 4)  # one zero
    y = builder.add(ops.Linear(Weight.dense(weight), np.ones((3, 2), np.float32)), (x,), name="layer")
    builder.add(ops.Output("y", "TB"), (y,), name="output")
    (layer,) = count(builder.build(), np.ones((2, 4), np.float32), {}).layers
    assert layer.time == "static" and [row.total for row in layer.steps["synops"]] == [2 * 7]


def test_a_network_without_layers_counts_nothing() -> None:
    builder = GraphBuilder(2)
    x = builder.add(ops.Input((3,), ("channel",)), name="input")
    builder.add(ops.Output("y"), (x,), name="output")
    ledger = count(builder.build(), np.ones((2, 3), np.float32), {})
    assert not ledger.layers and ledger.samples == 2
