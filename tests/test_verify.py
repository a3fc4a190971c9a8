"""Parity: rounding at the threshold is told apart from bugs, whoever makes them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from stdeploy.errors import ParityError, UserError
from stdeploy.graph import Graph, GraphBuilder, Weight, ops, rewrite
from stdeploy.graph.execution import Execution
from stdeploy.graph.interpreter import Interpreter
from stdeploy.graph.rounding import drives, membrane
from stdeploy.graph.weight import Array
from stdeploy.verify import batch_for, compare, require
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph

STYLES: list[dict[str, Any]] = [
    {"steps": 1, "seed": 1},
    {"steps": 5, "layout": "BT", "order": "kv", "heads": (3, 1, 4), "v_heads": (2, 2, 3), "seed": 2},
    {"steps": 3, "per_channel": True, "seed": 3},
    {"steps": 4, "neurons": "mixed", "depth": 2, "seed": 4},
    {"steps": 2, "neurons": "spikingjelly", "masked": 0.5, "batch_norm": False, "seed": 5},
]


def close_graph(threshold: float = 1.0, soft: bool = False) -> Graph:
    """Two LIF layers whose membranes often land on the threshold: sums of 0.1 and 0.3 that float32 rounds."""
    rng = np.random.default_rng(5)
    b = GraphBuilder(5)
    x = b.add(ops.Input((6,), ("channel",), "TB"), name="input")
    weight = rng.choice([0.1, 0.3, 0.7, -0.2], (40, 6))
    reset = None if soft else np.array(-0.1)
    for k, tau in enumerate((3.0, 1.7)):
        x = b.add(ops.Linear(Weight.dense(weight), np.full(40, 0.1)), (x,), name=f"fc{k}", source=f"fc{k}")
        neuron = ops.Neuron(np.array(tau), np.array(threshold), reset, decay_input=bool(k))
        x = b.add(neuron, (x,), name=f"lif{k}", source=f"lif{k}")
        weight = rng.choice([0.1, 0.3, -0.2], (40, 40))
    y = b.add(ops.Readout("mean"), (x,), name="readout")
    y = b.add(ops.Linear(Weight.dense(weight[:7]), np.full(7, 0.3)), (y,), name="head")
    b.add(ops.Output(), (y,), name="output")
    return b.build()


def tenths(n: int = 400) -> Array:
    """Inputs `[5, n, 6]` in multiples of 0.1."""
    return (np.random.default_rng(0).integers(-5, 12, (5, n, 6)) / 10).astype(np.float32)


@dataclasses.dataclass
class Broken:
    """An executor that runs another graph than it should, or tampers with the result."""

    graph: Graph
    tamper: Any = None
    name: str = "broken"

    def run(self, inputs: Array, forced: Mapping[str, Array] | None = None) -> Execution:
        done = Interpreter(self.graph, np.float32).run(inputs, forced)
        return self.tamper(done, forced) if self.tamper else done


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_float32_equals_float64_but_for_rounding(style: dict[str, Any]) -> None:
    graph = spikformer_graph(**style)
    inputs = random_inputs(graph, 7, 3)
    assert every_layer_fires(graph, inputs)
    report = compare(
        Interpreter(graph, np.float32), Interpreter(graph), graph, inputs, batch=3, labels=np.arange(7) % 3
    )
    assert report.ok, report.problems
    assert report.samples == 7
    assert report.spikes_compared == 7 * graph.steps * sum(int(np.prod(n.value.shape)) for n in graph.neurons)
    assert report.outputs[0].argmax_agree == 7
    assert report.outputs[0].reference_correct == report.outputs[0].candidate_correct
    assert not report.warnings


@pytest.mark.parametrize("soft", [False, True])
def test_flips_at_the_threshold_are_counted_and_explained(soft: bool) -> None:
    graph = close_graph(soft=soft)
    report = compare(Interpreter(graph, np.float32), Interpreter(graph), graph, tenths())
    assert report.ok, report.problems
    explained = sum(layer.explained for layer in report.layers)
    assert explained > 0, "the inputs no longer meet the threshold: the test shows nothing"
    assert all(0 < layer.largest_share_of_bound <= 1 for layer in report.layers if layer.explained)
    assert report.spike_mismatches == explained + sum(layer.after_flip for layer in report.layers)
    listed = [m for m in report.mismatches if m.kind == "rounding"]
    assert len(listed) == explained
    assert all(abs(m.distance) <= m.bound for m in listed)
    assert report.first_divergence is not None


def test_the_bound_holds_and_is_not_vacuous() -> None:
    """Float32 membranes lie within the bound of the float64 ones, and the bound is below 1e-4 of the threshold."""
    graph = spikformer_graph(steps=5, seed=7)
    inputs = random_inputs(graph, 4, 9)
    run = Interpreter(graph, np.float32, membranes=True).run(inputs)
    exact = drives(graph, inputs, run.spikes)
    for node in graph.neurons:
        assert isinstance(node.op, ops.Neuron)
        h = membrane(node.op, exact.neurons[node.name], run.spikes[node.name])
        assert np.all(np.abs(run.membranes[node.name] - h.value) <= h.error), node.name
        assert np.median(h.error) < 1e-4 * np.abs(node.op.v_threshold).max(), node.name
    (label,) = exact.outputs
    assert np.all(np.abs(run.outputs[label] - exact.outputs[label].value) <= exact.outputs[label].error)


def shifted(graph: Graph, name: str, by: float) -> Graph:
    """`graph` with one neuron's threshold moved."""

    def visit(builder: GraphBuilder, node: Any, inputs: tuple[str, ...]) -> str | None:
        if node.name != name:
            return None
        op = dataclasses.replace(node.op, v_threshold=node.op.v_threshold + by)
        return builder.add(op, inputs, name=node.name, source=node.source)

    return rewrite(graph, visit)


