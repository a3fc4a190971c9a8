"""Every operator through NIR: the file type-checks, and readers spike as the interpreter does."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.errors import UnsupportedError, UserError
from stdeploy.exporters.nir import check, export
from stdeploy.exporters.nir.attention import cost, digits_for
from stdeploy.graph import Graph, GraphBuilder, Weight, ops, validate
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.ops import Op
from stdeploy.graph.weight import Array
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.runtime.nir_readers import NirReader
from tests.graphs import random_inputs, spikformer_graph

AXES = ("channel", "y", "x")
READERS = ("stdeploy", "snntorch", "spikingjelly", "spikingjelly-m", "norse")


class Net:
    """A chain over an Input whose numbers are dyadic, so that float32 is exact and ties at the threshold happen."""

    def __init__(self, shape: tuple[int, ...] = (4, 4, 6), steps: int = 4, layout: Any = "TB") -> None:
        self.rng = np.random.default_rng(3)
        self.builder = GraphBuilder(steps, {"source": "test", "passes": ["none"]})
        self.x = self.builder.add(ops.Input(shape, AXES[: len(shape)], layout), name="input")

    def add(self, op: Op, *inputs: str, name: str = "op") -> str:
        return self.builder.add(op, inputs or (self.x,), name=name, source=name)

    def dyadic(self, *shape: int) -> Array:
        return self.rng.integers(-4, 7, shape) / 4

    def linear(self, x: str, out: int, name: str) -> str:
        inp = self.builder.value(x).shape[0]
        weight = Weight.dense(self.rng.integers(-3, 6, (out, inp)) / 4)
        return self.add(ops.Linear(weight, self.dyadic(out)), x, name=name)

    def fire(self, x: str, name: str, **how: Any) -> str:
        given = {"tau": 2.0, "v_threshold": 0.5, "v_reset": -0.25, **how}
        for key in ("tau", "v_threshold", "v_reset"):
            given[key] = None if given[key] is None else np.asarray(given[key])
        return self.add(ops.Neuron(**given), x, name=name)

    def spikes(self, name: str, channels: int) -> str:
        return self.fire(self.linear(self.x, channels, f"{name}_linear"), f"{name}_lif")

    def done(self, x: str, layout: Any = None) -> Graph:
        step = self.builder.value(x).time == "step"
        self.add(ops.Output("logits", layout or ("TB" if step else "B")), x, name="output")
        return validate(self.builder.build())


def inputs(graph: Graph, batch: int = 3) -> Array:
    """Small dyadic inputs in the Input's layout."""
    shape = random_inputs(graph, batch).shape
    return (np.random.default_rng(5).integers(-4, 9, shape) / 4).astype(np.float32)


def agree(graph: Graph, *, readers: tuple[str, ...] = READERS, fires: bool = True) -> dict[str, Any]:
    """Export; every reader's spikes and outputs equal the interpreter's, free and forced. Returns the counts."""
    x = inputs(graph)
    want = interpret(graph, x)
    if fires:
        for name, spikes in want.spikes.items():
            assert 0 < spikes.mean() < 1, f"{name} is silent or saturated: the comparison would be vacuous"
    swapped = {n: 1 - s for n, s in want.spikes.items()}
    forced = interpret(graph, x, forced=swapped)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.nir"
        artifact = export(graph, path)
        nir.read(path)
        for reader in readers:
            runner = NirReader(path, reader)
            for result, reference in (
                (runner.run(x), want),
                (runner.run(x, swapped), forced),
                (runner.run(x), want),  # from reset membranes again
            ):
                assert set(result.spikes) == set(reference.spikes)
                for name, spikes in reference.spikes.items():
                    np.testing.assert_array_equal(result.spikes[name], spikes, f"{reader} {name}")
                for label, array in reference.outputs.items():
                    np.testing.assert_allclose(result.outputs[label], array, 1e-5, 1e-5, err_msg=reader)
                    assert result.outputs[label].shape == array.shape, reader
    return dict(artifact.metadata)


