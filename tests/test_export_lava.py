"""Graphs as Lava folders: the plan, and the numpy reference against the interpreter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stdeploy.errors import UnsupportedError, UserError
from stdeploy.exporters import lava
from stdeploy.exporters.lava.lower import Lowering
from stdeploy.exporters.lava.options import Options
from stdeploy.exporters.lava.plan import Attention, Delay, Plan, Population, Synapses
from stdeploy.graph import Graph, GraphBuilder, Weight, ops
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.weight import Array
from stdeploy.passes.pipelines import PIPELINES, run_pipeline
from stdeploy.runtime.lava_reference import LavaReference
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph

NETS: dict[str, dict[str, Any]] = {
    "ragged heads": {},
    "values first, two blocks": {"order": "kv", "depth": 2, "steps": 5, "layout": "TB", "seed": 3},
    "one step": {"steps": 1, "layout": "BT", "seed": 2},
    "a tau, threshold and reset per channel": {"per_channel": True, "image": (2, 8, 8), "dim": 6, "seed": 4},
    "masked": {"masked": 0.4, "seed": 5},
}


def lowered(graph: Graph, **options: Any) -> Plan:
    low = Lowering(graph, Options.parse(options)).run()
    assert low.refused == []
    return low.plan


def passed(**options: Any) -> Graph:
    return run_pipeline(spikformer_graph(**options), PIPELINES["lava"]).graph


def exported(graph: Graph, folder: Path, **options: Any) -> LavaReference:
    lava.export(graph, folder, options)
    return LavaReference(folder)


@pytest.mark.parametrize("attention", ["process", "units"])
@pytest.mark.parametrize("net", NETS)
def test_spikes_equal_the_interpreters(net: str, attention: str, tmp_path: Path) -> None:
    graph = passed(**NETS[net])
    x = random_inputs(graph, 4)
    assert every_layer_fires(graph, x)
    reference = exported(graph, tmp_path / "net", attention=attention, max_units=200_000)
    wanted = interpret(graph, x)
    for forced in (None, wanted.spikes):
        got = reference.run(x, forced)
        for name, spikes in wanted.spikes.items():
            np.testing.assert_array_equal(got.spikes[name], spikes, err_msg=name)
        np.testing.assert_allclose(got.outputs["output"], wanted.outputs["output"], atol=1e-12)


def test_forced_spikes_reach_the_readers_only(tmp_path: Path) -> None:
    graph = passed()
    x = random_inputs(graph, 2)
    free, name = interpret(graph, x), "patch_embed.proj0_lif"
    forced = {name: 1 - free.spikes[name]}
    wanted, got = interpret(graph, x, forced=forced), exported(graph, tmp_path / "net").run(x, forced)
    np.testing.assert_array_equal(got.spikes[name], free.spikes[name])
    later = "patch_embed.proj1_lif"
    np.testing.assert_array_equal(got.spikes[later], wanted.spikes[later])
    assert (wanted.spikes[later] != free.spikes[later]).any()


def test_every_input_meets_in_time() -> None:
    """What a process sums has to carry the same step of the same sample; a hop takes one step."""
    for attention in ("process", "units"):
        plan = lowered(passed(depth=2), attention=attention, max_units=200_000)
        for name, process in plan.processes.items():
            arrivals = {plan.valid[s] for port in plan.inputs[name].values() for s in port}
            assert len(arrivals) <= 1, name
            hop = (
                process.steps
                if isinstance(process, Delay)
                else int(isinstance(process, Synapses | Attention))
            )
            assert not arrivals or plan.valid[name] == arrivals.pop() + hop
        assert len({plan.valid[name] for name in plan.output}) == 1


def test_queries_keys_and_values_are_one_population_where_they_can_be() -> None:
    def attention_inputs(graph: Graph) -> list[set[str]]:
        plan = lowered(graph, attention="process")
        return [set(plan.inputs[n]) for n, p in plan.processes.items() if isinstance(p, Attention)]

    assert attention_inputs(passed(neurons="spikingjelly")) == [{"qkv"}]
    assert attention_inputs(passed(per_channel=True, dim=4, heads=(2,), v_heads=(2,))) == [{"q", "k", "v"}]


def test_a_delay_serves_all_its_readers() -> None:
    plan = lowered(passed(depth=2), attention="process")
    keys = [(plan.inputs[n]["s_in"], p.steps) for n, p in plan.processes.items() if isinstance(p, Delay)]
    assert keys and len(keys) == len(set(keys))


def test_attention_units_are_as_many_as_stated() -> None:
    graph = passed()
    plan = lowered(graph, attention="units", max_units=200_000)
    product = next(n for n in graph if isinstance(n.op, ops.MatMul))
    assert isinstance(product.op, ops.MatMul)
    tokens = 9
    wanted = (3 * 2 + 2 * 3) * tokens**2
    units = [p.size for p in plan.processes.values() if isinstance(p, Population) and p.role == "attention"]
    assert units == [wanted] and plan.counts()["attention_neurons"] == wanted


def test_too_many_units_are_refused_and_auto_takes_the_process() -> None:
    graph = passed()
    (refusal,) = lava.check(graph, {"attention": "units", "max_units": 500})
    assert "972 units, more than 500" in refusal.reason and refusal.hint is not None
    plan = lowered(graph, max_units=500)
    assert any(isinstance(p, Attention) for p in plan.processes.values())
    assert not any(isinstance(p, Attention) for p in lowered(graph, max_units=972).processes.values())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"speed": 1}, "no option speed"),
        ({"attention": "magic"}, "attention 'magic' is not supported"),
        ({"max_units": 0}, "positive integer"),
        ({"max_synapses": True}, "positive integer"),
        ({"fixed": 1}, "true or false"),
        ({"input_unit": 0.0}, "positive number"),
    ],
)
def test_options_are_checked(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        lava.check(passed(), options)


def small(op: ops.Op, *, shape: tuple[int, ...] = (3, 4, 5), steps: int = 3, twice: bool = False) -> Graph:
    """input -> Linear -> neuron -> `op` (on the spikes, twice where it takes two) -> output each step."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder(steps)
    x = builder.add(ops.Input(shape, ("channel", "y", "x")[: len(shape)], "TB"), name="input")
    weight = Weight.dense(rng.standard_normal((4, shape[0])).astype(np.float32))
    x = builder.add(ops.Linear(weight, rng.standard_normal(4)), (x,), name="fc", source="fc")
    neuron = ops.Neuron(np.asarray(1.7), np.asarray(0.6), np.asarray(-0.1))
    x = builder.add(neuron, (x,), name="lif", source="lif")
    x = builder.add(op, (x, x) if twice else (x,), name="op", source="block.op")
    builder.add(ops.Output("output", "TB"), (x,), name="out")
    return builder.build()