def test_a_tie_lost_in_exact_arithmetic_is_a_bug() -> None:
    """`>` in the place of `>=`, seen by either side, where nothing rounds."""
    b = GraphBuilder(3)
    x = b.add(ops.Input((4,), ("channel",), "TB"), name="input")
    b.add(ops.Neuron(np.array(2.0), np.array(1.0), np.array(0.0)), (x,), name="lif")
    b.add(ops.Output("output", "TB"), ("lif",), name="output")
    graph = b.build()
    inputs = np.random.default_rng(1).integers(0, 4, (3, 50, 4)).astype(np.float32)
    strict = Broken(shifted(graph, "lif", 1e-6))
    report = compare(Interpreter(graph, np.float32), strict, graph, inputs)
    assert report.layers[0].unexplained > 0 and not report.layers[0].reference_unexplained
    report = compare(strict, Interpreter(graph, np.float32), graph, inputs)
    assert report.layers[0].reference_unexplained > 0 and not report.layers[0].unexplained
    assert any(m.kind == "unexplained" for m in report.mismatches)


@pytest.mark.parametrize("which", [0, -1])
def test_a_wrong_threshold_is_a_bug_of_exactly_that_layer(which: int) -> None:
    graph = spikformer_graph(steps=4, seed=1)
    name = graph.neurons[which].name
    inputs = random_inputs(graph, 6, 3)
    report = compare(Interpreter(graph, np.float32), Broken(shifted(graph, name, 0.02)), graph, inputs)
    assert not report.ok
    assert [layer.name for layer in report.layers if layer.unexplained] == [name]
    assert all(m.layer == name for m in report.mismatches if m.kind == "unexplained")
    with pytest.raises(ParityError, match=name.replace(".", r"\.")) as caught:
        require(report)
    assert caught.value.exit_code == 1
    assert caught.value.report is report


def test_a_reference_that_contradicts_the_graph_is_found() -> None:
    graph = spikformer_graph(steps=3, seed=1)
    name = graph.neurons[2].name
    report = compare(
        Broken(shifted(graph, name, 0.02)), Interpreter(graph), graph, random_inputs(graph, 6, 3)
    )
    assert any(name in p and "contradict" in p for p in report.problems)


def test_wrong_outputs_are_found_though_every_spike_agrees() -> None:
    graph = spikformer_graph(steps=2, seed=1)
    inputs = random_inputs(graph, 5, 3)

    def when_free(done: Execution, forced: Mapping[str, Array] | None) -> Execution:
        shift = 0.0 if forced else 1e-2
        return dataclasses.replace(done, outputs={k: v + shift for k, v in done.outputs.items()})

    report = compare(Interpreter(graph, np.float32), Broken(graph, when_free), graph, inputs)
    assert report.spike_mismatches == 0
    assert report.outputs[0].unexplained_samples == 5
    assert report.outputs[0].forced_unexplained_samples == 0
    assert not report.ok