@pytest.mark.parametrize("layout", ["B", "BT", "TB"])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("decay_input", [True, False])
def test_neuron_layouts_ties_and_reset(layout: str, steps: int, decay_input: bool) -> None:
    net = Net((4, 2, 3), steps, layout)
    s = net.fire(net.linear(net.x, 5, "fc"), "lif", decay_input=decay_input)
    agree(net.done(net.linear(s, 3, "head")))


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("steps", [1, 9])
def test_integrate_and_fire_forgets_nothing(decay_input: bool, steps: int) -> None:
    net = Net((4, 2, 3), steps)
    how: dict[str, Any] = {"tau": None, "decay_input": decay_input}
    thresholds = np.array([0.75, 2.25, 1.25, 4.25, 0.5])  # powers of two above v_reset: ties stay exact
    a = net.fire(net.linear(net.x, 5, "fc"), "a", v_threshold=1.25, **how)
    b = net.fire(net.linear(a, 5, "fc2"), "b", v_threshold=thresholds, v_reset=0.25, **how)
    agree(net.done(net.linear(b, 3, "head")))


def test_a_tie_at_the_threshold_fires() -> None:
    net = Net((1,), 3)
    graph = net.done(net.fire(net.x, "lif", tau=2.0, v_threshold=1.0, v_reset=0.0))
    x = np.full((3, 2, 1), 2.0, np.float32)
    x[:, 1] = np.float32(2.0) - np.float32(2.4e-7)
    with tempfile.TemporaryDirectory() as folder:
        export(graph, Path(folder) / "net.nir")
        for reader in READERS:
            got = NirReader(Path(folder) / "net.nir", reader).run(x)
            np.testing.assert_array_equal(got.spikes["lif"][0, :, 0], [1, 0], reader)


