"""Hand-written NIR graphs of the standard primitives, against NIR's equations step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from stdeploy.graph import Graph
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.weight import Array
from stdeploy.importers.nir import import_nir
from tests.nir_graphs import DT, RNG, conv2d, dyadic, lif, network


@pytest.fixture(autouse=True)
def numbers_do_not_depend_on_what_ran_before() -> None:
    RNG.bit_generator.state = np.random.default_rng(11).bit_generator.state


class Simulator:
    """NIR by the letter: one step of forward Euler at a time, in float64, from rest."""

    def __init__(self, graph: Any, dt: float) -> None:
        self.graph, self.dt = graph, dt
        self.v: dict[str, Array] = {}
        self.spikes: dict[str, list[Array]] = {}

    def step(self, x: Array) -> Array:
        values: dict[str, Array] = {}

        def value(name: str) -> Array:
            if name not in values:
                node = self.graph.nodes[name]
                read = [s for s, t in self.graph.edges if t == name]
                values[name] = x if isinstance(node, nir.Input) else self.apply(name, sum(map(value, read)))
            return values[name]

        for name in self.graph.nodes:
            value(name)
        return value("output")

    def apply(self, name: str, x: Any) -> Array:
        node = self.graph.nodes[name]
        if isinstance(node, nir.LIF | nir.IF | nir.Threshold):
            return self.fire(name, node, x)
        if isinstance(node, nir.NIRGraph):
            inner = self.v.setdefault(name, Simulator(node, self.dt))  # type: ignore[arg-type]
            return inner.step(x)  # type: ignore[attr-defined, no-any-return]
        return linear(node, x)

    def fire(self, name: str, node: Any, x: Array) -> Array:
        if isinstance(node, nir.Threshold):
            spikes = (x > node.threshold).astype(float)
        else:
            v = self.v.setdefault(
                name, np.zeros_like(x) + (node.v_leak if isinstance(node, nir.LIF) else node.v_reset)
            )
            rate = (
                self.dt * node.r * x
                if isinstance(node, nir.IF)
                else (node.v_leak - v + node.r * x) * self.dt / node.tau
            )
            v = v + rate
            spikes = (v > node.v_threshold).astype(float)
            self.v[name] = np.where(spikes > 0, node.v_reset, v)
        self.spikes.setdefault(name, []).append(spikes)
        return spikes


def linear(node: Any, x: Array) -> Array:
    """Primitives without state, by PyTorch where it has them; `x [B, *shape]`."""
    t = torch.from_numpy(np.asarray(x, dtype=np.float64))

    def tensor(array: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(array, dtype=np.float64))

    def numbers(value: Any) -> Any:
        return value if isinstance(value, str) else tuple(int(i) for i in np.atleast_1d(value))

    if isinstance(node, nir.Conv1d | nir.Conv2d):
        function = functional.conv1d if isinstance(node, nir.Conv1d) else functional.conv2d
        how = [numbers(v) for v in (node.stride, node.padding, node.dilation)]
        y = function(t, tensor(node.weight), tensor(node.bias), *how, groups=int(node.groups))
    elif isinstance(node, nir.AvgPool2d | nir.SumPool2d):
        kernel, stride, padding = (numbers(v) for v in (node.kernel_size, node.stride, node.padding))
        y = functional.avg_pool2d(t, kernel, stride, padding)
        y = y * np.prod(kernel) if isinstance(node, nir.SumPool2d) else y
    elif isinstance(node, nir.Affine | nir.Linear):
        y = t @ tensor(node.weight).T + tensor(getattr(node, "bias", 0.0))
    elif isinstance(node, nir.Scale):
        y = t * tensor(node.scale)
    elif isinstance(node, nir.Flatten):
        y = t.flatten(1)
    else:
        y = t
    return y.numpy()


def simulate(graph: Any, inputs: Array, dt: float) -> tuple[Array, dict[str, Array]]:
    """Outputs and spikes `[T, B, ...]` for inputs `[T, B, ...]`."""
    simulator = Simulator(graph, dt)
    outputs = np.stack([simulator.step(x) for x in inputs])
    return outputs, {name: np.stack(steps) for name, steps in simulator.spikes.items()}


def agree(graph: Any, tmp_path: Path, steps: int = 5, *, fires: bool = True) -> Graph:
    """The imported file spikes as the simulator does, in float64 and in float32."""
    nir.write(tmp_path / "net.nir", graph)
    imported = import_nir(tmp_path / "net.nir", dt=DT, steps=steps, layout="TB")
    shape = graph.nodes["input"].input_type["input"]
    x = RNG.integers(-4, 9, (steps, 3, *shape)) / 4
    outputs, spikes = simulate(graph, x, DT)
    assert outputs.any()
    for dtype in (np.float64, np.float32):
        got = interpret(imported, x, dtype=dtype)
        for name, wanted in spikes.items():
            assert not fires or 0.02 < wanted.mean() < 0.98, f"{name} fires at {wanted.mean()}"
            np.testing.assert_array_equal(got.spikes[name], wanted, err_msg=name)
        np.testing.assert_allclose(got.outputs["output"], outputs, rtol=1e-5, atol=1e-5)
    return imported


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("leak", [0.0, -0.5, 0.25])
def test_lif_with_everything_that_nir_gives_it(tmp_path: Path, steps: int, leak: float) -> None:
    """Resistance, leak and reset potentials apart from each other, per neuron."""
    neuron = lif(
        6,
        tau=np.array([2, 4, 2, 8, 2, 4], np.float32) * DT,
        r=np.array([1, 2, 1, 4, 0.5, 2]),
        v_leak=leak,
        v_threshold=np.array([0.5, 0.25, 0.75, 0.5, 0.25, 1.0]),
        v_reset=np.array([0, -0.25, 0.125, 0, 0.25, 0.5]) * 0.5,
    )
    net = network((4,), nir.Affine(dyadic(6, 4), dyadic(6)), neuron, nir.Linear(dyadic(3, 6)), output=(3,))
    imported = agree(net, tmp_path, steps)
    assert [n.name for n in imported.neurons] == ["n1"]


def test_firing_needs_more_than_the_threshold(tmp_path: Path) -> None:
    net = network((3,), nir.Threshold(np.full(3, 0.5, np.float32)), output=(3,))
    nir.write(tmp_path / "net.nir", net)
    imported = import_nir(tmp_path / "net.nir", dt=DT, steps=1)
    x = np.array([[[0.5, np.nextafter(np.float32(0.5), np.float32(1)), 0.25]]])
    for dtype in (np.float64, np.float32):
        assert interpret(imported, x, dtype=dtype).outputs["output"].ravel().tolist() == [0, 1, 0]


@settings(max_examples=60, deadline=None)
@given(
    level=st.floats(-4, 4, allow_nan=False, width=64),
    drive=st.floats(-4, 4, allow_nan=False, width=32),
)
def test_more_than_any_threshold_for_every_float32(level: float, drive: float) -> None:
    from stdeploy.graph import GraphBuilder, ops
    from stdeploy.importers.nir.nodes import BUILD, Build

    b = Build(GraphBuilder(1), DT)
    x = b.add(ops.Input((1,), ("channel",), "TB"), node="input")
    s = BUILD[nir.Threshold](b, "unit", nir.Threshold(np.array([level])), x)
    b.add(ops.Output("output", "TB"), s, node="output")
    out = interpret(b.builder.build(), np.array([[[drive]]]), dtype=np.float32).outputs["output"]
    assert bool(out.item()) == (drive > level)


def test_integrate_and_fire_integrates_over_dt(tmp_path: Path) -> None:
    neuron = nir.IF(*(np.array(v, np.float32) for v in ([4, 2, 8], [0.5, 0.25, 1.0], [0, -0.25, 0.125])))
    agree(network((3,), neuron, output=(3,)), tmp_path)


SPACES: dict[str, tuple[Callable[[], Any], tuple[int, ...], tuple[int, ...]]] = {
    "conv, stride, padding, dilation": (
        lambda: conv2d(4, 2, 3, 2, stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (2, 7, 6), (4, 4, 8)
    ),
    "groups": (lambda: conv2d(6, 2, 3, 3, groups=2, padding=1, space=(5, 4)), (4, 5, 4), (6, 5, 4)),
    "depthwise": (lambda: conv2d(4, 1, 3, 1, groups=4), (4, 5, 4), (4, 3, 4)),
    "same, odd": (lambda: conv2d(4, 2, 3, 5, padding="same"), (2, 5, 6), (4, 5, 6)),
    "same, even": (lambda: conv2d(4, 2, 2, 4, padding="same"), (2, 5, 6), (4, 5, 6)),
    "same, even and dilated": (lambda: conv2d(4, 2, 2, 4, padding="same", dilation=(3, 1)), (2, 5, 6), (4, 5, 6)),
    "valid": (lambda: conv2d(4, 2, 2, 3, padding="valid"), (2, 5, 6), (4, 4, 4)),
    "1x1": (lambda: conv2d(4, 2, 1, 1), (2, 5, 6), (4, 5, 6)),
    "sum pool": (lambda: nir.SumPool2d(np.array([3, 2]), np.array([2, 2]), np.array([1, 0])), (2, 5, 6), (2, 3, 3)),
    "sum pool of four": (lambda: nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])), (2, 4, 6), (2, 2, 3)),
    "mean pool": (lambda: nir.AvgPool2d(np.array([2, 4]), np.array([2, 1]), np.array([1, 2])), (2, 5, 6), (2, 3, 7)),
    "scale by channel": (lambda: nir.Scale(np.broadcast_to(dyadic(2, 1, 1) + 2, (2, 3, 4)).copy()), (2, 3, 4), (2, 3, 4)),
    "scale by position": (lambda: nir.Scale(dyadic(2, 3, 4) + 2), (2, 3, 4), (2, 3, 4)),
    "no delay": (lambda: nir.Delay(np.zeros((2, 3, 4))), (2, 3, 4), (2, 3, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", SPACES)
def test_operators_on_maps(name: str, tmp_path: Path) -> None:
    make, shape, out = SPACES[name]
    agree(network(shape, make(), lif(*out, v_threshold=0.25, v_reset=-0.25), output=out), tmp_path)


def test_conv1d_and_flatten(tmp_path: Path) -> None:
    conv = nir.Conv1d(None, dyadic(6, 2, 4), 1, "same", 1, 2, dyadic(6))
    net = network(
        (4, 9), conv, lif(6, 9), nir.Flatten(np.array([6, 9]), 0, -1), nir.Affine(dyadic(3, 54), dyadic(3)), lif(3),
        output=(3,),
    )  # fmt: skip
    agree(net, tmp_path)


def test_leak_and_resistance_may_differ_by_position(tmp_path: Path) -> None:
    neuron = lif(2, 3, 4, v_leak=dyadic(2, 3, 4) / 4, r=dyadic(2, 3, 4) + 2, v_reset=0.125)
    agree(network((2, 3, 4), neuron, output=(2, 3, 4)), tmp_path)


def test_residual_edges_add_and_nested_graphs_flatten(tmp_path: Path) -> None:
    block = network((4,), nir.Affine(dyadic(4, 4), dyadic(4)), lif(4), output=(4,))
    nodes = {
        "input": nir.Input(np.array([4])),
        "stem": lif(4, v_threshold=0.25),
        "block": block,
        "head": nir.Linear(dyadic(4, 4)),
        "last": lif(4, v_threshold=0.25, v_reset=-0.25),
        "output": nir.Output(np.array([4])),
    }
    edges = [
        ("input", "stem"), ("stem", "block"), ("stem", "head"), ("block", "head"), ("head", "last"),
        ("stem", "last"), ("last", "output"), ("stem", "output"),
    ]  # fmt: skip
    imported = agree(nir.NIRGraph(nodes, edges, type_check=False), tmp_path, fires=False)
    assert [n.name for n in imported.neurons] == ["stem", "block.n1", "last"]


def test_an_edge_twice_counts_twice(tmp_path: Path) -> None:
    net = network((3,), lif(3), output=(3,))
    net.edges.append(("input", "n0"))
    agree(net, tmp_path)


def test_names_that_a_graph_does_not_take(tmp_path: Path) -> None:
    net = network((3,), lif(3), output=(3,))
    net.nodes["first layer"] = net.nodes.pop("n0")
    net.edges[:] = [("input", "first layer"), ("first layer", "output")]
    nir.write(tmp_path / "net.nir", net)
    assert import_nir(tmp_path / "net.nir", dt=DT, steps=2).neurons[0].name == "first_layer"