def test_outputs_that_are_no_numbers_are_found() -> None:
    graph = close_graph()

    def spoil(done: Execution, forced: Mapping[str, Array] | None) -> Execution:
        return dataclasses.replace(done, outputs={k: v * np.nan for k, v in done.outputs.items()})

    report = compare(Interpreter(graph, np.float32), Broken(graph, spoil), graph, tenths(30))
    assert report.outputs[0].max_difference == np.inf
    assert report.outputs[0].forced_unexplained_samples == report.outputs[0].unexplained_samples == 30


def test_missing_spikes_are_a_problem_not_a_pass() -> None:
    graph = spikformer_graph(steps=2, seed=1)
    name = graph.neurons[1].name

    def hide(done: Execution, forced: Mapping[str, Array] | None) -> Execution:
        return dataclasses.replace(done, spikes={k: v for k, v in done.spikes.items() if k != name})

    report = compare(Interpreter(graph), Broken(graph, hide), graph, random_inputs(graph, 2))
    assert report.unobserved == (name,)
    assert not report.ok


def test_kept_channels_are_compared_with_the_models() -> None:
    graph = close_graph()
    kept = np.array([3, 4, 17, 39])

    def visit(builder: GraphBuilder, node: Any, inputs: tuple[str, ...]) -> str | None:
        op = node.op
        if node.name == "fc0":
            op = ops.Linear(Weight.dense(op.weight.array()[kept]), op.bias[kept])
        elif node.name == "lif0":
            op = dataclasses.replace(op, kept=kept)
        elif node.name == "fc1":
            op = ops.Linear(Weight.dense(op.weight.array()[:, kept]), op.bias)
        else:
            return None
        return builder.add(op, inputs, name=node.name, source=node.source)

    def only(builder: GraphBuilder, node: Any, inputs: tuple[str, ...]) -> str | None:
        if node.name != "fc1":
            return None
        weight = node.op.weight.array().copy()
        weight[:, np.setdiff1d(np.arange(40), kept)] = 0
        op = ops.Linear(Weight.dense(weight), node.op.bias)
        return builder.add(op, inputs, name=node.name, source=node.source)

    masked = rewrite(graph, only)
    smaller = rewrite(masked, visit)
    inputs = tenths(60)
    report = compare(Interpreter(masked, np.float32), Interpreter(smaller), masked, inputs, exported=smaller)
    assert report.ok, report.problems
    assert report.layers[0].spikes_compared == 60 * 5 * len(kept)
    again = compare(Interpreter(smaller), Interpreter(smaller, np.float32), smaller, inputs)
    assert again.ok
    with pytest.raises(UserError, match="lacks"):
        compare(Interpreter(smaller), Interpreter(masked), smaller, inputs, exported=masked_all(masked))


def masked_all(graph: Graph) -> Graph:
    """`graph` that claims to keep channel 40 of lif0, which does not exist."""

    def visit(builder: GraphBuilder, node: Any, inputs: tuple[str, ...]) -> str | None:
        if node.name != "lif0":
            return None
        op = dataclasses.replace(node.op, kept=np.arange(1, 41))
        return builder.add(op, inputs, name=node.name, source=node.source)

    return rewrite(graph, visit)


def test_report_forms() -> None:
    graph = close_graph()
    report = compare(Interpreter(graph, np.float32), Interpreter(graph), graph, tenths(50))
    document = json.loads(json.dumps(report.to_dict()))
    assert document["schema_version"] == 1
    assert document["ok"] is True
    assert len(document["mismatches"]) == len(report.mismatches) > 0
    console = Console(width=160)
    with console.capture() as capture:
        console.print(report.render(limit=2))
    text = capture.get()
    assert "lif0" in text and "h-θ = " in text
    assert f"{len(report.mismatches) - 2} more" in text
    assert report.summary() in text.replace("\n", "")


def test_refusals() -> None:
    graph = close_graph()
    runner = Interpreter(graph)
    with pytest.raises(UserError, match="no sample"):
        compare(runner, runner, graph, np.zeros((5, 0, 6), np.float32))
    with pytest.raises(UserError, match="3 labels"):
        compare(runner, runner, graph, tenths(4), labels=np.zeros(3))
    with pytest.raises(UserError, match="the model takes 5xBx6"):
        compare(runner, runner, graph, np.zeros((5, 2, 7), np.float32))
    assert 1 <= batch_for(graph, 10**5) < batch_for(graph) <= 64
