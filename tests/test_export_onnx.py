"""Every operator of the catalogue through ONNX: the file checks, loads, and equals the interpreter."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.exporters.onnx import export
from stdeploy.graph import Graph, GraphBuilder, Weight, ops, validate
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.ops import Op
from stdeploy.runtime.onnx_session import OnnxRuntimeExecutor, OpenVinoExecutor
from tests.graphs import random_inputs

AXES = ("channel", "y", "x")
FORMS = ("first", "last")


def agree(
    graph: Graph, *, exact: bool = False, opset: int = 17, openvino: bool = True, offset: int = 0
) -> onnx.ModelProto:
    """Export, check, run in onnxruntime and OpenVINO at batch 1 and 3; outputs and spikes as interpreted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        export(validate(graph), path, {"opset": opset})
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        runtimes: list[Any] = [OnnxRuntimeExecutor(path, threads=1)]
        if openvino:
            runtimes.append(OpenVinoExecutor(path, threads=1))
    for batch in (1, 3):
        x = random_inputs(graph, batch) + offset
        want = interpret(graph, x, dtype=np.float32)
        for runtime in runtimes:
            got = runtime.run(x)
            assert set(got.outputs) == set(want.outputs)
            for label, array in want.outputs.items():
                assert got.outputs[label].shape == array.shape, runtime.name
                if exact:
                    np.testing.assert_array_equal(got.outputs[label], array, runtime.name)
                else:
                    np.testing.assert_allclose(got.outputs[label], array, 2e-5, 2e-5, err_msg=runtime.name)
            for name, spikes in want.spikes.items():
                spikes = np.broadcast_to(spikes, got.spikes[name].shape)  # a constant's have batch 1
                np.testing.assert_array_equal(got.spikes[name], spikes, f"{runtime.name} {name}")
    return model


class Net:
    """A chain of nodes over an Input; `form` last puts a token Linear in front, so that rows follow."""

    def __init__(
        self, shape: tuple[int, ...] = (4, 2, 3), steps: int = 1, layout: Any = "B", form: str = "first"
    ) -> None:
        self.rng = np.random.default_rng(7)
        self.builder = GraphBuilder(steps)
        self.x = self.builder.add(ops.Input(shape, AXES[: len(shape)], layout), name="input")
        if form == "last":
            weight = np.abs(self.normal(shape[0], shape[0])) * 0.6 + np.diag(np.full(shape[0], 0.5))
            self.x = self.add(ops.Linear(Weight.dense(weight), self.normal(shape[0]) * 0.1), name="rows")

    def add(self, op: Op, *inputs: str, name: str = "op") -> str:
        return self.builder.add(op, inputs or (self.x,), name=name, source=name)

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape)

    def linear(self, x: str, out: int, name: str) -> str:
        inp = self.builder.value(x).shape[0]
        return self.add(ops.Linear(Weight.dense(self.normal(out, inp)), self.normal(out)), x, name=name)

    def neuron(self, x: str, name: str, tau: float = 1.7) -> str:
        return self.add(ops.Neuron(np.array(tau), np.array(0.6), np.array(-0.1)), x, name=name)

    def done(self, *names: str) -> Graph:
        for i, name in enumerate(names):
            layout: Any = "TB" if self.builder.value(name).time == "step" else "B"
            self.add(ops.Output(f"out{i}", layout), name, name=f"output{i}")
        return self.builder.build()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["B", "BT", "TB"])
@pytest.mark.parametrize("steps", [1, 5])
def test_pointwise_operators_in_both_layouts(form: str, layout: str, steps: int) -> None:
    net = Net(steps=steps, layout=layout, form=form)
    a = net.add(ops.Affine(net.normal(4), net.normal(4)), name="bn")
    b = net.add(ops.Scale(0.3), a, name="scale")
    gate = net.add(ops.Reduce((1, 2), False, True), a, name="gate")
    rows = net.add(ops.Reduce((0,), True, True), a, name="rows_gate")
    gated = net.add(ops.Mul(), b, gate, name="gated")
    also = net.add(ops.Mul(), rows, gated, name="row_gated")
    total = net.add(ops.Add(), also, net.x, name="total")
    agree(net.done(total, gate, rows))


