"""Chip budgets: synapses against dense matrices, limits against published numbers, files against hostile ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest

from stdeploy.chips import Population, judge, load_chip, measure_network, read_network, shipped
from stdeploy.chips.profile import LIMITS
from stdeploy.cli.app import run
from stdeploy.errors import UnsupportedError, UserError
from stdeploy.exporters.nir import export
from stdeploy.graph import Graph, GraphBuilder, ops
from stdeploy.graph.file import save_graph
from stdeploy.graph.weight import Weight
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.placement import model_part
from stdeploy.runtime.nir_file import NirFile
from tests.graphs import spikformer_graph
from tests.rows import Net

GRAPH = spikformer_graph(steps=2, image=(2, 8, 8), seed=3)


def lowered(**how: Any) -> Graph:
    return run_pipeline(spikformer_graph(**how), PIPELINES["nir"]).graph


@pytest.mark.parametrize(
    "how",
    [{"masked": 0.5}, {"depth": 2, "steps": 1, "order": "kv", "heads": (3, 1, 1), "v_heads": (2, 2, 1)}],
)
def test_populations_add_up_to_what_the_exporter_wrote(how: dict[str, Any], tmp_path: Path) -> None:
    graph = lowered(**how)
    export(graph, tmp_path / "net.nir")
    populations = measure_network(read_network(tmp_path / "net.nir"))
    counts = NirFile(tmp_path / "net.nir").counts
    for role in ("model", "pooling", "attention"):
        assert sum(p.neurons for p in populations if p.role == role) == counts[f"{role}_neurons"]
    head = np.count_nonzero(graph["head"].op.weight.array())
    assert sum(p.weights for p in populations) == counts["nonzero_weights"] - head
    assert {p.layer for p in populations if p.layer} == {n.name for n in graph.neurons}
    export(graph, tmp_path / "compact.nir", {"dialect": "compact"})
    compact = measure_network(read_network(tmp_path / "compact.nir"))
    same_in_both = ("name", "neurons", "synapses", "fan_in", "fan_out", "destinations")
    assert [[getattr(p, k) for k in same_in_both] for p in populations] == [
        [getattr(p, k) for k in same_in_both] for p in compact
    ]
    by_layer = {p.layer: p for p in populations}
    assert by_layer["block.0.mlp.fc2_lif"].fan_in == by_layer["block.0.mlp.fc1_lif"].neurons // 9
    tokens = 9
    kv = next(p for p in populations if p.name.endswith(".kv"))
    assert (kv.fan_in, kv.values, kv.bits) == (2, 1, 1)
    first = next(p for p in populations if p.name.endswith(f"digit{tokens.bit_length() - 1}"))
    assert first.fan_in == tokens + 1  # every token's pair, and the query


def test_a_plain_chain_has_the_synapses_of_its_layers(tmp_path: Path) -> None:
    net = Net(3)
    x = net.lif(net.conv(net.x, 4, "a_conv", 1), "a")
    x = net.lif(net.conv(x, 5, "b_conv", 0), "b")
    x = net.add(ops.Flatten(), x, name="flat")
    graph = net.done(net.linear(net.lif(net.linear(x, 6, "c_fc"), "c"), 2, "head"))
    export(graph, tmp_path / "net.nir")
    populations = {
        p.name.removeprefix("net."): p for p in measure_network(read_network(tmp_path / "net.nir"))
    }
    layers = model_part(graph).layers
    for name, layer in (("a", "a_conv"), ("b", "b_conv"), ("c", "c_fc")):
        assert populations[name].synapses == layers[layer]["synapses"]
        assert populations[name].weights == layers[layer]["weights"]
    assert populations["b"].fan_in == 4 * 9 and populations["c"].fan_out == 0
    assert populations["a"].fan_out == 5 * 2 * 3  # a middle neuron of 4 x 5 in 2 x 3 windows of 3 x 3


def test_a_pair_of_neurons_that_two_paths_connect_is_one_synapse(tmp_path: Path) -> None:
    net = Net(2)
    first = net.lif(net.conv(net.x, 3, "a_conv", 1), "a")
    weight = np.zeros((3, 3, 3, 3))
    weight[:, :, 1, 1] = 1.0 - np.eye(3)
    weight[0, 0, 0, 0] = weight[1, 1, 1, 1] = 0.5
    op = ops.Conv(Weight.dense(weight), np.full(3, 0.4), (1, 1), (1, 1), (1, 1))
    branch = net.add(op, first, name="b_conv")
    both = net.lif(net.add(ops.Add(), branch, first, name="add"), "b")
    graph = net.done(net.linear(net.add(ops.Reduce((1, 2), True), both, name="m"), 2, "head"))
    export(graph, tmp_path / "net.nir")
    b = next(p for p in measure_network(read_network(tmp_path / "net.nir")) if p.name.endswith("b"))
    # 4 x 5 positions: six pairs of channels, three equals (channel 1's twice), channel 0's corner within the map
    assert (b.synapses, b.fan_in, b.values) == (20 * 9 + 12, 4, 2)


def test_broadcast_chains_reach_every_position_once(tmp_path: Path) -> None:
    """Average pools hand one spike to n positions over n! paths: still one synapse each."""
    net = Net(1)
    gate = net.add(ops.Reduce((1, 2), False, True), net.lif(net.conv(net.x, 3, "g_conv", 1), "s"), name="sum")
    gate = net.lif(gate, "gate", 2.5)
    body = net.lif(net.conv(net.x, 3, "b_conv", 1), "body")
    both = net.add(ops.Mul(), gate, body, name="both")
    graph = net.done(net.linear(net.add(ops.Reduce((1, 2), True), both, name="m"), 2, "head"))
    export(graph, tmp_path / "net.nir")
    populations = {
        p.name.removeprefix("net."): p for p in measure_network(read_network(tmp_path / "net.nir"))
    }
    assert populations["gate"].fan_in == 20 and populations["gate"].fan_out == 20
    assert (populations["both"].fan_in, populations["both"].synapses) == (2, 2 * 60)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_numbers_have_a_source(name: str) -> None:
    chip = load_chip(name)
    assert chip.name == name and set(chip.limits) == set(LIMITS)
    known = [limit for limit in chip.limits.values() if limit is not None]
    assert len(known) >= 3 and chip.unknown
    for limit in known:
        assert limit.quote and limit.means and chip.sources[limit.source]["url"].startswith("https://")
    assert {limit.source for limit in known} == set(chip.sources)


def test_published_totals_agree_with_the_cores() -> None:
    neurons = load_chip("speck2").limits["neurons_per_core"]
    assert neurons is not None and sum(neurons.numbers) == 327_680  # "0.32M", the paper's 327K
    memory = load_chip("spinnaker2").limits["memory_per_core"]
    assert memory is not None and memory.number == 131_072


GOOD = """
title = "Toy"
maker = "Nobody"
about = "two cores"
checked = "2026-01-01"
[sources.s]
citation = "c"
url = "https://example.org"
[limits]
""" + "\n".join(f'{name} = "unknown"' for name in LIMITS)


def entry(name: str, value: Any, unit: str) -> str:
    table = f"{{value = {json.dumps(value)}, unit = '{unit}', means = 'm', source = 's', quote = 'q'}}"
    return f"{name} = {table}"


def chip_file(folder: Path, **limits: tuple[Any, str]) -> str:
    text = GOOD
    for name, (value, unit) in limits.items():
        text = text.replace(f'{name} = "unknown"', entry(name, value, unit))
    (folder / "toy.toml").write_text(text)
    return str(folder / "toy.toml")


UNIT = Population("p", "p", "model", "lif-hard-reset", 100, 900, 9, 12, 2, 36, 30, 8)


@pytest.mark.parametrize(
    ("limits", "wanted", "cores", "chips"),
    [
        ({"fan_in": (9, "synapses"), "fan_out": (12, "synapses"), "weight_bits": (8, "bits")}, {}, {}, {}),
        ({"fan_in": (8, "synapses")}, {("fan_in", "a"): 9 / 8, ("fan_in", "b"): 9 / 8}, {}, {}),
        ({"fan_out": (6, "synapses")}, {("fan_out", "a"): 2.0, ("fan_out", "b"): 2.0}, {}, {}),
        (
            {"destinations": (1, "populations")},
            {("destinations", "a"): 2.0, ("destinations", "b"): 2.0},
            {},
            {},
        ),
        ({"weight_bits": (4, "bits")}, {("weight_bits", "a"): 2.0, ("weight_bits", "b"): 2.0}, {}, {}),
        ({"neurons_per_chip": (199, "neurons")}, {("neurons_per_chip", ""): 200 / 199}, {}, {"neurons": 2}),
        ({"neurons_per_core": (67, "neurons")}, {}, {"neurons": 3}, {}),
        (
            {"neurons_per_core": (67, "neurons"), "cores_per_chip": (2, "cores")},
            {("neurons_per_core", ""): 1.5},
            {"neurons": 3},
            {"neurons": 2},
        ),
        (
            {"neurons_per_core": ([60, 90], "neurons"), "cores_per_chip": (2, "cores")},
            {("neurons_per_core", ""): 1.5},
            {"neurons": 3},
            {"neurons": 2},
        ),
        (
            {"populations_per_core": (1, "populations"), "weights_per_core": ([30, 20], "weights")},
            {("weights_per_core", "a"): 1.2, ("weights_per_core", "b"): 1.2},
            {"populations": 2, "weights": 3},
            {},
        ),
        ({"memory_per_core": (0.0, "KiB")}, None, {}, {}),
        ({"memory_per_core": (1, "B")}, {}, {"memory": 45}, {}),  # 72 weights of 5 bits
        (
            {"memory_per_core": (1, "B"), "weight_bits": (8, "bits"), "memory_per_chip": (44, "B")},
            {("memory_per_chip", ""): 45 / 44},
            {"memory": 45},
            {"memory": 2},
        ),
        ({"neuron_kinds": (["if-hard-reset"], "kinds")}, {("neuron_kinds", "a"): None}, {}, {}),
        ({"neuron_kinds": (["programmable"], "kinds")}, {}, {}, {}),
    ],
)
def test_each_limit_is_held_against_what_is_needed(
    limits: dict[str, Any], wanted: dict[Any, Any] | None, cores: Any, chips: Any, tmp_path: Path
) -> None:
    if wanted is None:
        with pytest.raises(UserError, match="not a positive integer"):
            load_chip(chip_file(tmp_path, **limits))
        return
    units = [replace(UNIT, name="a"), replace(UNIT, name="b", kind="if-hard-reset")]
    budget = judge(load_chip(chip_file(tmp_path, **limits)), units)
    assert {(f.limit, f.where): f.times for f in budget.findings} == wanted
    assert (budget.cores, budget.chips) == (cores, chips)
    assert budget.fits == (not wanted) and set(budget.unknown) == set(LIMITS) - set(limits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('title = "Toy"', "title = "), "is not TOML"),
        (('title = "Toy"', ""), "the file lacks title"),
        (('title = "Toy"', "title = 7"), "title has to be a text"),
        (("maker", "brand = 'x'\nmaker"), "has brand, which nothing reads"),
        (('fan_in = "unknown"', ""), r"\[limits\] lacks fan_in"),
        (('fan_in = "unknown"', "fan_in = 63"), "limits.fan_in is 63, not a table"),
        (('fan_in = "unknown"', entry("fan_in", -1, "synapses")), "-1 is not a positive integer"),
        (('fan_in = "unknown"', entry("fan_in", True, "synapses")), "True is not a positive integer"),
        (('fan_in = "unknown"', entry("fan_in", [1, 2], "synapses")), "is not a positive integer"),
        (('fan_in = "unknown"', entry("fan_in", 5, "axons")), "'axons' is not one of synapses"),
        (('fan_in = "unknown"', entry("fan_in", 5, "synapses").replace("'s'", "'t'")), r"not in \[sources\]"),
        (('fan_in = "unknown"', entry("fan_in", 5, "synapses").replace("quote", "said")), "lacks quote"),
        (('neuron_kinds = "unknown"', entry("neuron_kinds", ["qif"], "kinds")), "is a list of programmable"),
        (("checked", "not_checked = [3]\nchecked"), "list of sentences"),
        (('url = "https://example.org"', ""), "sources.s lacks url"),
    ],
)
def test_a_bad_profile_is_one_clear_error(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    assert change[0] in GOOD
    (tmp_path / "bad.toml").write_text(GOOD.replace(change[0], change[1], 1))
    with pytest.raises(UserError, match=message) as caught:
        load_chip(str(tmp_path / "bad.toml"))
    assert "bad.toml" in caught.value.message


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"title = '\xff'")
    for name, message in (("loihi9", "no chip 'loihi9'"), ("none.toml", "none.toml does not exist")):
        with pytest.raises(UserError, match=message):
            load_chip(name)
    for name in ("latin.toml", "."):
        with pytest.raises(UserError):
            load_chip(str(tmp_path / name) if name != "." else str(tmp_path))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_graph(GRAPH, "net.stg")
    export(run_pipeline(GRAPH, PIPELINES["nir"]).graph, Path("net.nir"))
    return tmp_path


def test_the_command_says_what_exceeds_and_what_is_unknown(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["targets", "--chip", "loihi2"]) == 0
    assert "120,000,000" in capsys.readouterr().out
    assert run(["targets", "--chip", "speck2", "net.stg", "--json=speck.json"]) == 1
    text = capsys.readouterr().out
    assert "exceeds  neuron_kinds: needs lif-hard-reset, has if-soft-reset" in text
    assert "unknown  not judged, no public figure: neurons_per_chip" in text and " model " in text
    said = json.loads(Path("speck.json").read_text())
    assert not said["fits"] and said["model"]["synapses"] > 0 and "fan_in" in said["unknown"]
    assert run(["targets", "--chip", "speck2", "net.nir", "--json=file.json"]) == 1
    assert json.loads(Path("file.json").read_text())["populations"] == said["populations"]
    assert run(["targets", "--chip", "spinnaker2", "net.stg", "-v"]) == 0
    text = capsys.readouterr().out
    assert "head: 50 synapses, 50 nonzero weights" in text and "within   every limit that is known" in text
    assert run(["targets", "--chip", chip_file(folder, neurons_per_core=(1, "neurons")), "net.nir"]) == 0


def write_foreign(path: str, edges: list[tuple[str, str]]) -> None:
    """A NIR file with stdeploy's metadata removed."""
    one = {k: np.ones((1, 2, 2), np.float32) for k in ("tau", "r", "v_threshold")}
    nodes = {
        "input": nir.Input({"input": np.array([1, 2, 2])}),
        "a": nir.LIF(**one, v_leak=np.zeros((1, 2, 2), np.float32)),
        "b": nir.LIF(**one, v_leak=np.zeros((1, 2, 2), np.float32)),
        "output": nir.Output({"output": np.array([1, 2, 2])}),
    }
    nir.write(path, nir.NIRGraph(nodes, edges))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["net.stg"], 2, "go with --chip"),
        (["--steps", "3"], 2, "go with --chip"),
        (["--chip", "loihi2", "none.stg"], 2, "none.stg does not exist"),
        (["--chip", "loihi2", "net.onnx"], 2, "has no neurons to place"),
        (["--chip", "loihi2", "foreign.nir"], 2, "does not say how many steps"),
        (["--chip", "loihi2", "soft.stg"], 3, "soft reset"),
        (["--chip", "loihi2", "broken.nir"], 2, "broken.nir is not a readable NIR file"),
    ],
)
def test_what_cannot_be_placed_is_refused(
    arguments: list[str], code: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("net.onnx").write_bytes(b"x")
    Path("broken.nir").write_bytes(b"x")
    write_foreign("foreign.nir", [("input", "a"), ("a", "b"), ("b", "output")])
    net = Net(0)
    soft = net.add(ops.Neuron(np.array(1.7), np.array(1.0), None), net.x, name="soft")
    save_graph(net.done(soft), "soft.stg")
    assert run(["targets", *arguments]) == code
    assert message in capsys.readouterr().err


def test_recurrence_and_other_nodes_are_not_counted(folder: Path) -> None:
    with h5py.File("net.nir", "r") as file:
        metadata = {"stdeploy": file["node/metadata/stdeploy"][()].decode()}
    graph = nir.read("net.nir")
    name, lif = next(item for item in graph.nodes.items() if isinstance(item[1], nir.LIF))
    channels, *space = lif.tau.shape
    eye = np.eye(channels, dtype=np.float32)[:, :, None, None]
    back = nir.Conv2d(tuple(space), eye, 1, 0, 1, 1, np.zeros(channels, np.float32))
    for extra, edges, message in (
        ({"back": back}, [(name, "back"), ("back", name)], "cycle: recurrence"),
        (
            {"pool": nir.SumPool2d(np.ones(2), np.ones(2), np.zeros(2))},
            [(name, "pool"), ("pool", next(target for source, target in graph.edges if source == name))],
            "pool is a SumPool2d",
        ),
    ):
        nodes = {**graph.nodes, **extra}
        nir.write("odd.nir", nir.NIRGraph(nodes, [*graph.edges, *edges], metadata=metadata))
        with pytest.raises((UserError, UnsupportedError), match=message):
            read_network("odd.nir")


def test_an_integrate_and_fire_neuron_is_one(tmp_path: Path) -> None:
    builder = GraphBuilder(3)
    x = builder.add(ops.Input((2, 3, 3), ("channel", "y", "x"), "TB"), name="input")
    x = builder.add(ops.Neuron(None, np.array(1.2), np.array(0.05), kind="IF"), (x,), name="if")
    x = builder.add(ops.Neuron(np.array(1.7), np.array(0.9), np.array(0.0)), (x,), name="lif")
    builder.add(ops.Output("y", "TB"), (x,), name="output")
    export(builder.build(), tmp_path / "net.nir")
    first, second = measure_network(read_network(tmp_path / "net.nir"))
    assert (first.kind, second.kind) == ("if-hard-reset", "lif-hard-reset")
    assert (second.synapses, second.fan_in, second.weights, second.bits) == (18, 1, 0, 1)
