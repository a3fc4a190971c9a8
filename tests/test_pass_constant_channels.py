"""Constant channels: whole networks, hidden units, and what must stay."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.graph import Graph, GraphBuilder, Node, Weight, ops, rewrite, validate
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.weight import Array
from stdeploy.passes.channel_facts import channel_facts
from stdeploy.passes.constant_channels import ConstantChannels
from stdeploy.passes.fold_affine import FoldAffine
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph
from tests.rows import ALWAYS, LATE, OFTEN, SILENT, Net, check, linear_of, same_spikes, width


@pytest.mark.parametrize("constants", ["fold", "keep"])
@pytest.mark.parametrize("order", ["qk", "kv"])
@pytest.mark.parametrize("columns", [True, False])
def test_masked_spikformer_keeps_every_spike(constants: Any, order: Any, columns: bool) -> None:
    for seed, (steps, neurons) in enumerate(((5, "mixed"), (1, "hard"), (4, "spikingjelly"))):
        graph = spikformer_graph(
            steps=steps, heads=(6, 4), v_heads=(5, 7), depth=2, order=order, masked=0.5, columns=columns,
            neurons=neurons, per_channel=True, seed=seed,
        )  # fmt: skip
        x = random_inputs(graph, 3, seed)
        result = check(graph, x, constants)
        assert result.modified
        # Without Affines in between the drives are plain biases: the outcome is the same.
        folded = FoldAffine().run(graph).graph
        again = check(folded, x, constants).graph
        assert [width(again, n.name) for n in again.neurons] == [
            width(result.graph, n.name) for n in result.graph.neurons
        ]


def masked_rows(graph: Graph, name: str) -> Array:
    return linear_of(graph, name).weight.zero_rows()


@pytest.mark.parametrize("order", ["qk", "kv"])
def test_naive_removal_changes_the_network_and_this_pass_does_not(order: Any) -> None:
    graph = spikformer_graph(
        steps=4, dim=16, heads=(8, 8), v_heads=(8, 8), order=order, depth=2, masked=0.5, seed=3
    )
    x = random_inputs(graph, 8)
    masked = {
        f"block.{i}.{part}_lif": masked_rows(graph, f"block.{i}.{part}_conv")
        for i in range(2)
        for part in ("attn.q", "attn.k", "attn.v", "mlp.fc1")
    }
    assert all(m.mean() == 0.5 for m in masked.values())
    every_layer_fires(graph, x)
    before = interpret(graph, x)
    assert any(
        before.spikes[f"block.0.attn.{c}_lif"][:, :, masked[f"block.0.attn.{c}_lif"]].any() for c in "qk"
    )

    def visit(builder: GraphBuilder, node: Node, inputs: tuple[str, ...]) -> str | None:
        if node.name not in masked:
            return None
        name = builder.add(node.op, inputs, name=node.name)
        keep = (~masked[node.name]).astype(float)
        return builder.add(ops.Affine(keep, np.zeros(keep.size)), (name,), name=f"{node.name}.mask")

    naive = interpret(rewrite(graph, visit), x)
    assert not np.array_equal(naive.spikes["block.0.attn.attn_lif"], before.spikes["block.0.attn.attn_lif"])
    assert not np.allclose(naive.outputs["output"], before.outputs["output"])

    result = check(graph, x).graph
    for name, rows in masked.items():
        assert width(result, name) == int((~rows).sum())


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 3, 5]),
    st.sampled_from(["fold", "keep"]),
    st.sampled_from(["qk", "kv"]),
    st.floats(0.2, 1.0),
    st.booleans(),
)
def test_any_mask_keeps_every_spike(
    seed: int, steps: int, constants: Any, order: Any, masked: float, columns: bool
) -> None:
    graph = spikformer_graph(
        steps=steps, image=(2, 8, 8), heads=(3, 1, 4), v_heads=(2, 3, 1), order=order, masked=masked,
        columns=columns, neurons="mixed", per_channel=True, seed=seed,
    )  # fmt: skip
    result = ConstantChannels(constants).run(graph)
    validate(result.graph)
    same_spikes(graph, result.graph, random_inputs(graph, 2, seed))
    assert not ConstantChannels(constants).run(result.graph).modified


@settings(max_examples=60, deadline=None)
@given(st.floats(0.3, 6.0), st.floats(1.05, 4.0), st.floats(0.4, 1.5), st.integers(1, 9))
def test_constant_train_has_its_closed_form_period(
    drive: float, tau: float, threshold: float, steps: int
) -> None:
    builder = GraphBuilder(steps)
    x = builder.add(ops.Input((2,), ("channel",), "TB"), name="input")
    y = builder.add(ops.Linear(Weight.dense(np.zeros((1, 2))), np.array([drive])), (x,), name="fc")
    s = builder.add(ops.Neuron(np.array(tau), np.array(threshold), np.array(0.0)), (y,), name="lif")
    builder.add(ops.Output("y", "TB"), (s,), name="output")
    facts = channel_facts(builder.build())["lif"]
    if facts.near[0]:
        assert not facts.constant[0]
        return
    period = (
        math.ceil(math.log(1 - threshold / drive) / math.log(1 - 1 / tau)) if drive > threshold else steps + 1
    )
    np.testing.assert_array_equal(facts.train[:, 0], [float((t + 1) % period == 0) for t in range(steps)])


def test_firing_hidden_units_become_a_bias_per_step() -> None:
    net = Net()
    hidden = net.unit(net.x, 6, "fc1", {0: SILENT, 2: OFTEN, 3: LATE, 5: ALWAYS})
    graph = net.done(net.unit(hidden, 4, "fc2"))
    result = check(graph, net.data())
    assert width(result.graph, "fc1") == 2
    bias = linear_of(result.graph, "fc2_fc").bias
    assert bias is not None and bias.shape == (5, 4)
    assert any("fc2_fc: 3 constant channels joined the bias, per step" in n for n in result.notes)


def test_hidden_units_that_always_fire_are_a_plain_bias_in_both_modes() -> None:
    for constants in ("fold", "keep"):
        net = Net()
        hidden = net.unit(net.x, 6, "fc1", {0: SILENT, 5: ALWAYS})
        result = check(
            net.done(net.unit(hidden, 4, "fc2")), net.data(), "fold" if constants == "fold" else "keep"
        )
        assert width(result.graph, "fc1") == 4
        bias = linear_of(result.graph, "fc2_fc").bias
        assert bias is not None and bias.shape == (4,)


def test_without_a_bias_per_step_one_unit_per_distinct_train_stays() -> None:
    net = Net()
    hidden = net.unit(net.x, 8, "fc1", {0: SILENT, 1: OFTEN, 2: OFTEN, 3: LATE, 4: ALWAYS, 6: LATE})
    graph = net.done(net.unit(hidden, 4, "fc2"))
    result = check(graph, net.data(), "keep")
    op = result.graph["fc1"].op
    assert isinstance(op, ops.Neuron) and op.kept is not None
    assert op.kept.tolist() == [1, 3, 5, 7]
    assert any("2 weight columns joined those of equal channels" in n for n in result.notes)


def test_hidden_units_with_zero_columns_go_whatever_they_do() -> None:
    net = Net()
    hidden = net.unit(net.x, 6, "fc1", {1: OFTEN})
    weight = net.rng.normal(size=(4, 6))
    weight[:, [0, 1, 4]] = 0.0
    y = net.add(ops.Linear(Weight.dense(weight), net.rng.normal(size=4)), hidden, name="fc2_fc")
    result = check(net.done(net.lif(y, "fc2")), net.data())
    assert width(result.graph, "fc1") == 3
    bias = linear_of(result.graph, "fc2_fc").bias
    assert bias is not None and bias.ndim == 1  # a weight of zero needs no bias
    assert any("1 constant and firing, 2 not needed" in n for n in result.notes)


def test_constants_cascade_through_layers() -> None:
    net = Net()
    a = net.unit(net.x, 5, "a", {1: OFTEN, 3: LATE})
    weight = net.rng.normal(size=(4, 5))
    weight[2, [0, 2, 4]] = 0.0  # row 2 reads constants only
    b = net.lif(net.add(ops.Linear(Weight.dense(weight), np.full(4, 1.2)), a, name="b_fc"), "b")
    result = check(net.done(net.unit(b, 3, "c")), net.data())
    assert (width(result.graph, "a"), width(result.graph, "b")) == (3, 3)


@pytest.mark.parametrize("padding", [0, 1])
def test_a_padded_conv_cannot_hold_a_firing_constant_but_can_merge_it(padding: int) -> None:
    net = Net()
    hidden = net.unit(net.x, 6, "fc1", {0: SILENT, 1: OFTEN, 2: OFTEN, 4: LATE})
    result = check(net.done(net.lif(net.conv(hidden, 3, "conv", padding), "out")), net.data())
    assert width(result.graph, "fc1") == (4 if padding else 2)


def test_pooling_and_affine_between_are_followed() -> None:
    net = Net()
    y = net.unit(net.x, 6, "fc1", {0: OFTEN, 1: ALWAYS})
    y = net.add(ops.MaxPool((3, 3), (2, 2), (1, 1), (1, 1)), y, name="max")
    y = net.add(ops.AvgPool((2, 3), (1, 1), (0, 0)), y, name="mean")
    y = net.add(ops.Affine(net.rng.normal(size=6), net.rng.normal(size=6)), y, name="bn")
    result = check(net.done(net.unit(y, 4, "fc2")), net.data())
    assert {width(result.graph, n) for n in ("fc1", "max", "mean", "bn")} == {4}


@pytest.mark.parametrize("padding", [0, 1])
def test_depthwise_convolutions_are_followed(padding: int) -> None:
    net = Net()
    y = net.unit(net.x, 6, "fc1", {0: SILENT, 2: OFTEN})
    weight = Weight.dense(net.rng.normal(size=(6, 1, 3, 3)))
    op = ops.Conv(weight, np.full(6, 0.7), (1, 1), (padding,) * 2, (1, 1), 6)
    y = net.lif(net.add(op, y, name="depthwise"), "mid", 1.0)
    result = check(net.done(net.unit(y, 4, "fc2")), net.data())
    # A silent channel leaves the bias, a firing one too unless it meets padded zeros.
    assert {width(result.graph, n) for n in ("fc1", "depthwise", "mid")} == {5 if padding else 4}


def test_grouped_convolutions_keep_their_groups_but_pass_constants_on() -> None:
    net = Net()
    y = net.unit(net.x, 6, "fc1", {0: SILENT, 1: OFTEN, 2: LATE, 4: LATE})
    weight = Weight.dense(net.rng.normal(size=(4, 3, 2, 2)))
    op = ops.Conv(weight, np.full(4, 1.3), (1, 1), (0, 0), (1, 1), 2)
    y = net.lif(net.add(op, y, name="grouped"), "mid", 1.0)
    result = check(net.done(net.unit(y, 4, "fc2")), net.data())
    assert not result.modified
    assert any(
        "mid: 2 channels that fire a constant train stay" in n or "mid: 2 silent" in n for n in result.notes
    )


def test_flattened_maps_are_followed() -> None:
    net = Net()
    y = net.unit(net.x, 4, "fc1", {2: OFTEN})
    y = net.add(ops.Flatten(), y, name="flat")
    result = check(net.done(net.lif(net.linear(y, 3, "fc2_fc"), "fc2")), net.data())
    assert width(result.graph, "flat") == 3 * 20


def test_a_channel_that_something_else_reads_stays() -> None:
    net = Net()
    hidden = net.unit(net.x, 5, "fc1", {0: SILENT, 2: OFTEN})
    y = net.unit(hidden, 5, "fc2")
    residual = net.add(ops.Add(), hidden, y, name="add")
    result = check(net.done(residual), net.data())
    assert not result.modified
    assert any(
        "fc1: 1 channels that fire a constant train stay, read by fc2_fc (Linear), add" in n
        for n in result.notes
    )


def test_a_drive_at_the_threshold_stays() -> None:
    net = Net()
    exact = 1.1 * 1.7  # h = -0.1 + x / 1.7 is 1 at the first step, up to rounding
    hidden = net.unit(net.x, 5, "fc1", {1: exact, 2: exact * (1 + 1e-7), 3: exact * (1 + 1e-3)})
    result = check(net.done(net.unit(hidden, 4, "fc2")), net.data())
    op = result.graph["fc1"].op
    assert isinstance(op, ops.Neuron) and op.kept is not None and op.kept.tolist() == [0, 1, 2, 4]
    assert any("fc1: 2 channels with a constant drive stay: float32 rounding" in n for n in result.notes)


def test_per_channel_parameters_and_kept_compose() -> None:
    net = Net()
    y = net.linear(net.x, 5, "fc1_fc", {1: SILENT, 3: SILENT})
    tau, threshold = np.linspace(1.5, 2.5, 5), np.linspace(0.9, 1.1, 5)
    earlier = np.array([0, 2, 3, 7, 9])
    op = ops.Neuron(tau, threshold, np.linspace(-0.1, 0.1, 5), kept=earlier)
    y = net.add(op, y, name="fc1")
    graph = net.done(net.unit(y, 3, "fc2"))
    result = ConstantChannels().run(graph).graph["fc1"].op
    assert isinstance(result, ops.Neuron) and result.kept is not None and result.v_reset is not None
    assert result.kept.tolist() == [0, 3, 9]
    np.testing.assert_array_equal(result.tau, tau[[0, 2, 4]])
    np.testing.assert_array_equal(result.v_threshold, threshold[[0, 2, 4]])
    np.testing.assert_array_equal(result.v_reset, np.linspace(-0.1, 0.1, 5)[[0, 2, 4]])


def test_shared_weights_are_cut_to_each_ones_own() -> None:
    net = Net()
    shared = Weight.dense(1.5 * net.rng.normal(size=(3, 3)))
    drives = {0: OFTEN}
    y = net.x
    for i in range(2):
        y = net.lif(net.add(ops.Linear(shared, net.rng.normal(size=3)), y, name=f"fc{i}"), f"lif{i}")
        y = net.unit(y, 3, f"mid{i}", drives)
    before = shared.array().copy()
    result = check(net.done(y, net.unit(y, 3, "end")), net.data())
    assert width(result.graph, "mid0") == 2
    assert any("the shared weight becomes each one's own" in n for n in result.notes)
    np.testing.assert_array_equal(shared.array(), before)


def test_outputs_and_inputs_keep_their_channels() -> None:
    net = Net()
    hidden = net.unit(net.x, 5, "fc1", {1: SILENT, 2: OFTEN})
    weight = net.rng.normal(size=(4, 5))
    y = net.add(ops.Linear(Weight.dense(weight), None), hidden, name="fc2")
    assert not check(net.done(hidden, y), net.data()).modified
    net = Net()
    weight = 2 * net.rng.normal(size=(4, 3))
    weight[:, 1] = 0.0
    y = net.lif(net.add(ops.Linear(Weight.dense(weight), np.ones(4)), net.x, name="fc"), "lif")
    result = check(net.done(y), net.data())
    assert not result.modified and result.graph["input"].value.shape == (3, 4, 5)