@pytest.mark.parametrize("kind", ["affine", "constant", "neuron"])
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_numbers_per_channel_behind_a_reduction_over_tokens(kind: str, mean: bool, keep: bool) -> None:
    """OpenVINO 2026.4 takes them as numbers per sample where the reduction is [B, C, N] -> [B, C]."""
    net = Net((4, 6), steps=5, layout="TB")
    reduced = net.add(ops.Reduce((1,), mean, keep), name="reduced")
    if kind == "affine":
        y = net.add(ops.Affine(net.normal(4) + 2, net.normal(4)), reduced, name="bn")
    elif kind == "neuron":
        taus = np.array([1.3, 2.0, 3.7, 1.1])
        y = net.add(ops.Neuron(taus, np.full(4, 0.3), np.array(-0.1)), reduced, name="lif")
    else:
        value = net.builder.value(reduced)
        constant = net.builder.add(ops.Constant(net.normal(*value.shape), value.axes), (), name="constant")
        y = net.add(ops.Add(), reduced, constant, name="sum")
    agree(net.done(y))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("shape", [(4, 2, 3), (4, 1, 1), (1, 2, 3), (4, 1, 3)])
def test_constants_broadcast_over_batch_positions_and_steps(
    form: str, steps: int, per_step: bool, shape: tuple[int, ...]
) -> None:
    for layout in ("B", "TB"):
        net = Net(steps=steps, layout=layout, form=form)
        values = net.normal(steps, *shape) if per_step else net.normal(*shape)
        constant = net.builder.add(ops.Constant(values, AXES, per_step), (), name="constant")
        summed = net.add(ops.Add(), net.x, constant, name="sum")
        product = net.add(ops.Mul(), constant, summed, name="product")
        agree(net.done(product), openvino=form == "last")


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("form", FORMS)
def test_constants_join_and_multiply_where_they_must_be_repeated(axis: int, form: str) -> None:
    net = Net(steps=3, layout="BT", form=form)
    constant = net.builder.add(ops.Constant(net.normal(3, 4, 2, 3), AXES, True), (), name="constant")
    joined = net.add(ops.Concat(axis), constant, net.x, name="joined")
    size = net.builder.value(joined).shape[axis]
    part = net.add(ops.Slice(axis, 1, size), joined, name="part")
    map_ = net.add(ops.MatMul("channels", (1, 3), (1, 3)), constant, net.x, name="map")
    agree(net.done(part, map_))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["B", "TB"])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("kind", ["linear", "conv", "pointwise"])
