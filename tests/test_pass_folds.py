"""The local passes: structure, equal spikes in float64, a second run that changes nothing, and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.graph import Graph, GraphBuilder, Weight, ops, validate
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.ops import Op
from stdeploy.graph.weight import Array
from stdeploy.passes.attention_order import AttentionOrder
from stdeploy.passes.base import Pass, PassError, PassResult
from stdeploy.passes.common_subexpressions import CommonSubexpressions
from stdeploy.passes.dead_code import DeadCode
from stdeploy.passes.fold_affine import FoldAffine, FoldScale
from stdeploy.passes.fold_lowrank import FoldLowRank
from stdeploy.passes.hoist_static import HoistStatic
from stdeploy.passes.pack_csr import PackCsr, csr_bytes, dense_bytes
from stdeploy.passes.pipelines import PIPELINES, run_pipeline
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph

AXES = ("channel", "y", "x")


def apply(step: Pass, graph: Graph) -> PassResult:
    """Run a pass; the result is legal and a second run changes nothing."""
    result = step.run(graph)
    validate(result.graph)
    assert result.modified == (result.graph is not graph)
    again = step.run(result.graph)
    assert not again.modified and again.graph is result.graph
    return result


def same_spikes(before: Graph, after: Graph, x: Array) -> None:
    """Every remaining neuron channel fires as before; outputs agree to float64 rounding."""
    old, new = interpret(before, x), interpret(after, x)
    for node in after.neurons:
        assert isinstance(node.op, ops.Neuron)
        spikes = old.spikes[node.name]
        np.testing.assert_array_equal(
            new.spikes[node.name], spikes if node.op.kept is None else spikes[:, :, node.op.kept]
        )
    for label, value in old.outputs.items():
        np.testing.assert_allclose(new.outputs[label], value, rtol=1e-11, atol=1e-11)


class Net:
    """A GraphBuilder with short names; every layer gets random awkward numbers."""

    def __init__(self, shape: tuple[int, ...] = (3, 5, 6), steps: int = 3, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.builder = GraphBuilder(steps)
        self.x = self.add(ops.Input(shape, AXES[: len(shape)], "TB"), name="input")

    def add(self, op: Op, *inputs: str, name: str) -> str:
        return self.builder.add(op, inputs, name=name, source=name)

    def linear(self, x: str, out: int, name: str, bias: bool = True) -> str:
        inp = self.builder.value(x).shape[0]
        b = self.rng.normal(size=out) if bias else None
        return self.add(ops.Linear(Weight.dense(self.rng.normal(size=(out, inp))), b), x, name=name)

    def conv(self, x: str, out: int, name: str, padding: int = 1, groups: int = 1, bias: bool = True) -> str:
        inp = self.builder.value(x).shape[0] // groups
        weight = Weight.dense(self.rng.normal(size=(out, inp, 3, 3)) / 3)
        b = self.rng.normal(size=out) if bias else None
        return self.add(ops.Conv(weight, b, (1, 1), (padding,) * 2, (1, 1), groups), x, name=name)

    def affine(self, x: str, name: str, shift: bool = True) -> str:
        channels = self.builder.value(x).shape[0]
        offset = self.rng.normal(size=channels) if shift else np.zeros(channels)
        return self.add(ops.Affine(self.rng.normal(size=channels), offset), x, name=name)

    def lif(self, x: str, name: str, threshold: float = 0.6) -> str:
        return self.add(ops.Neuron(np.array(1.7), np.array(threshold), np.array(-0.1)), x, name=name)

    def done(self, *outputs: str) -> Graph:
        for i, name in enumerate(outputs):
            layout = "TB" if self.builder.value(name).time == "step" else "B"
            self.add(ops.Output(f"y{i}", layout), name, name=f"output{i}")
        return validate(self.builder.build())


def kinds(graph: Graph) -> list[str]:
    return [n.kind for n in graph if n.kind not in ("Input", "Output")]


def data(graph: Graph, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(graph.steps, 3, *graph.inputs[0].value.shape))


def check(step: Pass, graph: Graph) -> PassResult:
    result = apply(step, graph)
    x = data(graph)
    if graph.neurons:
        every_layer_fires(graph, x)
    same_spikes(graph, result.graph, x)
    return result


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_affine_folds_into_the_conv_before_it(bias: bool, groups: int) -> None:
    net = Net()
    y = net.lif(net.affine(net.conv(net.x, 6, "conv", groups=groups, bias=bias), "bn"), "lif")
    result = check(FoldAffine(), net.done(y))
    assert kinds(result.graph) == ["Conv", "Neuron"] and result.modified


def test_affine_folds_into_the_linear_with_a_bias_per_step() -> None:
    net = Net((3,))
    op = ops.Linear(Weight.dense(net.rng.normal(size=(4, 3))), net.rng.normal(size=(3, 4)))
    result = check(FoldAffine(), net.done(net.lif(net.affine(net.add(op, net.x, name="fc"), "bn"), "lif")))
    (node,) = result.graph.of(ops.Linear)
    assert isinstance(node.op, ops.Linear) and node.op.bias is not None and node.op.bias.shape == (3, 4)


@pytest.mark.parametrize("groups", [1, 3])
def test_affine_folds_ahead_into_every_reader_that_does_not_pad(groups: int) -> None:
    net = Net()
    s = net.lif(net.x, "lif")
    bn = net.affine(s, "bn")
    y = net.conv(bn, 6, "conv", padding=0, groups=groups)
    z = net.linear(bn, 4, "fc")
    result = check(FoldAffine(), net.done(net.lif(y, "a"), net.lif(z, "b")))
    assert kinds(result.graph).count("Affine") == 0


def test_affine_before_a_padded_conv_folds_only_without_a_shift() -> None:
    for shift in (True, False):
        net = Net()
        y = net.conv(net.affine(net.lif(net.x, "lif"), "bn", shift=shift), 4, "conv")
        result = check(FoldAffine(), net.done(net.lif(y, "out")))
        assert result.modified is not shift
        assert any("pads with zeros" in note for note in result.notes) is shift


def test_affine_behind_a_branching_conv_stays_and_says_why() -> None:
    net = Net()
    y = net.conv(net.x, 3, "conv")
    both = net.add(ops.Add(), net.lif(net.affine(y, "bn"), "lif"), net.lif(y, "raw"), name="add")
    result = check(FoldAffine(), net.done(both))
    assert not result.modified
    assert any("conv is also read by raw" in note for note in result.notes)


def test_affine_chain_and_branching_source_fold_together() -> None:
    net = Net()
    s = net.lif(net.x, "lif")
    y = net.affine(net.affine(net.affine(s, "a"), "b"), "c")
    result = check(FoldAffine(), net.done(net.add(ops.Add(), y, s, name="add")))
    assert kinds(result.graph).count("Affine") == 1


def test_shared_weight_folds_to_each_call_its_own() -> None:
    net = Net((4,), seed=4)
    op = ops.Linear(Weight.dense(net.rng.normal(size=(4, 4))), net.rng.normal(size=4))
    y = net.lif(net.affine(net.add(op, net.x, name="fc"), "bn0"), "lif0")
    y = net.lif(net.affine(net.add(op, y, name="fc"), "bn1"), "lif1")
    graph = net.done(y)
    original = op.weight.array().copy()
    result = check(FoldAffine(), graph)
    assert kinds(result.graph).count("Affine") == 0
    np.testing.assert_array_equal(op.weight.array(), original)


@pytest.mark.parametrize("factor", [0.125, -0.3])
def test_scale_folds_into_either_neighbour(factor: float) -> None:
    net = Net()
    y = net.conv(net.add(ops.Scale(factor), net.lif(net.x, "lif"), name="scale"), 4, "conv")
    y = net.lif(net.add(ops.Scale(2.0), y, name="scale2"), "out")
    result = check(FoldScale(), net.done(y))
    assert kinds(result.graph) == ["Neuron", "Conv", "Neuron"]


def test_scale_between_attention_and_neuron_stays() -> None:
    result = FoldScale().run(spikformer_graph())
    assert not result.modified
    assert any("block.0.attn.scale stays" in note for note in result.notes)


@pytest.mark.parametrize("per_step", [False, True])
def test_lowrank_pair_folds_where_the_product_is_not_larger(per_step: bool) -> None:
    for rank in (2, 4):
        net = Net((6,))
        bias = net.rng.normal(size=(3, rank) if per_step else rank)
        inner = net.add(ops.Linear(Weight.dense(net.rng.normal(size=(rank, 6))), bias), net.x, name="u")
        result = check(FoldLowRank(), net.done(net.lif(net.linear(inner, 5, "v"), "lif")))
        # 5 * 6 = 30 against rank * 11
        assert result.modified is (rank * 11 >= 30)


def test_lowrank_pair_of_pointwise_convs_folds_and_a_shared_factor_stays() -> None:
    net = Net()
    one = ops.Conv(Weight.dense(net.rng.normal(size=(4, 3, 1, 1))), None, (1, 1), (0, 0), (1, 1))
    inner = net.add(one, net.x, name="u")
    result = check(FoldLowRank(), net.done(net.lif(net.linear(inner, 4, "v"), "lif")))
    assert kinds(result.graph) == ["Linear", "Neuron"]
    net = Net()
    inner = net.add(one, net.x, name="u")
    pair = net.add(ops.Add(), net.linear(inner, 4, "v"), net.linear(inner, 4, "w"), name="add")
    result = check(FoldLowRank(), net.done(net.lif(pair, "lif")))
    assert not result.modified and any("u has 2 readers" in note for note in result.notes)


def test_dead_code_goes_and_says_which_neurons() -> None:
    net = Net()
    live = net.lif(net.conv(net.x, 4, "conv"), "lif")
    net.lif(net.conv(live, 4, "unused"), "dead_lif")
    result = check(DeadCode(), net.done(live))
    assert kinds(result.graph) == ["Conv", "Neuron"]
    assert any(note.startswith("dead_lif") for note in result.notes)


def test_equal_subexpressions_merge_neurons_included() -> None:
    net = Net()
    op = ops.Conv(Weight.dense(net.rng.normal(size=(3, 3, 3, 3))), None, (1, 1), (1, 1), (1, 1))
    copy = replace(op, weight=Weight.dense(op.weight.array().copy()))
    a = net.lif(net.add(op, net.x, name="a"), "a_lif")
    b = net.lif(net.add(copy, net.x, name="b"), "b_lif")
    other = net.add(ops.Neuron(np.array(1.7), np.array(0.7), np.array(-0.1)), "a", name="c_lif")
    y = net.add(ops.Add(), net.add(ops.Add(), a, b, name="ab"), other, name="abc")
    result = check(CommonSubexpressions(), net.done(y))
    assert kinds(result.graph) == ["Conv", "Neuron", "Neuron", "Add", "Add"]


def test_hoisting_stores_once_what_never_changes() -> None:
    net = Net((4,))
    fixed = np.broadcast_to(net.rng.normal(size=4), (3, 4)).copy()
    moving = net.rng.normal(size=(3, 4))
    weight = Weight.dense(net.rng.normal(size=(4, 4)))
    y = net.add(ops.Linear(weight, fixed), net.x, name="fixed")
    y = net.add(ops.Linear(weight, moving), net.lif(y, "lif0"), name="moving")
    y = net.add(
        ops.Add(), y, net.add(ops.Constant(fixed, ("channel",), per_step=True), name="constant"), name="add"
    )
    result = check(HoistStatic(), net.done(net.lif(y, "lif1")))
    constant = result.graph["constant"].op
    assert isinstance(constant, ops.Constant) and not constant.per_step
    biases = [n.op.bias for n in result.graph.of(ops.Linear) if isinstance(n.op, ops.Linear)]
    assert [b.ndim for b in biases if b is not None] == [1, 2]


def test_hoisting_names_the_stem_and_leaves_an_output_per_step() -> None:
    result = HoistStatic().run(spikformer_graph())
    assert not result.modified
    assert any(note.endswith("patch_embed.proj0_conv") for note in result.notes)
    net = Net((4,))
    y = net.add(ops.Constant(np.ones((3, 4)), ("channel",), per_step=True), name="constant")
    result = HoistStatic().run(net.done(y, net.lif(net.x, "lif")))
    assert not result.modified and "an output needs it so" in result.notes[0]


@pytest.mark.parametrize("order", ["qk", "kv"])
@pytest.mark.parametrize("image", [(2, 8, 8), (2, 24, 20)])
def test_attention_takes_the_cheaper_order(order: str, image: tuple[int, int, int]) -> None:
    graph = spikformer_graph(
        steps=3, image=image, heads=(8, 5), v_heads=(7, 6), depth=2, order="qk" if order == "qk" else "kv"
    )
    x = random_inputs(graph, 3)
    every_layer_fires(graph, x)
    result = apply(AttentionOrder(), graph)
    same_spikes(graph, result.graph, x)
    n = image[1] * image[2] // 16
    scores, values = n * n * (15 + 11), 2 * n * (8 * 7 + 5 * 6)
    cheap = "pairs" if values < scores else "keys"
    ends = [n.op.over for n in result.graph.of(ops.MatMul) if isinstance(n.op, ops.MatMul)][1::2]
    assert ends == [cheap, cheap]
    assert result.modified is ((cheap == "keys") != (order == "qk"))


def test_attention_keeps_its_order_where_reordering_rounds() -> None:
    def graph(factor: float, real: bool, between: bool) -> Graph:
        net = Net((6, 4, 5))
        q, k = (net.lif(net.linear(net.x, 4, c), f"{c}_lif") for c in "qk")
        v = net.linear(net.x, 4, "v")
        v = v if real else net.lif(v, "v_lif")
        y = net.add(ops.MatMul("channels", (1, 3), (1, 3)), q, k, name="scores")
        if between:
            y = net.add(
                ops.Add(),
                y,
                net.add(ops.Constant(np.ones((2, 1, 1, 1, 1)), AXES + AXES[1:]), name="c"),
                name="a",
            )
        y = net.add(ops.Scale(factor), y, name="scale")
        return net.done(
            net.lif(net.add(ops.MatMul("keys", (), (2, 2)), y, v, name="av"), "out", 1.0 if between else 0.2)
        )

    assert check(AttentionOrder(), graph(0.25, False, False)).modified
    for arguments, why in (
        ((0.3, False, False), "no power of two"),
        ((0.25, True, False), "v is real"),
        ((0.25, False, True), "not joined by Scales alone"),
    ):
        result = check(AttentionOrder(), graph(*arguments))
        assert not result.modified and why in result.notes[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 99))
def test_csr_is_taken_exactly_where_it_is_smaller(rows: int, columns: int, density: float, seed: int) -> None:
    net = Net((columns,), seed=seed)
    values = net.rng.normal(size=(rows, columns)) * (net.rng.random((rows, columns)) < density)
    graph = net.done(net.add(ops.Linear(Weight.dense(values)), net.x, name="fc"))
    result = apply(PackCsr(), graph)
    op = result.graph["fc"].op
    assert isinstance(op, ops.Linear)
    stored = Weight.csr(values.astype(np.float32))
    assert stored.indptr is not None
    real_bytes = stored.nbytes - stored.indptr.nbytes // 2  # the rule counts 32-bit row pointers
    assert csr_bytes(op.weight) == real_bytes and dense_bytes(op.weight) == values.astype(np.float32).nbytes
    assert op.weight.is_csr == (csr_bytes(op.weight) < dense_bytes(op.weight))
    assert not op.weight.is_csr or op.weight.density < 0.5
    np.testing.assert_array_equal(op.weight.array(), values)


def test_csr_that_does_not_pay_becomes_dense() -> None:
    net = Net((5,))
    graph = net.done(net.add(ops.Linear(Weight.csr(net.rng.normal(size=(4, 5)))), net.x, name="fc"))
    op = apply(PackCsr(), graph).graph["fc"].op
    assert isinstance(op, ops.Linear) and not op.weight.is_csr


@pytest.mark.parametrize("target", sorted(PIPELINES))
@pytest.mark.parametrize("layout", ["B", "BT"])
@pytest.mark.parametrize("steps", [1, 5])
def test_pipelines_keep_every_spike(target: str, layout: str, steps: int) -> None:
    graph = spikformer_graph(
        steps=steps,
        depth=2,
        neurons="mixed",
        per_channel=True,
        layout="B" if layout == "B" else "BT",
        masked=0.5,
        columns=False,
    )
    x = random_inputs(graph, 3)
    every_layer_fires(graph, x)
    result = run_pipeline(graph, PIPELINES[target])
    assert result.modified
    same_spikes(graph, result.graph, x)
    assert not run_pipeline(result.graph, PIPELINES[target]).modified
    assert "Affine" not in kinds(result.graph)
    assert tuple(result.graph.metadata["passes"]) == result.notes
    biases = [n.op.bias for n in result.graph if isinstance(n.op, ops.Linear | ops.Conv)]
    if target == "nir":
        assert all(b is None or b.ndim == 1 for b in biases) and not result.graph.of(ops.Constant)


def test_pipeline_names_the_pass_that_breaks_the_graph() -> None:
    class Breaks:
        name = "breaks"

        def run(self, graph: Graph) -> PassResult:
            nodes = {n: node for n, node in graph.nodes.items() if node.kind != "Output"}
            return PassResult(replace(graph, nodes=nodes), True)

    net = Net((3,))
    with pytest.raises(PassError, match=r"pass breaks \(after dead-code\):[\s\S]*no Output"):
        run_pipeline(net.done(net.lif(net.x, "lif")), (DeadCode(), Breaks()))
