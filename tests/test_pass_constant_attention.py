"""Constant channels of q, k and v: every row of the table, at both orders of the product."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.graph import ops, validate
from stdeploy.passes.attention_order import AttentionOrder
from stdeploy.passes.constant_channels import ConstantChannels
from tests.rows import ALWAYS, LATE, OFTEN, SILENT, Net, check, linear_of, same_spikes, width


def attention(
    net: Net, order: str, q: dict[int, float], k: dict[int, float], v: dict[int, float], sliced: bool = False
) -> str:
    """Heads (3, 2) of q and k, (2, 3) of v; `sliced` writes one product per head and a Concat."""
    heads, v_heads = (3, 2), (2, 3)
    a, b, c = (net.unit(net.x, 5, name, drives) for name, drives in (("q", q), ("k", k), ("v", v)))
    if sliced:
        cut = [(0, 3, 0, 2), (3, 5, 2, 5)]
        parts = []
        for h, (i, j, m, n) in enumerate(cut):
            qs, ks = (net.add(ops.Slice(0, i, j), x, name=f"{x}{h}") for x in (a, b))
            vs = net.add(ops.Slice(0, m, n), c, name=f"v{h}")
            y = net.add(ops.MatMul("channels", (j - i,), (j - i,)), qs, ks, name=f"scores{h}")
            parts.append(net.add(ops.MatMul("keys", (), (n - m,)), y, vs, name=f"av{h}"))
        y = net.add(ops.Concat(), *parts, name="heads")
    elif order == "qk":
        y = net.add(ops.MatMul("channels", heads, heads), a, b, name="scores")
        y = net.add(ops.MatMul("keys", (), v_heads), net.add(ops.Scale(0.3), y, name="s"), c, name="av")
    else:
        y = net.add(ops.MatMul("tokens", heads, v_heads), b, c, name="kv")
        y = net.add(ops.MatMul("pairs", heads, v_heads), a, net.add(ops.Scale(0.3), y, name="s"), name="av")
    y = net.add(ops.Scale(1.5), y, name="scale")
    return net.unit(net.lif(y, "attn"), 4, "proj")


@pytest.mark.parametrize("constants", ["fold", "keep"])
@pytest.mark.parametrize("order", ["qk", "kv"])
def test_constant_query_key_pairs_become_a_constant_per_head(order: str, constants: Any) -> None:
    net = Net(1)
    y = attention(net, order, {0: OFTEN, 1: LATE, 3: ALWAYS}, {0: OFTEN, 1: SILENT, 3: OFTEN}, {})
    result = check(net.done(y), net.data(), constants)
    # Pair 1 never fires; pairs 0 and 3 fire and go only where the scores can hold a number per step.
    assert width(result.graph, "q") == width(result.graph, "k") == (2 if constants == "fold" else 4)
    assert len(result.graph.of(ops.Constant)) == (1 if constants == "fold" else 0)
    assert any("2 constant q, k pairs joined" in n for n in result.notes) == (constants == "fold")


@pytest.mark.parametrize("order", ["qk", "kv"])
def test_a_lone_constant_query_goes_where_silent_and_stays_where_it_fires(order: str) -> None:
    net = Net(2)
    result = check(net.done(attention(net, order, {0: SILENT, 4: OFTEN}, {1: SILENT}, {})), net.data())
    op = result.graph["q"].op
    assert isinstance(op, ops.Neuron) and op.kept is not None and op.kept.tolist() == [2, 3, 4]
    assert width(result.graph, "k") == 3
    assert any("q: 1 channels that fire a constant train stay" in n for n in result.notes)


@pytest.mark.parametrize("order", ["qk", "kv"])
def test_value_channels(order: str) -> None:
    net = Net(3)
    drives = {0: SILENT, 2: OFTEN, 3: OFTEN, 4: LATE}
    result = check(net.done(attention(net, order, {}, {}, drives)), net.data())
    op = result.graph["v"].op
    assert isinstance(op, ops.Neuron) and op.kept is not None
    assert op.kept.tolist() == [1, 2, 4]  # 2 and 3 fire alike in one head: one channel, summed columns
    attn = result.graph["attn"].op
    assert isinstance(attn, ops.Neuron) and attn.kept is not None and attn.kept.tolist() == [1, 2, 4]


@pytest.mark.parametrize("order", ["qk", "kv"])
def test_a_head_without_values_goes_as_a_whole(order: str) -> None:
    net = Net(4)
    result = check(
        net.done(attention(net, order, {0: OFTEN}, {0: OFTEN}, {0: SILENT, 1: SILENT})), net.data()
    )
    assert {width(result.graph, n) for n in "qk"} == {2} and width(result.graph, "v") == 3
    (_, second) = (n.op for n in result.graph.of(ops.MatMul))
    assert isinstance(second, ops.MatMul) and len(second.heads_b) == 1


@pytest.mark.parametrize("order", ["qk", "kv"])
def test_a_head_of_constants_keeps_one_pair(order: str) -> None:
    net = Net(6)
    drives = {3: OFTEN, 4: ALWAYS}
    result = check(net.done(attention(net, order, drives, drives, {})), net.data())
    assert width(result.graph, "q") == 4
    silent = {3: SILENT, 4: SILENT}
    net = Net(6)
    result = check(net.done(attention(net, order, silent, {}, {})), net.data())
    assert width(result.graph, "q") == 3 and width(result.graph, "v") == 2


def test_heads_cut_by_slices_are_followed() -> None:
    net = Net(6)
    y = attention(net, "qk", {0: OFTEN, 3: LATE}, {0: ALWAYS, 3: LATE}, {1: SILENT, 2: OFTEN}, sliced=True)
    result = check(net.done(y), net.data())
    assert width(result.graph, "q") == 3 and width(result.graph, "v") == 4
    assert {n.name for n in result.graph.of(ops.Constant)} == {"scores0.constant", "scores1.constant"}


def test_attention_behind_a_neuron_between_the_products_is_left() -> None:
    net = Net(7)
    q, k, v = (net.unit(net.x, 4, name, {0: OFTEN}) for name in "qkv")
    kv = net.lif(net.add(ops.MatMul("tokens", (2, 2), (2, 2)), k, v, name="kv"), "kv_lif")
    y = net.add(ops.MatMul("pairs", (2, 2), (2, 2)), q, kv, name="av")
    result = check(net.done(net.unit(net.lif(y, "attn"), 3, "proj")), net.data())
    assert not result.modified
    assert sum("fire a constant train stay" in n for n in result.notes) == 3


def test_elementwise_attention() -> None:
    """Spike-driven self-attention: q * LIF(sum over tokens of k * v)."""
    net = Net(8)
    q = net.unit(net.x, 6, "q", {0: ALWAYS, 1: OFTEN, 5: SILENT})
    k = net.unit(net.x, 6, "k", {0: ALWAYS, 1: OFTEN, 2: SILENT, 3: OFTEN})
    v = net.unit(net.x, 6, "v", {0: OFTEN, 1: OFTEN, 3: OFTEN})
    kv = net.add(ops.Mul(), k, v, name="kv")
    total = net.lif(net.add(ops.Reduce((1, 2), False, True), kv, name="total"), "talking")
    y = net.add(ops.Mul(), q, total, name="attended")
    result = check(net.done(net.unit(y, 4, "proj")), net.data())
    # 0, 1: all constant; 2: k silent; 5: q silent; 3: q varies, 4: nothing constant.
    assert {width(result.graph, n) for n in ("q", "k", "v", "talking")} == {2}
    bias = linear_of(result.graph, "proj_fc").bias
    assert bias is not None and bias.ndim == 2


@pytest.mark.parametrize("constants", ["fold", "keep"])
def test_token_attention_by_channel_sums(constants: Any) -> None:
    """QKFormer's token attention: k * LIF(sum over channels of q)."""
    net = Net(9)
    q = net.unit(net.x, 6, "q", {0: OFTEN, 1: LATE, 5: SILENT})
    k = net.unit(net.x, 6, "k", {3: OFTEN})
    gate = net.lif(net.add(ops.Reduce((0,), False, True), q, name="sum"), "gate")
    result = check(
        net.done(net.unit(net.add(ops.Mul(), k, gate, name="kq"), 4, "proj")), net.data(), constants
    )
    assert width(result.graph, "q") == (3 if constants == "fold" else 5)
    assert width(result.graph, "k") == 6  # k_3 is gated by q: no constant behind the product


def test_a_mean_over_channels_keeps_them() -> None:
    net = Net(9)
    q = net.unit(net.x, 6, "q", {0: OFTEN, 5: SILENT})
    gate = net.lif(net.add(ops.Reduce((0,), True, True), q, name="mean"), "gate")
    assert not check(net.done(gate), net.data()).modified


DRIVES = st.dictionaries(st.integers(0, 4), st.sampled_from([SILENT, LATE, OFTEN, ALWAYS]), max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    DRIVES,
    DRIVES,
    DRIVES,
    st.sampled_from([("qk", False), ("kv", False), ("qk", True)]),
    st.sampled_from(["fold", "keep"]),
    st.integers(0, 99),
)
def test_any_constants_in_attention_keep_every_spike(
    q: dict[int, float],
    k: dict[int, float],
    v: dict[int, float],
    form: tuple[str, bool],
    constants: Any,
    seed: int,
) -> None:
    net = Net(seed)
    source = graph = net.done(attention(net, form[0], q, k, v, form[1]))
    for step in (ConstantChannels(constants), AttentionOrder(), ConstantChannels(constants)):
        graph = validate(step.run(graph).graph)
        same_spikes(source, graph, net.data())