def test_per_channel_threshold_and_tau() -> None:
    net = Net((4, 2, 3))
    y = net.linear(net.x, 5, "fc")
    tau, threshold = np.array([2.0, 4.0, 2.0, 1.75, 4.0]), np.array([0.5, 0.75, 1.0, 1.5, 0.25])
    a = net.fire(y, "a", v_threshold=threshold, v_reset=threshold - 1.0)
    b = net.fire(y, "b", tau=tau, v_threshold=threshold)
    c = net.fire(net.add(ops.Add(), a, b, name="sum"), "c", tau=tau, v_reset=0.0, decay_input=False)
    graph = net.done(net.add(ops.Add(), c, b, name="out"))
    agree(graph)


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(groups: int) -> None:
    net = Net((4, 5, 7))
    weight = Weight.dense(net.rng.integers(-2, 3, (6, 4 // groups, 3, 3)) / 4)
    conv = net.add(ops.Conv(weight, net.dyadic(6), (2, 1), (1, 2), (1, 2), groups), name="conv")
    flat = Weight.dense(net.rng.integers(-2, 3, (3, 6, 1, 3)) / 4)
    s = net.fire(conv, "lif")
    agree(net.done(net.add(ops.Conv(flat, net.dyadic(3), (1, 2), (0, 1), (1, 1)), s, name="flat")))


def test_tokens_with_one_axis() -> None:
    net = Net((4, 5))
    s = net.fire(net.linear(net.x, 6, "fc"), "lif")
    conv = ops.Conv(Weight.dense(net.dyadic(3, 6, 1)), None, (2,), (0,), (1,))
    agree(net.done(net.add(conv, s, name="conv")))


@pytest.mark.parametrize("kernel, stride, padding", [((3, 3), (2, 2), (1, 1)), ((2, 3), (1, 2), (1, 0))])
def test_spike_max_pooling(kernel: Any, stride: Any, padding: Any) -> None:
    net = Net((4, 5, 7))
    s = net.fire(net.linear(net.x, 5, "fc"), "lif", v_threshold=0.75, tau=np.array([2.0, 4, 2, 2, 2]))
    half = net.add(ops.Scale(0.5), s, name="half")
    pooled = net.add(ops.MaxPool(kernel, stride, padding, (1, 1)), half, name="pool")
    counts = agree(net.done(net.fire(net.linear(pooled, 3, "next"), "next_lif")))
    assert counts["pooling_neurons"] == math.prod(net.builder.value(pooled).shape)


def test_linear_operators_and_the_readout() -> None:
    net = Net((4, 4, 4), 4, "B")
    s = net.spikes("s", 5)
    y = net.add(ops.AvgPool((2, 2), (2, 2), (1, 1)), s, name="avg")
    y = net.add(ops.Affine(net.dyadic(5), net.dyadic(5)), y, name="bn")
    parts = [net.add(ops.Slice(0, a, b), y, name=f"part{a}") for a, b in ((0, 2), (1, 5))]
    y = net.add(ops.Concat(0), *parts, name="cat")
    y = net.add(ops.Add(), y, y, name="double")
    total = net.add(ops.Reduce((1, 2), False), y, name="total")
    mean = net.add(ops.Reduce((1, 2), True), y, name="mean")
    both = net.add(ops.Add(), total, net.add(ops.Scale(-0.5), mean, name="minus"), name="both")
    agree(net.done(net.linear(both, 3, "head")))


@pytest.mark.parametrize("mode", ["mean", "sum", "last"])
def test_readout_before_the_head(mode: Any) -> None:
    net = Net((4, 4, 4), 5, "BT")
    s = net.add(ops.Flatten(), net.spikes("s", 3), name="flatten")
    y = net.linear(net.add(ops.Readout(mode), s, name="readout"), 4, "head")
    y = net.add(
        ops.Add(), y, net.builder.add(ops.Constant(net.dyadic(4), ("channel",)), name="k"), name="out"
    )
    agree(net.done(y))


@pytest.mark.parametrize("layout", ["TB", "BT"])
def test_output_of_every_step(layout: str) -> None:
    net = Net(steps=3)
    agree(net.done(net.linear(net.spikes("s", 5), 3, "head"), layout))


def test_residual_counts_and_repeats() -> None:
    net = Net()
    a, b = net.spikes("a", 4), net.spikes("b", 4)
    x = net.add(ops.Add(), a, b, name="x")
    y = net.add(ops.Add(), x, net.fire(net.linear(x, 4, "c_linear"), "c_lif"), name="y")
    y = net.add(ops.Add(), y, a, name="z")  # a arrives twice
    same = net.add(ops.Add(), a, a, name="twice")
    d = net.fire(net.linear(y, 4, "d_linear"), "d_lif")
    e = net.fire(same, "e_lif", v_threshold=1.0)
    agree(net.done(net.add(ops.Add(), net.add(ops.Add(), d, y, name="u"), e, name="v")))


def test_spike_product_is_an_and() -> None:
    net = Net()
    y = net.add(ops.Mul(), net.spikes("a", 4), net.spikes("b", 4), name="and")
    counts = agree(net.done(net.fire(net.linear(y, 3, "fc"), "lif")))
    assert counts["attention_neurons"] == 4 * 4 * 6


def attention(net: Net, heads: tuple[int, ...], v_heads: tuple[int, ...], order: str, scale: float) -> str:
    q, k, v = net.spikes("q", sum(heads)), net.spikes("k", sum(heads)), net.spikes("v", sum(v_heads))
    if order == "qk":
        scores = net.add(ops.MatMul("channels", heads, heads), q, k, name="qk")
        scores = net.add(ops.Scale(scale), scores, name="scale")
        return net.add(ops.MatMul("keys", (), v_heads), scores, v, name="av")
    pairs = net.add(ops.MatMul("tokens", heads, v_heads), k, v, name="kv")
    return net.add(
        ops.Scale(scale), net.add(ops.MatMul("pairs", heads, v_heads), q, pairs, name="qkv"), name="s"
    )


@pytest.mark.parametrize("shape", [(4, 4, 4), (4, 3, 5), (4, 7), (4, 1, 3)])
def test_one_position_or_one_channel_meets_all(shape: tuple[int, ...]) -> None:
    """Elementwise attention: tokens' sum, a neuron, and its spike gates every token; the same over channels."""
    net = Net(shape)
    q, k = net.spikes("q", 4), net.spikes("k", 4)
    positions = tuple(range(1, len(shape)))
    over = net.fire(net.add(ops.Reduce(positions, False, True), k, name="sum"), "over", v_threshold=1.5)
    gated = net.add(ops.Mul(), over, q, name="gated")
    head = net.fire(net.add(ops.Reduce((0,), False, True), q, name="heads"), "head", v_threshold=1.0)
    both = net.add(ops.Add(), gated, net.add(ops.Mul(), head, k, name="token"), name="both")
    spread = net.add(ops.Linear(Weight.dense(np.eye(4)[[0, 0, 2, 2]])), over, name="copied")
    both = net.add(ops.Add(), both, net.add(ops.Mul(), spread, k, name="half"), name="all")
    mean = net.add(ops.Reduce(positions, False, True), both, name="mean")
    y = net.linear(net.add(ops.Add(), both, mean, name="residual"), 5, "fc")
    out = net.fire(y, "out", v_threshold=3.03)  # no tie: a mean over 7 positions rounds
    agree(net.done(net.linear(out, 3, "classes")))


@pytest.mark.parametrize("shape", [(3, 2, 3), (3, 5, 2), (3, 1, 4), (3, 3, 3), (3, 4)])
def test_a_flattened_map_of_any_sides(shape: tuple[int, ...]) -> None:
    net = Net(shape)
    flat = net.add(ops.Flatten(), net.spikes("a", 3), name="flat")
    agree(net.done(net.linear(net.fire(net.linear(flat, 6, "fc"), "b", v_threshold=2.0), 3, "head")))


@pytest.mark.parametrize("order", ["qk", "kv"])
@pytest.mark.parametrize("shape", [(4, 4, 4), (4, 3, 5), (4, 7)])
def test_attention_ragged_heads_in_both_orders(order: str, shape: tuple[int, ...]) -> None:
    net = Net(shape)
    heads, v_heads = (3, 1, 2), (2, 4, 1)
    y = attention(net, heads, v_heads, order, 0.125)
    y = net.fire(y, "attn_lif", v_threshold=0.125, v_reset=0.0)
    graph = net.done(net.linear(y, 3, "head"))
    counts = agree(graph)
    assert counts["nodes"] == 2 + 3 * 2 + cost(heads, v_heads, math.prod(shape[1:])).nodes + 2
    tokens = math.prod(shape[1:])
    pairs, digits = 3 * 2 + 1 * 4 + 2 * 1, digits_for(tokens)
    assert counts["attention_neurons"] == pairs * tokens * (1 + digits)
    rest = 4 * (6 + 6 + 7) + 7 * 3  # the q, k, v Linears and the head
    assert counts["stored_weights"] - rest == cost(heads, v_heads, tokens).weights


@pytest.mark.parametrize("stack", [1, 5, 12])
def test_any_partition_of_the_pairs_is_exact(stack: int) -> None:
    net = Net((4, 4, 4), 2)
    graph = net.done(attention(net, (3, 1, 2), (2, 4, 1), "kv", 1.0))
    x = inputs(graph)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.nir"
        counts = export(graph, path, {"pairs_per_node": stack}).metadata
        got = NirReader(path, "stdeploy").run(x).outputs["logits"]
    np.testing.assert_array_equal(got, interpret(graph, x).outputs["logits"])
    assert counts["stored_weights"] - 4 * 19 == cost((3, 1, 2), (2, 4, 1), 16, stack).weights


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_attention_counts_any_spikes(data: st.DataObject) -> None:
    """All-ones maps included: the counts reach N * head dim, every digit is used."""
    heads = data.draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3))
    height, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    queries, values = tuple(a for a, _ in heads), tuple(b for _, b in heads)
    channels = 2 * sum(queries) + sum(values)
    builder = GraphBuilder(1)
    x = builder.add(ops.Input((channels, height, width), AXES, "TB"), name="input")
    s = builder.add(ops.Neuron(np.array(2.0), np.array(0.5), np.array(0.0)), (x,), name="lif")
    edges = np.cumsum([0, sum(queries), sum(queries), sum(values)])
    q, k, v = (
        builder.add(ops.Slice(0, int(a), int(b)), (s,), name=n)
        for n, a, b in zip("qkv", edges[:-1], edges[1:], strict=True)
    )
    m = builder.add(ops.MatMul("tokens", queries, values), (k, v), name="kv")
    y = builder.add(ops.MatMul("pairs", queries, values), (q, m), name="y")
    builder.add(ops.Output("y", "TB"), (y,), name="output")
    graph = builder.build()
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    spikes = rng.random((1, 3, channels, height, width)) < np.array([1.0, 0.9, 0.4])[:, None, None, None]
    with tempfile.TemporaryDirectory() as folder:
        export(graph, Path(folder) / "net.nir")
        got = NirReader(Path(folder) / "net.nir", "stdeploy").run(spikes.astype(np.float32))
    want = interpret(graph, spikes.astype(np.float64))
    np.testing.assert_array_equal(got.outputs["y"], want.outputs["y"])


REFUSED: list[tuple[str, Any, str]] = [
    ("soft", lambda net: net.fire(net.x, "soft", v_reset=None), "soft reset"),
    ("fast", lambda net: net.fire(net.x, "fast", tau=1.0), "tau"),
    ("rest", lambda net: net.fire(net.x, "rest", v_reset=2.0), "fires at rest"),
    (
        "taus",
        lambda net: net.fire(net.linear(net.x, 20, "l"), "taus", tau=np.linspace(1.5, 3, 20)),
        "20 distinct",
    ),
    ("pool", lambda net: net.add(ops.MaxPool((2, 2), (2, 2), (0, 0), (1, 1)), name="pool"), "real values"),
    ("ceil", lambda net: net.add(ops.AvgPool((2, 2), (2, 2), (0, 0), True), name="ceil"), "ceil-mode"),
    ("mul", lambda net: net.add(ops.Mul(), net.x, net.x, name="mul"), "product"),
    ("axis", lambda net: net.add(ops.Slice(1, 0, 2), name="axis"), "along positions"),
    ("rows", lambda net: net.add(ops.Reduce((1,), True, True), name="rows"), "reduction"),
]


@pytest.mark.parametrize("where, build, reason", REFUSED, ids=[r[0] for r in REFUSED])
def test_refusals_name_the_module_and_the_reason(where: str, build: Any, reason: str) -> None:
    net = Net()

    def fire(x: str, name: str, **how: Any) -> str:
        values = {"tau": 2.0, "v_threshold": 0.5, "v_reset": -0.25, **how}
        arrays = {k: None if v is None else np.asarray(v) for k, v in values.items()}
        return net.add(ops.Neuron(**arrays), x, name=name)

    net.fire = fire  # type: ignore[method-assign]
    (item,) = check(net.done(build(net)))
    assert item.where == where
    assert reason in item.reason


def test_all_refusals_come_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    net = Net()
    y = net.add(ops.MaxPool((2, 2), (2, 2), (0, 0), (1, 1)), name="pool")
    odd = ops.Conv(Weight.dense(net.dyadic(3, 4, 1, 2)), None, (1, 1), (0, 0), (1, 1))
    y = net.add(odd, y, name="odd")
    y = net.add(ops.Linear(Weight.dense(net.dyadic(3, 3)), net.dyadic(4, 3)), y, name="steps")
    y = net.add(ops.Neuron(np.array(2.0), np.array(1.0), None), y, name="soft")
    graph = net.done(y)
    assert [i.where for i in check(graph)] == ["pool", "odd", "steps", "soft"]
    with pytest.raises(UnsupportedError, match="4 parts"):
        export(graph, tmp_path / "net.nir")
    assert not list(tmp_path.iterdir())


def test_budget_and_options() -> None:
    net = Net()
    graph = net.done(attention(net, (2, 2), (2, 2), "kv", 1.0))
    (item,) = check(graph, {"max_neurons": 100})
    assert "1152 neurons" in item.reason and item.hint
    (item,) = check(graph, {"pairs_per_node": 1, "max_nodes": 100})
    assert "152 nodes" in item.reason
    for options in ({"stack": 3}, {"max_neurons": 0}, {"pairs_per_node": True}):
        with pytest.raises(UserError):
            check(graph, options)


def test_metadata_says_how_to_drive_the_file(tmp_path: Path) -> None:
    graph = run_pipeline(spikformer_graph(steps=3), PIPELINES["nir"]).graph
    artifact = export(graph.with_metadata(source_sha256="ab12"), tmp_path / "net.nir")
    stored = json.loads(str(nir.read(tmp_path / "net.nir").metadata["stdeploy"]))
    assert (stored["steps"], stored["dt"], stored["source_sha256"]) == (3, 1e-4, "ab12")
    assert stored["output"]["over_steps"] == "mean"
    assert set(stored["neurons"]) == {n.name for n in graph.neurons}
    nodes = nir.read(tmp_path / "net.nir").nodes
    assert len(nodes) == artifact.metadata["nodes"]
    lif = sum(int(np.prod(n.tau.shape)) for n in nodes.values() if isinstance(n, nir.LIF))
    assert lif == sum(artifact.metadata[f"{r}_neurons"] for r in ("model", "pooling", "attention"))
