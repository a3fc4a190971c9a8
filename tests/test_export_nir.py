"""What the NIR exporter writes and refuses; that readers run it is tests/conformance."""

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
from stdeploy.exporters.nir.attention import Size, cost, partition
from stdeploy.exporters.nir.dialect import names
from stdeploy.exporters.nir.signal import blocks, ungrouped
from stdeploy.graph import Graph, GraphBuilder, Weight, ops
from stdeploy.graph.interpreter import interpret
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.runtime.nir_readers import NirReader
from tests.conformance.net import AXES, Net, inputs
from tests.conformance.operators import OPERATORS, RAGGED, attention, qkv
from tests.conformance.rows import READERS
from tests.graphs import spikformer_graph


def test_a_tie_at_the_threshold_fires() -> None:
    net = Net((1,), 3)
    graph = net.done(net.fire(net.x, "lif", tau=2.0, v_threshold=1.0, v_reset=0.0))
    x = np.full((3, 2, 1), 2.0, np.float32)
    x[:, 1] = np.float32(2.0) - np.float32(2.4e-7)
    with tempfile.TemporaryDirectory() as folder:
        for dialect, reader in READERS:
            path = Path(folder) / f"{dialect}.nir"
            export(graph, path, {"dialect": dialect})
            got = NirReader(path, reader).run(x)
            np.testing.assert_array_equal(got.spikes["lif"][0, :, 0], [1, 0], f"{reader} {dialect}")


def exported(graph: Graph, dialect: str = "portable", **options: Any) -> dict[str, Any]:
    """Counts of the written file."""
    with tempfile.TemporaryDirectory() as folder:
        return dict(export(graph, Path(folder) / "net.nir", {"dialect": dialect, **options}).metadata)


def test_auxiliary_neurons_of_pooling_and_product() -> None:
    assert exported(OPERATORS["MaxPool 3x3 of spikes"]())["pooling_neurons"] == 5 * 3 * 4
    assert exported(OPERATORS["Mul of spikes"]())["attention_neurons"] == 4 * 4 * 6


@pytest.mark.parametrize("heads", [RAGGED, ((2, 2, 2), (3, 3, 3))])
@pytest.mark.parametrize("dialect", ["portable", "compact"])
@pytest.mark.parametrize("order", ["qk", "kv"])
@pytest.mark.parametrize("shape", [(4, 4, 4), (4, 3, 5), (4, 7)])
def test_counts_of_attention_follow_the_formulas(
    order: str, shape: tuple[int, ...], dialect: str, heads: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    """Written out here as docs/nir.md has them, not taken from the exporter."""
    counts = exported(attention(order, shape, *heads), dialect)
    queries, values = sum(heads[0]), sum(heads[1])
    tokens = math.prod(shape[1:])
    pairs, digits = sum(a * b for a, b in zip(*heads, strict=True)), math.floor(math.log2(tokens)) + 1
    assert counts["attention_neurons"] == pairs * tokens * (1 + digits)
    assert (
        counts["nodes"] == 2 + 3 * 2 + (4 + 3 * digits) + 2
    )  # in, out; q, k, v; the product; neuron and head
    weights = {
        "portable": pairs * (2 * queries + (1 + digits) * values) + (digits - 1) * pairs**2,
        "compact": pairs * (2 * queries + (1 + digits) * values) + (digits - 1) * pairs,
    }
    if dialect == "compact" and heads != RAGGED:  # equal heads: the selections are grouped too
        weights["compact"] = pairs * (2 + (1 + digits) * heads[1][0]) + (digits - 1) * pairs
    rest = 4 * (2 * queries + values) + values * 3  # the q, k, v Linears and the head
    assert counts["stored_weights"] - rest == weights[dialect]


@pytest.mark.parametrize("most", [1, 5, 18])
@pytest.mark.parametrize("heads", [RAGGED, ((2, 2, 2), (3, 3, 3))])
@pytest.mark.parametrize("dialect", ["portable", "compact"])
def test_any_partition_of_the_pairs_is_exact(
    most: int, heads: tuple[tuple[int, ...], tuple[int, ...]], dialect: str
) -> None:
    net = Net((4, 4, 4), 2)
    graph = net.done(qkv(net, *heads, "kv", 1.0))
    x = inputs(graph)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.nir"
        counts = export(graph, path, {"pairs_per_node": most, "dialect": dialect}).metadata
        got = NirReader(path, "stdeploy").run(x).outputs["logits"]
    np.testing.assert_array_equal(got, interpret(graph, x).outputs["logits"])
    pairs, (queries, values) = sum(a * b for a, b in zip(*heads, strict=True)), map(sum, heads)
    sizes = [len(part) for part in np.array_split(range(pairs), math.ceil(pairs / most))]
    feedback = sum(n * n for n in sizes) if dialect == "portable" else pairs
    selections = pairs * (2 * queries + 6 * values)
    if dialect == "compact" and heads != RAGGED and len(sizes) == 1:
        selections = pairs * (2 + 6 * 3)
    assert counts["stored_weights"] - 4 * (2 * queries + values) == selections + 4 * feedback


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=8),
    st.integers(1, 256),
    st.integers(1, 4000),
    st.booleans(),
)
def test_the_partition_has_the_least_objective(
    heads: list[tuple[int, int]], tokens: int, most_nodes: int, groups: bool
) -> None:
    """Against every number of stacks that the budget of nodes allows."""
    size = Size(tuple(a for a, _ in heads), tuple(b for _, b in heads), tokens, tokens, groups)
    chosen = partition(size, most_nodes)
    every = [cost(size, stacks) for stacks in range(1, size.pairs + 1)]
    allowed = [c for c in every if c.nodes <= most_nodes] or every[:1]
    assert chosen.objective == min(c.objective for c in allowed)
    assert sum(chosen.stacks) == size.pairs and max(chosen.stacks) - min(chosen.stacks) <= 1


def test_digits_are_as_many_as_the_sum_can_need() -> None:
    """M counts tokens in which k and v both fire: at most N."""
    for maximum, digits in ((0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (63, 6), (64, 7), (196, 8)):
        assert Size((1,), (1,), 196, maximum).digits == digits


def test_grouped_kernels_are_stored_as_blocks() -> None:
    rng = np.random.default_rng(0)
    for groups in (1, 2, 4):
        grouped = rng.normal(size=(8, 4 // groups, 3, 3))
        np.testing.assert_array_equal(blocks(ungrouped(grouped, groups), groups), grouped)
    stored = {d: exported(OPERATORS["Conv, depthwise"](), d)["stored_weights"] for d in names()}
    assert stored["portable"] == stored["arrays"] == 8 * 4 * 9 + 3 * 8 * 9  # the 1x3 kernel within 3x3
    assert stored["compact"] == 8 * 9 + 3 * 8 * 3


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
    graph = net.done(qkv(net, (2, 2), (2, 2), "kv", 1.0))
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
