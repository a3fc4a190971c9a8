"""Synaptic operations against nested loops, and the laws that an exact count obeys."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.energy.attention import count_matmul, pairs_of
from stdeploy.energy.counting import Counter, count, count_executor, spikes_of, with_input_class
from stdeploy.energy.layers import ROLES
from stdeploy.energy.ledger import CONSTANTS, NETWORK, QUANTITIES, Class, LayerCount, Ledger
from stdeploy.energy.synaptic import FIXED
from stdeploy.errors import UnsupportedError, UserError
from stdeploy.graph import Graph, GraphBuilder, Weight, ops, validate
from stdeploy.graph.interpreter import Interpreter, interpret
from stdeploy.graph.ops import CATALOGUE, Op
from stdeploy.graph.rules import window_count
from stdeploy.graph.weight import Array
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph
from tests.rows import Net
from tests.test_select import pruned

AXES = ("channel", "y", "x")


def layer_graph(op: Op, shape: tuple[int, ...], steps: int = 2) -> Graph:
    builder = GraphBuilder(steps)
    x = builder.add(ops.Input(shape, AXES[: len(shape)], "TB"), name="input")
    y = builder.add(op, (x,), name="layer")
    builder.add(ops.Output("y", "TB"), (y,), name="output")
    return validate(builder.build())


def values(rng: np.random.Generator, shape: tuple[int, ...], kind: Class) -> Array:
    if kind == "binary":
        return (rng.random(shape) < 0.4).astype(np.float32)
    if kind == "count":
        return rng.poisson(0.8, shape).astype(np.float32)
    return (rng.standard_normal(shape) * (rng.random(shape) < 0.7)).astype(np.float32)


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


# --- laws


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


# --- refusals


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