def test_a_bias_per_step(form: str, layout: str, steps: int, kind: str) -> None:
    net = Net(steps=steps, layout=layout, form=form)
    bias = net.normal(steps, 6)
    op: Op
    if kind == "linear":
        op = ops.Linear(Weight.csr(net.normal(6, 4) * (net.normal(6, 4) > 0)), bias)
    else:
        k = 1 if kind == "pointwise" else 2
        op = ops.Conv(Weight.dense(net.normal(6, 4, k, k)), bias, (1, 1), (k // 2,) * 2, (1, 1))
    agree(net.done(net.add(op)))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(1, 2),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_conv_in_one_and_two_dimensions(
    kernel: int, stride: int, padding: int, dilation: int, groups: int, flat: bool
) -> None:
    k = 1 if flat else 2
    net = Net((4, 7, 6)[: k + 1], steps=2, layout="TB")
    weight = Weight.dense(net.normal(6, 4 // groups, *[kernel] * k))
    op = ops.Conv(weight, net.normal(6), (stride,) * k, (padding,) * k, (dilation,) * k, groups)
    agree(net.done(net.add(op)), openvino=False)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.booleans(), st.booleans(), st.integers(4, 9)
)
def test_pools_with_ceil_mode_and_padding(
    kernel: int, stride: int, padding: int, ceil: bool, include: bool, size: int
) -> None:
    if padding > kernel // 2:
        return
    net = Net((3, size, size + 1))
    k, s, p = (kernel,) * 2, (stride,) * 2, (padding,) * 2
    largest = net.add(ops.MaxPool(k, s, p, (1, 1), ceil), name="max")
    mean = net.add(ops.AvgPool(k, s, p, ceil, include), net.x, name="mean")
    agree(net.done(largest, mean))


def test_a_dilated_maxpool_of_negative_values_never_picks_padding() -> None:
    net = Net((3, 7, 8))
    low = net.add(ops.Affine(np.ones(3), np.full(3, -9.0)), name="low")
    agree(net.done(net.add(ops.MaxPool((3, 2), (2, 1), (1, 1), (2, 1), True), low, name="pool")))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions_over_any_axes(form: str, mean: bool, keepdims: bool) -> None:
    net = Net(form=form)
    over = [(0,), (1, 2), (1,), (0, 2), (0, 1, 2)]
    results = [net.add(ops.Reduce(axes, mean, keepdims), net.x, name=f"r{i}") for i, axes in enumerate(over)]
    after = net.linear(results[1], 3, "after")
    graph = net.done(*results, after)
    agree(graph)
    agree(graph, opset=18)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", ["mean", "sum", "last"])
@pytest.mark.parametrize("steps", [1, 5])
def test_readouts_of_steps_and_of_static_values(form: str, mode: Any, steps: int) -> None:
    for layout in ("B", "BT"):
        net = Net(steps=steps, layout=layout, form=form)
        whole = net.add(ops.Readout(mode), net.x, name="readout")
        flat = net.add(ops.Flatten(), whole, name="flat")
        agree(net.done(net.linear(flat, 3, "head"), whole))


@pytest.mark.parametrize("form", FORMS)
def test_flatten_is_row_major_in_graph_order(form: str) -> None:
    net = Net(steps=2, layout="TB", form=form)
    agree(net.done(net.add(ops.Flatten())))


NEURONS = [
    (tau, reset, decay)
    for tau in (None, 1.0, 2.0, 1.7, "channel")
    for reset in (None, 0.0, -0.1)
    for decay in ((True,) if tau is None else (True, False))
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("tau", "reset", "decay"), NEURONS)
def test_neurons(form: str, tau: Any, reset: float | None, decay: bool) -> None:
    """Spikes equal the float32 interpreter's; the threshold differs per channel where tau does."""
    for steps, layout in ((5, "TB"), (4, "B"), (1, "TB")):
        net = Net(steps=steps, layout=layout, form=form)
        taus = np.array([1.3, 2.0, 3.7, 1.1]) if tau == "channel" else None if tau is None else np.array(tau)
        threshold = np.array([0.3, 0.5, 0.4, 0.45]) if tau == "channel" else np.array(0.4)
        rest = None if reset is None else np.array(reset)
        spikes = net.add(ops.Neuron(taus, threshold, rest, decay), name="lif")
        graph = net.done(spikes)
        rate = interpret(graph, random_inputs(graph, 3)).spikes["lif"].mean()
        assert 0.05 < rate < 0.95
        agree(graph, openvino=form == "first")


@pytest.mark.parametrize("reset", [None, 0.0, -0.1])
@pytest.mark.parametrize(("tau", "decay"), [(None, True), ("any", True), ("any", False), ("two", True)])
@pytest.mark.parametrize("scale", [0.125, 0.1])
def test_a_neuron_driven_by_integers_fires_exactly_at_threshold(
    tau: str | None, decay: bool, reset: float | None, scale: float
) -> None:
    """Every channel's threshold is the float32 membrane that some integer drive reaches exactly."""
    channels, steps = 64, 4
    rng = np.random.default_rng(5)
    taus = {"any": rng.uniform(1.1, 3.0, channels), "two": np.full(channels, 2.0)}.get(str(tau))
    taus = None if taus is None else taus.astype(np.float32)
    rest = None if reset is None else np.float32(reset)

    def neuron(threshold: np.ndarray) -> Graph:
        builder = GraphBuilder(steps)
        counts = ops.Input((channels,), ("channel",), "TB", domain=ops.count(1.0, 9))
        x = builder.add(counts, (), name="input")
        x = builder.add(ops.Scale(scale), (x,), name="scale")
        op = ops.Neuron(taus, threshold, None if rest is None else np.asarray(rest), decay)
        builder.add(ops.Output("out", "TB"), (builder.add(op, (x,), name="lif"),), name="output")
        return builder.build()

    silent = neuron(np.full(channels, 99, np.float32))
    x = random_inputs(silent, 1) + 1
    reached = interpret(silent, x, dtype=np.float32, membranes=True).membranes["lif"]
    step = rng.integers(0, steps, channels)
    # OpenVINO multiplies by 1/tau instead of dividing, so that it may round such a tie the other way.
    graph = neuron(reached[step, 0, np.arange(channels)])
    agree(graph, exact=True, offset=1, openvino=tau != "any")


HEADS = [
    ((4,), (4,)),
    ((2, 2), (2, 2)),
    ((2, 2), (3, 3)),
    ((1, 3), (2, 4)),
    ((3, 0, 1), (2, 2, 0)),
    ((1, 1), (3, 2)),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("heads", "v_heads"), HEADS)
@pytest.mark.parametrize("steps", [1, 3])
def test_both_attention_orders_with_equal_ragged_and_empty_heads(
    form: str, heads: tuple[int, ...], v_heads: tuple[int, ...], steps: int
) -> None:
    net = Net((2 * sum(heads) + sum(v_heads), 2, 3), steps=steps, layout="TB", form=form)
    d = sum(heads)
    q, k = (net.add(ops.Slice(0, i * d, (i + 1) * d), net.x, name=n) for i, n in enumerate("qk"))
    v = net.add(ops.Slice(0, 2 * d, 2 * d + sum(v_heads)), net.x, name="v")
    maps = net.add(ops.MatMul("channels", heads, heads), q, k, name="qk")
    scaled = net.add(ops.Scale(0.25), maps, name="scaled")
    keys = net.add(ops.MatMul("keys", (), v_heads), scaled, v, name="av")
    pairs = net.add(ops.MatMul("tokens", heads, v_heads), k, v, name="kv")
    halved = net.add(ops.Scale(0.25), pairs, name="halved")
    product = net.add(ops.MatMul("pairs", heads, v_heads), q, halved, name="qm")
    after = net.linear(product, 3, "after")
    agree(net.done(keys, product, after, maps, pairs))


@pytest.mark.parametrize("heads", [(2, 2), (1, 3)])
def test_neurons_on_attention_maps_and_on_pairs(heads: tuple[int, ...]) -> None:
    net = Net((4, 2, 3), steps=4, layout="TB", form="last")
    spikes = net.neuron(net.x, "q")
    maps = net.neuron(net.add(ops.MatMul("channels", heads, heads), spikes, net.x, name="qk"), "map_lif")
    pairs = net.neuron(net.add(ops.MatMul("tokens", heads, heads), spikes, net.x, name="kv"), "pair_lif")
    keys = net.add(ops.MatMul("keys", (), heads), maps, spikes, name="av")
    product = net.add(ops.MatMul("pairs", heads, heads), spikes, pairs, name="qm")
    static = net.add(ops.Add(), maps, maps, name="twice")
    agree(net.done(keys, product, static))


def test_attention_between_a_static_and_a_stepped_operand() -> None:
    net = Net((4, 2, 3), steps=3, form="last")
    spikes = net.neuron(net.x, "lif")
    maps = net.add(ops.MatMul("channels", (2, 2), (2, 2)), net.x, spikes, name="qk")
    ragged = net.add(ops.MatMul("tokens", (1, 3), (1, 3)), spikes, net.x, name="kv")
    total = net.add(ops.Add(), net.x, spikes, name="total")
    joined = net.add(ops.Concat(0), net.x, total, name="joined")
    agree(net.done(net.add(ops.MatMul("keys", (), (2, 2)), maps, net.x, name="av"), ragged, joined))


def test_public_names_survive_whatever_the_nodes_are_called() -> None:
    net = Net(form="first")
    inner = net.add(ops.Scale(2.0), name="out1")
    neuron = net.neuron(inner, "out0")
    first = net.add(ops.Output("out0", "TB"), neuron, name="o")
    second = net.add(ops.Output("out1"), inner, name="p")
    third = net.add(ops.Output("same"), inner, name="q")
    net.add(ops.Output("echo"), net.x, name="r")
    assert first and second and third
    model = agree(net.builder.build())
    assert [o.name for o in model.graph.output] == ["out0", "out1", "same", "echo"]
    assert model.graph.input[0].name == "input"


@pytest.mark.parametrize("per_step", [False, True])
def test_layers_that_depend_on_no_input(per_step: bool) -> None:
    net = Net(steps=3)
    values = np.abs(net.normal(*([3] if per_step else []), 4, 2, 3))
    constant = net.builder.add(ops.Constant(values, AXES, per_step), (), name="constant")
    other = net.builder.add(ops.Constant(values + 0.25, AXES, per_step), (), name="other")
    spikes = net.neuron(constant, "constant_lif")
    both = net.add(ops.Mul(), constant, other, name="both")
    weight = Weight.dense(np.abs(net.normal(4, 4)))
    linear = net.add(ops.Linear(weight, net.normal(4) * 0.1), both, name="rows")
    rows = net.neuron(net.add(ops.Scale(0.5), linear, name="scale"), "rows_lif")
    summed = net.add(ops.Add(), net.neuron(net.x, "lif"), spikes, name="summed")
    total = net.add(ops.Add(), rows, summed, name="total")
    mean = net.add(ops.Readout("mean"), constant, name="mean")
    final = net.add(ops.Add(), net.add(ops.Readout("last"), total, name="last"), mean, name="final")
    graph = net.done(total, final)
    fired = interpret(graph, random_inputs(graph, 3)).spikes
    assert all(0.05 < s.mean() < 0.95 for s in fired.values()), {n: s.mean() for n, s in fired.items()}
    agree(graph)
