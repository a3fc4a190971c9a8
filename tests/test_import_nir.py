"""Hand-written NIR graphs of the standard primitives, against NIR's equations step by step."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from stdeploy.cli.app import run
from stdeploy.errors import UnsupportedError, UserError
from stdeploy.graph import Graph
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.weight import Array
from stdeploy.importers.nir import import_nir

DT = 0.25
RNG = np.random.default_rng(11)


def dyadic(*shape: int) -> Array:
    """Quarters: sums are exact in float32, and ties at the threshold happen."""
    return RNG.integers(-4, 7, shape).astype(np.float32) / 4


def lif(*shape: int, **how: float | Array) -> Any:
    given: dict[str, Any] = {
        "tau": 2 * DT,
        "r": 1.0,
        "v_leak": 0.0,
        "v_threshold": 0.5,
        "v_reset": 0.0,
        **how,
    }
    return nir.LIF(**{k: np.broadcast_to(np.asarray(v, np.float32), shape).copy() for k, v in given.items()})


def conv2d(*weight: int, space: tuple[int, int] | None = None, **how: Any) -> Any:
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **how}
    return nir.Conv2d(space, dyadic(*weight), bias=dyadic(weight[0]), **given)


def network(shape: tuple[int, ...], *chain: Any, output: tuple[int, ...]) -> Any:
    """Input, the chain as n0, n1, ..., Output."""
    nodes = {"input": nir.Input(np.array(shape))} | {f"n{i}": node for i, node in enumerate(chain)}
    nodes["output"] = nir.Output(np.array(output))
    first = nodes["n0"]
    if isinstance(first, nir.Conv1d | nir.Conv2d) and first.input_shape is None:
        first.input_shape = shape[1:] if len(shape) == 3 else shape[1]  # nir writes no convolution without it
    return nir.NIRGraph(nodes, list(itertools.pairwise(nodes)), type_check=False)


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


SPACES: dict[str, tuple[Any, tuple[int, ...], tuple[int, ...]]] = {
    "conv, stride, padding, dilation": (
        conv2d(4, 2, 3, 2, stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (2, 7, 6), (4, 4, 8)
    ),
    "groups": (conv2d(6, 2, 3, 3, groups=2, padding=1, space=(5, 4)), (4, 5, 4), (6, 5, 4)),
    "depthwise": (conv2d(4, 1, 3, 1, groups=4), (4, 5, 4), (4, 3, 4)),
    "same, odd": (conv2d(4, 2, 3, 5, padding="same"), (2, 5, 6), (4, 5, 6)),
    "same, even": (conv2d(4, 2, 2, 4, padding="same"), (2, 5, 6), (4, 5, 6)),
    "same, even and dilated": (conv2d(4, 2, 2, 4, padding="same", dilation=(3, 1)), (2, 5, 6), (4, 5, 6)),
    "valid": (conv2d(4, 2, 2, 3, padding="valid"), (2, 5, 6), (4, 4, 4)),
    "1x1": (conv2d(4, 2, 1, 1), (2, 5, 6), (4, 5, 6)),
    "sum pool": (nir.SumPool2d(np.array([3, 2]), np.array([2, 2]), np.array([1, 0])), (2, 5, 6), (2, 3, 3)),
    "sum pool of four": (nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])), (2, 4, 6), (2, 2, 3)),
    "mean pool": (nir.AvgPool2d(np.array([2, 4]), np.array([2, 1]), np.array([1, 2])), (2, 5, 6), (2, 3, 7)),
    "scale by channel": (nir.Scale(np.broadcast_to(dyadic(2, 1, 1) + 2, (2, 3, 4)).copy()), (2, 3, 4), (2, 3, 4)),
    "scale by position": (nir.Scale(dyadic(2, 3, 4) + 2), (2, 3, 4), (2, 3, 4)),
    "no delay": (nir.Delay(np.zeros((2, 3, 4))), (2, 3, 4), (2, 3, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", SPACES)
def test_operators_on_maps(name: str, tmp_path: Path) -> None:
    node, shape, out = SPACES[name]
    agree(network(shape, node, lif(*out, v_threshold=0.25, v_reset=-0.25), output=out), tmp_path)


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


def test_everything_that_has_no_form_is_listed_at_once(tmp_path: Path) -> None:
    """Recurrence, delay, linear states, CubaLIF, parameters by position, half a flattening."""
    two = np.ones(2, np.float32)
    nodes: dict[str, Any] = {
        "input": nir.Input(np.array([2])),
        "integrator": nir.I(two),
        "li": nir.LI(two, two, two),
        "cuba": nir.CubaLIF(two, two, two, two, two),
        "cubali": nir.CubaLI(two, two, two, two),
        "delay": nir.Delay(two),
        "tokens": nir.Linear(np.ones((5, 2, 2), np.float32)),
        "loop": lif(2),
        "back": nir.Linear(dyadic(2, 2)),
        "map": lif(2, 3, tau=dyadic(2, 3) + 2),
        "part": nir.Flatten(np.array([2, 3, 4]), 1, -1),
        "same": conv2d(2, 2, 3, 3, padding="same", stride=2, space=(4, 4)),
        "output": nir.Output(np.array([2])),
    }
    names = [n for n in nodes if n != "back"]
    edges = [*itertools.pairwise(names), ("loop", "back"), ("back", "loop")]
    nir.write(tmp_path / "net.nir", nir.NIRGraph(nodes, edges, type_check=False))
    with pytest.raises(UnsupportedError) as caught:
        import_nir(tmp_path / "net.nir", dt=DT, steps=2)
    listed = {item.where: item.what for item in caught.value.items}
    assert listed == {
        "back, loop": "cycle",
        "integrator": "I",
        "li": "LI",
        "cuba": "CubaLIF",
        "cubali": "CubaLI",
        "delay": "Delay",
        "tokens": "Linear",
        "map": "LIF",
        "part": "Flatten",
        "same": "Conv2d",
    }


def plain(tmp_path: Path, **changes: Any) -> Path:
    """A small legal file, with nodes replaced."""
    net = network((3,), nir.Affine(dyadic(4, 3), dyadic(4)), lif(4), output=(4,))
    net.nodes.update(changes)
    nir.write(tmp_path / "net.nir", net)
    return tmp_path / "net.nir"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"n0": nir.Affine(np.full((4, 3), np.nan, np.float32), dyadic(4))},
            "n0: Affine: weight .* not finite",
        ),
        ({"n1": lif(4, tau=np.inf)}, "n1: LIF: tau holds values that are not finite"),
        ({"n1": lif(4, tau=DT / 2)}, "n1: LIF: tau = 0.125 is shorter than a step of dt = 0.25"),
        ({"n1": lif(5)}, "n1: LIF: tau has shape"),
        ({"n0": nir.Linear(dyadic(4, 7))}, "weight .* does not take"),
        ({"n0": nir.Affine(dyadic(4, 3), dyadic(2))}, "n0: Linear: bias"),
        ({"output": nir.Output(np.array([9]))}, r"output: Output: its shape is \[9\]"),
        ({"input": nir.Input(np.array([1, 2, 3, 4]))}, "one to three axes"),
        ({"input": nir.Input(np.array([0]))}, "input: not a legal Input: shape is out of range"),
        ({"input": nir.Input(np.array([10**6, 10**4, 10**4]))}, "too large"),
        ({"lonely": nir.Scale(dyadic(3))}, "lonely: Scale: nothing feeds it"),
    ],
)
def test_parameters_that_do_not_fit_name_their_node(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        import_nir(plain(tmp_path, **changes), dt=DT, steps=2)
    assert str(caught.value).startswith(str(tmp_path))


def damaged(path: Path, how: str) -> None:
    """Break a legal file in one way."""
    if how == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return
    if how in ("empty", "text"):
        path.write_bytes(b"" if how == "empty" else b"not HDF5 at all\n" * 99)
        return
    with h5py.File(path, "r+") as file:
        nodes = file["node/nodes"]
        if how == "no network":
            del file["node"]
        elif how == "no edges":
            del file["node/edges"]
        elif how == "newer":
            file["version"][()] = "99.0.0"
        elif how == "unknown type":
            nodes["n0/type"][()] = "Attention"
        elif how == "missing field":
            del nodes["n1/tau"]
        elif how == "ragged":
            del nodes["n1/tau"]
            nodes["n1/tau"] = np.ones(2)
        elif how == "wrong edge":
            del file["node/edges"]
            file["node/edges"] = np.array([["input", "nowhere"]], dtype=h5py.string_dtype())
        elif how == "huge":
            del nodes["n1/tau"]
            nodes.create_dataset("n1/tau", shape=(10**7, 10**6), dtype="f4", chunks=(1000, 1000))
        elif how == "words":
            del nodes["n1/tau"]
            nodes["n1/tau"] = np.array(["a"] * 4, dtype=h5py.string_dtype())
        elif how == "one node":
            file["node/type"][()] = "Affine"
        elif how == "endless":
            nodes["again"] = file["node"]
        elif how == "two inputs":
            file.copy("node/nodes/input", "node/nodes/other")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut short", "not a readable NIR file"),
        ("empty", "not a readable NIR file"),
        ("text", "not a readable NIR file"),
        ("no network", "not a readable NIR file"),
        ("no edges", "not a readable NIR file"),
        ("newer", "was written by nir 99.0.0"),
        ("unknown type", "n0 is a Attention, which nir .* does not know"),
        ("missing field", "n1: not a legal LIF"),
        ("ragged", "n1: not a legal LIF: All parameters must have the same shape"),
        ("words", "n1: not a legal LIF: tau holds object, not real numbers"),
        ("wrong edge", "does not have: nowhere"),
        ("huge", "declares .* GiB"),
        ("one node", "holds a single Affine"),
        ("endless", "graphs deep"),
    ],
)
def test_damaged_files_give_one_clear_error(
    tmp_path: Path, how: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = plain(tmp_path)
    damaged(path, how)
    with pytest.raises(UserError, match=message):
        import_nir(path, dt=DT, steps=2)
    assert run(["export", str(path), "--target", "onnx", "--dt", "1", "--steps", "2"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: ") and path.name in lines[0] and len(lines) <= 2


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stride", 0, "stride is out of range: 0"),
        ("stride", np.nan, "stride has to be integers"),
        ("dilation", np.array([1, 0]), "dilation is out of range"),
        ("padding", -1, "padding is out of range"),
        ("padding", "half", "padding must be 'same', 'valid', or int"),
        ("groups", np.array([1, 1]), "groups is one number"),
        ("groups", 3, "groups 3"),
        ("input_shape", np.array([2**40, 2]), "input_shape is out of range"),
        ("input_shape", np.array([4, 4]), "its input_shape is"),
        ("weight", np.ones((4, 2, 3, 3), np.complex64), "weight holds complex64, not real numbers"),
    ],
)
def test_windows_that_make_no_sense(tmp_path: Path, field: str, value: Any, message: str) -> None:
    net = network((2, 5, 5), conv2d(4, 2, 3, 3, padding=1), lif(4, 5, 5), output=(4, 5, 5))
    nir.write(tmp_path / "net.nir", net)
    with h5py.File(tmp_path / "net.nir", "r+") as file:
        del file[f"node/nodes/n0/{field}"]
        file[f"node/nodes/n0/{field}"] = value
    with pytest.raises(UserError, match=message) as caught:
        import_nir(tmp_path / "net.nir", dt=DT, steps=2)
    assert "n0" in str(caught.value)


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    path = plain(tmp_path)
    damaged(path, "two inputs")
    with pytest.raises(UnsupportedError, match="2 inputs"):
        import_nir(path, dt=DT, steps=2)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, "give --dt and --steps"),
        ({"steps": 4}, "give --dt"),
        ({"dt": 1e-3}, "give --steps"),
        ({"dt": -1.0, "steps": 2}, "have to be positive"),
        ({"dt": float("nan"), "steps": 2}, "have to be positive"),
    ],
)
def test_a_foreign_file_needs_steps_and_dt(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        import_nir(plain(tmp_path), **how)
    assert caught.value.message.endswith(message)


def test_a_foreign_file_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plain(tmp_path, n1=lif(4, v_threshold=0.25))
    export = ["export", "net.nir", "--target", "onnx", "-o", "net.onnx"]
    assert run(export) == 2
    assert "give --dt and --steps" in capsys.readouterr().err
    how = ["--dt", str(DT), "--steps", "5", "--layout", "TB"]
    assert run([*export, *how]) == 0
    assert "0 of 320 spikes differ" in capsys.readouterr().out
    assert run(["verify", "net.nir", "net.onnx", *how]) == 0
    assert "ok" in capsys.readouterr().out
    assert run(["export", "net.nir", "--target", "nir", "-o", "net.nir", *how]) == 2
    assert "is the model itself" in capsys.readouterr().err
    plain(tmp_path, n1=nir.CubaLIF(*[np.ones(4, np.float32)] * 5))
    (tmp_path / "net.onnx").unlink()
    assert run([*export, *how]) == 3
    assert "n1: CubaLIF: its synaptic current is a second state" in capsys.readouterr().err
    assert not (tmp_path / "net.onnx").exists()
