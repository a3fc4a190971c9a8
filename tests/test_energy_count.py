"""Synaptic operations against nested loops, equations and the interpreter."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.energy.attention import count_matmul, pairs_of
from stdeploy.energy.counting import Counter, count
from stdeploy.energy.layers import ROLES
from stdeploy.energy.ledger import CONSTANTS, QUANTITIES, Class, LayerCount
from stdeploy.energy.synaptic import FIXED
from stdeploy.errors import UnsupportedError
from stdeploy.graph import Graph, GraphBuilder, Weight, ops
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.ops import CATALOGUE
from stdeploy.graph.rules import window_count
from stdeploy.graph.weight import Array
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from tests.energy import AXES, layer_graph, values
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph
from tests.rows import Net
from tests.test_select import pruned


def per_sample(layer: LayerCount, quantity: str, batch: int) -> list[int]:
    """The samples' sums over the steps, as a sorted list."""
    values = [v for v, times in layer.total[quantity].values for _ in range(times)]
    assert len(values) == batch and layer.total[quantity].exact
    return values


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[ops.Conv, tuple[int, ...]]:
    rank = draw(st.integers(1, 2))
    groups = draw(st.integers(1, 2))
    into, out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    size = tuple(draw(st.integers(1, 5)) for _ in range(rank))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    stride, padding, dilation = (
        tuple(draw(st.integers(low, high)) for _ in range(rank)) for low, high in ((1, 3), (0, 2), (1, 2))
    )
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        if n + 2 * p < d * (k - 1) + 1:
            padding = tuple(2 for _ in size)
            size = tuple(5 for _ in size)
            break
        window_count(n, k, s, p, d)
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    weight = rng.standard_normal((out, into // groups, *kernel))
    weight[rng.random(weight.shape) < draw(st.sampled_from((0.0, 0.5, 0.9)))] = 0
    op = ops.Conv(Weight.dense(weight), rng.standard_normal(out), stride, padding, dilation, groups)
    return op, (into, *size)


def loops(op: ops.Conv, x: Array, out: tuple[int, ...]) -> dict[str, float]:
    """One sample and step `x [C, *size]`, by definition: every output, weight and position in turn."""
    weight = op.weight.array()
    total: dict[str, float] = dict.fromkeys(
        ("synops", "unary", "blind", "blind_sum", "dense", "connections"), 0
    )
    per_group_out = weight.shape[0] // op.groups
    for o in range(weight.shape[0]):
        for p in np.ndindex(*out[1:]):
            for i in range(weight.shape[1]):
                channel = (o // per_group_out) * weight.shape[1] + i
                for k in np.ndindex(*weight.shape[2:]):
                    place = tuple(
                        s * a + d * b - q
                        for s, a, d, b, q in zip(op.stride, p, op.dilation, k, op.padding, strict=True)
                    )
                    if any(not 0 <= a < n for a, n in zip(place, x.shape[1:], strict=True)):
                        continue
                    value, w = float(x[(channel, *place)]), weight[(o, i, *k)]
                    total["dense"] += 1
                    total["connections"] += w != 0
                    total["blind"] += value != 0
                    total["blind_sum"] += value
                    total["synops"] += value != 0 and w != 0
                    total["unary"] += value * (w != 0)
    return total


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.sampled_from(("binary", "count", "real")), st.integers(0, 1000))
def test_a_convolution_has_the_operations_of_its_loops(
    drawn: tuple[ops.Conv, tuple[int, ...]], kind: Class, seed: int
) -> None:
    op, shape = drawn
    graph = layer_graph(op, shape)
    x = values(np.random.default_rng(seed), (2, 2, *shape), kind)
    layer = count(graph, x, {}, input_class=kind).layer("layer")
    out = graph["layer"].value.shape
    looped = [[loops(op, x[t, b], out) for t in range(2)] for b in range(2)]
    for quantity in ("synops", "blind"):
        expected = sorted(int(sum(step[quantity] for step in sample)) for sample in looped)
        assert per_sample(layer, quantity, 2) == expected
    for t in range(2):
        assert layer.steps["synops"][t].total == sum(sample[t]["synops"] for sample in looped)
    unary = sum(step["synops" if kind == "real" else "unary"] for sample in looped for step in sample)
    assert layer.total["unary"].total == unary
    summed = sum(step["blind_sum"] for sample in looped for step in sample)
    unit = FIXED if kind == "real" else 1
    assert layer.total["blind_sum"].total == pytest.approx(summed * unit, abs=0.5 * unit * 1e-3)
    assert layer.constants["dense"] == looped[0][0]["dense"]
    assert layer.constants["connections"] == looped[0][0]["connections"]
    assert layer.constants["dense_padded"] == int(np.prod(out)) * op.weight.size // op.weight.shape[0]
    assert layer.total["events"].total == np.count_nonzero(x)
    if kind != "real":
        assert layer.total["magnitude"].total == x.sum()
        assert layer.total["several"].total == np.count_nonzero(x > 1)


@pytest.mark.parametrize("kind", ["binary", "count", "real"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_linear_layer_has_the_operations_of_its_loops(kind: Class, packed: bool) -> None:
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((7, 5)) * (rng.random((7, 5)) < 0.4)
    op = ops.Linear(Weight.csr(weight) if packed else Weight.dense(weight), rng.standard_normal(7))
    x = values(rng, (2, 3, 5, 2, 3), kind)
    layer = count(layer_graph(op, (5, 2, 3)), x, {}, input_class=kind).layer("layer")
    total = unary = 0
    for t, b, i, p, q in np.ndindex(*x.shape):
        for o in range(7):
            if x[t, b, i, p, q] != 0 and weight[o, i] != 0:
                total += 1
                unary += int(x[t, b, i, p, q]) if kind == "count" else 1
    assert (layer.total["synops"].total, layer.total["unary"].total) == (total, unary)
    assert layer.constants["csr"] == packed and layer.input_class == kind


MATMULS = {
    "channels": (ops.MatMul("channels", (2, 3), (2, 3)), (5, 2, 2), (5, 3)),
    "keys": (ops.MatMul("keys", (), (1, 3)), (2, 4, 3), (4, 3)),
    "tokens": (ops.MatMul("tokens", (2, 3), (3, 1)), (5, 2, 2), (4, 2, 2)),
    "pairs": (ops.MatMul("pairs", (2, 3), (3, 1)), (5, 4), (9,)),
}


def multiplied(op: ops.MatMul, a: Array, b: Array) -> list[tuple[Any, Any]]:
    """Every pair of elements that a product multiplies, from its equation; operands `[C, n]`."""
    pairs: list[tuple[Any, Any]] = []
    if op.over == "channels":
        return [
            (a[c, n], b[c, m])
            for c in range(a.shape[0])
            for n in range(a.shape[1])
            for m in range(b.shape[1])
        ]
    if op.over == "keys":
        head = [h for h, n in enumerate(op.heads_b) for _ in range(n)]
        for c, n, m in itertools.product(range(b.shape[0]), range(a.shape[1]), range(b.shape[1])):
            pairs.append((a[head[c], n, m], b[c, m]))
        return pairs
    first_a = first_b = place = 0
    for wide, tall in zip(op.heads_a, op.heads_b, strict=True):
        for d, e in itertools.product(range(wide), range(tall)):
            for n in range(a.shape[1]):
                other = b[first_b + e, n] if op.over == "tokens" else b[place]
                pairs.append((a[first_a + d, n], other))
            place += 1
        first_a, first_b = first_a + wide, first_b + tall
    return pairs


@pytest.mark.parametrize("over", sorted(MATMULS))
@pytest.mark.parametrize("kind", ["binary", "count", "real"])
def test_an_attention_product_has_the_pairs_of_its_equation(over: str, kind: Class) -> None:
    op, shape_a, shape_b = MATMULS[over]
    rng = np.random.default_rng(5)
    a, b = (values(rng, (3, 2, *shape), kind) for shape in (shape_a, shape_b))
    expected = dict.fromkeys(("coincidence", "left_driven", "right_driven", "unary"), 0)
    dense = 0
    for t, s in np.ndindex(3, 2):
        left = a[t, s] if over == "keys" else a[t, s].reshape(shape_a[0], -1)
        pairs = multiplied(op, left, b[t, s] if over == "pairs" else b[t, s].reshape(shape_b[0], -1))
        dense = len(pairs)
        for u, v in pairs:
            expected["coincidence"] += u != 0 and v != 0
            expected["left_driven"] += u != 0
            expected["right_driven"] += v != 0
            expected["unary"] += u != 0 and v != 0 if kind == "real" else int(u * v)
    operands = (a != 0, b != 0) if kind == "real" else (a.astype(np.uint8), b.astype(np.uint8))
    counted = count_matmul(op, *operands)
    assert {q: int(counted[q].sum()) for q in expected} == expected
    assert pairs_of(op, shape_a, shape_b) == dense
    assert int(counted["left_events"].sum()) == np.count_nonzero(a)


@pytest.mark.parametrize("order", ["qk", "kv"])
def test_a_network_is_counted_in_both_orders_of_its_attention(order: Literal["qk", "kv"]) -> None:
    """The executed order is what its two products count; the other one is what its own graph would count."""
    graphs = {o: spikformer_graph(5, order=o, masked=0.4, neurons="mixed") for o in ("qk", "kv")}
    x = random_inputs(graphs["qk"])
    every_layer_fires(graphs["qk"], x)
    ledger = count(graphs[order], x, interpret(graphs[order], x).spikes)
    (entry,) = ledger.of("order")
    assert entry.kind == order
    for label, graph in graphs.items():
        other = count(graph, x, interpret(graph, x).spikes)
        for quantity in ("coincidence", "left_driven", "right_driven", "unary"):
            summed = sum(layer.total[quantity].total for layer in other.of("attention"))
            assert entry.total[f"{label}.{quantity}"].total == summed > 0
        assert entry.constants[f"{label}.dense"] == sum(m.constants["dense"] for m in other.of("attention"))


def test_an_elementwise_product_counts_what_both_operands_let_through() -> None:
    builder = GraphBuilder(2)
    x = builder.add(ops.Input((3, 4), AXES[:2], "TB"), name="input")
    gate = builder.add(ops.Reduce((0,), False, keepdims=True), (x,), name="gate")
    y = builder.add(ops.Mul(), (gate, x), name="masked")
    builder.add(ops.Output("y", "TB"), (y,), name="output")
    data = values(np.random.default_rng(1), (2, 3, 3, 4), "binary")
    layer = count(builder.build(), data, {}, input_class="binary").layer("masked")
    sums = data.sum(2, keepdims=True)
    assert layer.role == "product" and layer.constants["dense"] == 12
    assert layer.total["coincidence"].total == np.count_nonzero(data * sums)
    assert layer.total["left_driven"].total == 3 * np.count_nonzero(sums)
    assert layer.total["right_driven"].total == np.count_nonzero(data)
    assert layer.total["unary"].total == (data * sums).sum()


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_pool_combines_the_elements_within_its_input(ceil: bool, padding: int) -> None:
    data = values(np.random.default_rng(2), (2, 2, 3, 6, 5), "binary")
    op = ops.MaxPool((3, 2), (2, 2), (padding, padding), (1, 1), ceil)
    graph = layer_graph(op, (3, 6, 5))
    layer = count(graph, data, {}, input_class="binary").layer("layer")
    rows, columns = graph["layer"].value.shape[1:]
    operations = active = 0
    for i, j, a, b in np.ndindex(rows, columns, 3, 2):
        y, x = 2 * i + a - padding, 2 * j + b - padding
        if 0 <= y < 6 and 0 <= x < 5:
            operations += 3
            active += int(data[..., y, x].sum())
    assert (layer.constants["operations"], layer.total["active"].total) == (operations, active)


def touched_by_drive(graph: Graph, neuron: str, spikes: dict[str, Array], x: Array) -> int:
    """Neurons whose drive is another one without any event, where all weights are positive and cannot cancel."""
    builder = GraphBuilder(graph.steps)
    for node in graph:
        op = node.op
        if isinstance(op, ops.Linear | ops.Conv):
            positive = Weight.dense(np.abs(op.weight.array()).astype(np.float64))
            op = replace(op, weight=positive, bias=None)
        elif isinstance(op, ops.Affine):
            op = ops.Affine(np.ones_like(op.scale), np.zeros_like(op.shift))
        builder.add(op, node.inputs, name=node.name)
    drive = graph[neuron].inputs[0]
    step = graph[drive].value.time == "step"
    builder.add(ops.Output("probe", "TB" if step else "B"), (drive,), name="probe")
    probe = builder.build()
    silent = {name: np.zeros_like(s) for name, s in spikes.items()}
    driven, rest = (
        interpret(probe, data, forced=forced).outputs["probe"]
        for data, forced in ((np.abs(x), spikes), (np.zeros_like(x), silent))
    )
    return int(np.count_nonzero(driven != rest)) * (1 if step else graph.steps)


@pytest.mark.parametrize("target", [None, "onnx", "nir"])
def test_touched_neurons_are_those_that_an_event_reaches(target: str | None) -> None:
    graph = spikformer_graph(5, masked=0.5, neurons="mixed", seed=2)
    if target:
        graph = run_pipeline(graph, PIPELINES[target]).graph
    x = random_inputs(graph)
    run = interpret(graph, x)
    ledger = count(graph, x, run.spikes)
    clocked = 0
    for layer in ledger.of("neuron"):
        expected = touched_by_drive(graph, layer.name, run.spikes, x)
        assert layer.total["touched"].total == expected, layer.name
        assert layer.total["spikes"].total == run.spikes[layer.name].sum()
        clocked += layer.constant("clocked") * 3 - expected
    assert clocked > 0  # some are not


def branching(seed: int = 0) -> Graph:
    """Sums, gates, means, slices and joins of spikes of several units, each into a Linear."""
    net = Net(seed)
    a = net.unit(net.add(ops.Flatten(), net.x, name="flat"), 8, "a")
    b = net.unit(a, 8, "b")
    total = net.add(ops.Add(), a, b, name="sum")
    gated = net.add(ops.Mul(), total, b, name="gated")
    scaled = net.add(ops.Scale(0.3), gated, name="scaled")
    part = net.add(ops.Slice(0, 2, 7), scaled, name="part")
    mean = net.add(ops.Reduce((0,), True, keepdims=True), part, name="mean")
    joined = net.add(ops.Concat(0), part, net.add(ops.Scale(0.5), part, name="half"), name="joined")
    kept = net.unit(joined, 6, "c")
    factor = net.linear(net.linear(mean, 3, "down"), 6, "up")
    out = net.lif(net.add(ops.Add(), kept, factor, name="both"), "d")
    return net.done(out, net.linear(net.add(ops.Add(), out, kept, name="last"), 4, "head"))


@pytest.mark.parametrize(
    "graph",
    [
        spikformer_graph(5, masked=0.5, neurons="mixed"),
        run_pipeline(spikformer_graph(5, masked=0.5, order="kv"), PIPELINES["onnx"]).graph,
        branching(),
        pruned(7, "score"),
        pruned(5, "index", "mean"),
        pruned(6, "score", "real", largest=False),
    ],
    ids=["spikformer", "deployed", "branching", "select", "select-mean", "select-real"],
)
def test_every_layer_sees_the_events_of_the_interpreter(graph: Graph) -> None:
    """The integers recomputed from the spikes are the interpreter's values, by unit."""
    x = (
        Net().data()
        if graph.steps == 5 and graph.inputs[0].value.shape == (3, 4, 5)
        else random_inputs(graph)
    )
    every_layer_fires(graph, x)
    run = interpret(graph, x)
    ledger = count(graph, x, run.spikes, selections=run.selections)
    assert count(graph, x, run.spikes) == ledger  # the same tokens are chosen again
    builder = GraphBuilder(graph.steps)
    builder.nodes = dict(graph.nodes)
    read = [(layer, graph[layer.name].inputs) for layer in ledger.of("synapse") + ledger.of("attention")]
    for name in {name for _, inputs in read for name in inputs}:
        step = graph[name].value.time == "step"
        builder.add(ops.Output(f"probe:{name}", "TB" if step else "B"), (name,), name=f"probe:{name}")
    probes = interpret(builder.build(), x, forced=run.spikes).outputs
    for layer, inputs in read:
        seen = [probes[f"probe:{name}"] for name in inputs]
        events = ("events",) if layer.role == "synapse" else ("left_events", "right_events")
        for quantity, value in zip(events, seen, strict=True):
            assert layer.total[quantity].total == np.count_nonzero(value), (layer.name, quantity)
        if layer.input_class != "real" and layer.role == "synapse":
            assert layer.total["magnitude"].total == round(float(seen[0].sum()) / layer.scale)


def test_every_operator_of_the_catalogue_has_a_role() -> None:
    assert set(ROLES) == set(CATALOGUE.values())
    assert {role for role in ROLES.values() if role} | {"order"} == set(QUANTITIES) == set(CONSTANTS)


def test_an_operator_without_a_role_is_refused_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(ROLES, ops.MaxPool)
    graph = spikformer_graph(1)
    with pytest.raises(UnsupportedError) as refused:
        Counter(graph)
    assert {item.where for item in refused.value.items} == {"patch_embed.maxpool0", "patch_embed.maxpool1"}