OPERATORS: dict[str, tuple[ops.Op, bool]] = {
    "avgpool": (ops.AvgPool((3, 2), (2, 1), (1, 0)), False),
    "maxpool": (ops.MaxPool((3, 3), (2, 2), (1, 1), (1, 1)), False),
    "dilated ceil maxpool": (ops.MaxPool((2, 2), (2, 2), (0, 0), (2, 2), True), False),
    "mean over channels": (ops.Reduce((0,), True), False),
    "sum over a middle axis": (ops.Reduce((1,), False, True), False),
    "x + x": (ops.Add(), True),
    "scale": (ops.Scale(0.3), False),
    "affine": (ops.Affine(np.array([1.5, -2, 0.5, 1]), np.array([0.1, 0, -1, 2])), False),
    "flatten": (ops.Flatten(), False),
    "concat": (ops.Concat(1), True),
    "slice": (ops.Slice(2, 1, 4), False),
    "depthwise conv": (
        ops.Conv(
            Weight.dense(np.random.default_rng(1).standard_normal((8, 1, 3, 2)).astype(np.float32)),
            np.arange(8.0),
            (1, 2),
            (1, 0),
            (1, 2),
            4,
        ),
        False,
    ),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator(name: str, tmp_path: Path) -> None:
    op, twice = OPERATORS[name]
    graph = small(op, twice=twice)
    x = random_inputs(graph, 3)
    assert every_layer_fires(graph, x)
    wanted, got = interpret(graph, x), exported(graph, tmp_path / "net").run(x)
    np.testing.assert_array_equal(got.spikes["lif"], wanted.spikes["lif"])
    np.testing.assert_allclose(got.outputs["output"], wanted.outputs["output"], atol=1e-12)


def repeated_sums() -> Graph:
    """x + x, (x + x) + x and their sum with itself: what Lava calls a connection made twice."""
    rng = np.random.default_rng(0)
    builder = GraphBuilder(3)
    x = builder.add(ops.Input((3, 4), ("channel", "token"), "TB"), name="input")
    weight = Weight.dense(rng.standard_normal((4, 3)).astype(np.float32))
    neuron = ops.Neuron(np.asarray(1.7), np.asarray(0.2), np.asarray(-0.1))
    x = builder.add(ops.Linear(weight, rng.standard_normal(4)), (x,), name="fc")
    x = builder.add(neuron, (x,), name="lif")
    two = builder.add(ops.Add(), (x, x), name="two")
    three = builder.add(ops.Add(), (two, x), name="three")
    six = builder.add(ops.Add(), (three, three), name="six")
    last = ops.Neuron(np.asarray(1.7), np.asarray(3.0), np.asarray(-0.1))
    y = builder.add(last, (six,), name="lif2")
    builder.add(ops.Output("output", "TB"), (y,), name="out")
    return builder.build()


def test_a_port_feeds_an_input_once(tmp_path: Path) -> None:
    graph = repeated_sums()
    x = random_inputs(graph, 3)
    assert every_layer_fires(graph, x)
    reference = exported(graph, tmp_path / "net")
    for process in reference.file.processes:
        for sources in process["inputs"].values():
            assert len(set(sources)) == len(sources), process["name"]
    wanted, got = interpret(graph, x), reference.run(x)
    for name, spikes in wanted.spikes.items():
        np.testing.assert_array_equal(got.spikes[name], spikes, err_msg=name)


@pytest.mark.parametrize("mode", ["mean", "sum", "last"])
def test_a_bias_behind_a_readout(mode: Any, tmp_path: Path) -> None:
    builder = GraphBuilder(3)
    x = builder.add(ops.Input((2,), ("channel",)), name="input")
    x = builder.add(ops.Neuron(np.asarray(2.0), np.asarray(0.3), np.asarray(0.0)), (x,), name="lif")
    x = builder.add(ops.Readout(mode), (x,), name="readout")
    weight = Weight.dense(np.array([[1.0, 2], [3, 5], [-1, 1]], dtype=np.float32))
    x = builder.add(ops.Linear(weight, np.array([0.5, -1, 7])), (x,), name="head")
    builder.add(ops.Output(), (x,), name="out")
    graph = builder.build()
    inputs = np.array([[0.4, 0.9], [1.5, 0.2]])
    got = exported(graph, tmp_path / "net").run(inputs).outputs["output"]
    np.testing.assert_allclose(got, interpret(graph, inputs).outputs["output"], atol=1e-12)


def test_everything_that_cannot_be_written_is_listed_at_once(tmp_path: Path) -> None:
    builder = GraphBuilder(2)
    x = builder.add(ops.Input((2, 3), ("channel", "token"), "TB"), name="input")
    soft = ops.Neuron(np.asarray(2.0), np.asarray(1.0), None)
    a = builder.add(soft, (x,), name="soft", source="net.soft")
    b = builder.add(ops.MaxPool((2,), (2,), (0,), (1,)), (x,), name="pool", source="net.pool")
    builder.add(ops.Output("a", "TB"), (a,), name="a")
    builder.add(ops.Output("b", "TB"), (b,), name="b")
    graph = builder.build()
    found = {(u.where, u.reason.split(":")[0].split(",")[0]) for u in lava.check(graph)}
    assert ("net.soft", "soft reset") in found
    assert any(where == "net.pool" and "maximum over real" in reason for where, reason in found)
    assert any("the graph has 2" in reason for _, reason in found)
    with pytest.raises(UnsupportedError):
        lava.export(graph, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def constant_drive(leak: Array) -> Graph:
    builder = GraphBuilder(2)
    x = builder.add(ops.Constant(np.ones((3, 2)), ("channel", "token")), name="one")
    x = builder.add(ops.Neuron(leak, np.asarray(0.5), np.asarray(0.0)), (x,), name="lif", source="net.lif")
    builder.add(ops.Output("output", "TB"), (x,), name="out")
    builder.add(ops.Input((1,), ("channel",)), name="input")
    return builder.build()


def test_a_constant_alone_and_too_many_taus_are_refused() -> None:
    (refusal,) = [u for u in lava.check(constant_drive(np.asarray(2.0))) if u.where == "net.lif"]
    assert "constant alone" in refusal.reason
    graph = small(ops.Scale(1.0))
    many = ops.Neuron(np.linspace(1.5, 3, 40), np.asarray(1.0), np.asarray(0.0))
    builder = GraphBuilder(2)
    x = builder.add(ops.Input((40, 2), ("channel", "token"), "TB"), name="input")
    x = builder.add(many, (x,), name="lif", source="net.lif")
    builder.add(ops.Output("output", "TB"), (x,), name="out")
    (refusal,) = lava.check(builder.build())
    assert "40 distinct tau" in refusal.reason and lava.check(graph) == []
