"""Sequential nets as netx files: refusals, our reference, and lava-dl's own reader bit for bit."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stdeploy.cli.app import run
from stdeploy.errors import UnsupportedError, UserError
from stdeploy.exporters import lava
from stdeploy.graph import Graph, GraphBuilder, Weight, ops
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.value import SPIKE, Domain, count
from stdeploy.graph.weight import Array
from stdeploy.runtime.lava_process import lava_python
from stdeploy.runtime.netx_reference import NetxReference
from tests.graphs import every_layer_fires, spikformer_graph

NETX = {"format": "netx"}
PROGRAM = Path(__file__).parent / "lava_netx_program.py"


class Row:
    """Layers in a row over events of `domain`, `[T, B, *shape]`."""

    def __init__(self, shape: tuple[int, ...], domain: Domain = SPIKE, steps: int = 5) -> None:
        self.rng = np.random.default_rng(0)
        self.builder = GraphBuilder(steps)
        axes = ("channel", "y", "x")[: len(shape)]
        self.x = self.builder.add(ops.Input(shape, axes, "TB", domain), name="input")
        self.layers = 0

    def add(self, op: ops.Op, name: str) -> Row:
        self.x = self.builder.add(op, (self.x,), name=name, source=name)
        return self

    def fire(self, tau: Any = 1.7, threshold: Any = 0.9, reset: float = -0.1, decays: bool = True) -> Row:
        self.layers += 1
        taus = None if tau is None else np.asarray(tau)
        neuron = ops.Neuron(taus, np.asarray(threshold), np.asarray(reset), decays)
        return self.add(neuron, f"lif{self.layers}")

    def conv(
        self, out: int, kernel: tuple[int, int], stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Row:
        channels = self.builder.value(self.x).shape[0] // groups
        weight = self.rng.standard_normal((out, channels, *kernel)).astype(np.float32)
        bias = self.rng.uniform(0.2, 0.9, out)
        return self.add(
            ops.Conv(Weight.dense(weight), bias, stride, padding, dilation, groups), f"conv{self.layers}"
        )

    def linear(self, out: int) -> Row:
        weight = self.rng.standard_normal((out, self.builder.value(self.x).shape[0])).astype(np.float32)
        op = ops.Linear(Weight.dense(weight), self.rng.uniform(0.1, 0.9, out))
        return self.add(op, f"fc{self.layers}")

    def end(self) -> Graph:
        self.builder.add(ops.Output("output", "TB"), (self.x,), name="out")
        return self.builder.build()


def convolutional() -> Graph:
    row = Row((2, 7, 6)).conv(6, (3, 2), (2, 1), (1, 0), (1, 2), 2).fire()
    row = row.linear(5).fire(2.0, np.linspace(0.7, 1.3, 5)).conv(4, (3, 3), (1, 1), (1, 1), (1, 1), 1)
    row = row.fire(None, 1.1, 0.0).add(ops.Flatten(), "flatten").linear(9).fire(1.5, 0.8, 0.0, False)
    return row.end()


def dense() -> Graph:
    return Row((12,), count(0.5, 3)).linear(20).fire().linear(7).fire(3.0, 0.4, 0.0).end()


NETS = {"convolutional": convolutional, "dense, counts": dense}


def events(graph: Graph, batch: int = 4) -> Array:
    (node,) = graph.inputs
    domain = node.value.domain
    rng = np.random.default_rng(3)
    shape = (graph.steps, batch, *node.value.shape)
    most = domain.maximum or 1
    return rng.binomial(most, 0.4, shape) * domain.scale


@pytest.mark.parametrize("name", NETS)
def test_lava_dl_reads_it_and_agrees_bit_for_bit(name: str, tmp_path: Path) -> None:
    graph = NETS[name]()
    x = events(graph)
    assert every_layer_fires(graph, x)
    path = tmp_path / "net.net"
    lava.export(graph, path, NETX)
    reference = NetxReference(path)
    wanted = reference.run(x)
    assert all(0 < s.mean() < 1 for s in wanted.spikes.values())
    raw = np.round(x / reference.file.input["unit"]).astype(np.int64)
    stream = np.moveaxis(raw, 1, 0).reshape(-1, *raw.shape[2:])  # sample after sample
    order = (3, 2, 1, 0) if raw.ndim == 5 else (1, 0)  # lava: x, y, channel, then time
    np.save(tmp_path / "events.npy", stream.transpose(order))
    layers = len(wanted.spikes)
    command = [
        str(lava_python()),
        str(PROGRAM),
        str(path),
        str(tmp_path / "events.npy"),
        str(tmp_path / "out.npy"),
    ]
    done = subprocess.run(
        [*command, str(graph.steps), str(layers)], check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    got = np.load(tmp_path / "out.npy").T.reshape(x.shape[1], graph.steps, -1).swapaxes(0, 1)
    last = wanted.spikes[list(wanted.spikes)[-1]]
    np.testing.assert_array_equal(got, last)


@pytest.mark.parametrize("name", NETS)
def test_each_layer_is_nearly_the_models(name: str, tmp_path: Path) -> None:
    graph = NETS[name]()
    x = events(graph, 8)
    lava.export(graph, tmp_path / "net.net", NETX)
    wanted = interpret(graph, x)
    got = NetxReference(tmp_path / "net.net").run(x, wanted.spikes)
    for layer, spikes in wanted.spikes.items():
        assert float((got.spikes[layer] != spikes).mean()) < 0.06, layer


def test_everything_that_netx_lacks_is_listed(tmp_path: Path) -> None:
    found = lava.check(spikformer_graph(layout="BT"), NETX)
    reasons = " ".join(u.reason for u in found)
    for text in ("the input is real", "no pooling", "no residual", "no attention", "no neuron follows"):
        assert text in reasons
    with pytest.raises(UnsupportedError):
        lava.export(spikformer_graph(), tmp_path / "net.net", NETX)
    assert list(tmp_path.iterdir()) == []


def test_what_a_layer_cannot_have() -> None:
    taus = Row((4,)).linear(3).fire(np.array([1.5, 2.0, 2.5])).end()
    assert ["several tau" in u.reason for u in lava.check(taus, NETX)] == [True]
    tiny = Row((2,)).add(ops.Linear(Weight.dense(np.array([[1.0, 2.0]])), np.array([1e9])), "fc").fire().end()
    assert ["round to zero" in u.reason for u in lava.check(tiny, NETX)] == [True]
    head = Row((3,)).linear(2).fire().linear(4).end()
    assert [(u.where, "no neuron follows" in u.reason) for u in lava.check(head, NETX)] == [("fc1", True)]
    empty = Row((3,)).end()
    assert [u.reason for u in lava.check(empty, NETX)] == ["it has no layer"]


def test_options_that_mean_nothing_in_a_netx_file() -> None:
    with pytest.raises(UserError, match="attention has no meaning"):
        lava.check(dense(), {**NETX, "attention": "units"})
    with pytest.raises(UserError, match="format 'hdf4' is not supported"):
        lava.check(dense(), {"format": "hdf4"})


def test_the_command_line_measures_what_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from stdeploy.graph.file import save_graph

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STDEPLOY_LAVA_PYTHON", "none")  # nothing of Lava is needed for it
    graph = dense()
    save_graph(graph, Path("net.stg"))
    np.savez("data.npz", images=events(graph).astype(np.float32))
    assert run(["export", "net.stg", "--target", "lava", "--format", "netx", "--data", "data.npz"]) == 0
    assert "approximate (netx: 8-bit weights" in " ".join(capsys.readouterr().out.split())
    assert run(["verify", "net.stg", "net.net", "--data", "data.npz"]) == 0
    assert run(["export", "net.stg", "--target", "lava", "--format", "netx", "-o", "x.h5"]) == 2
    assert "does not end in .net" in capsys.readouterr().err
    (tmp_path / "cut.net").write_bytes((tmp_path / "net.net").read_bytes()[:300])
    assert run(["verify", "net.stg", "cut.net", "--data", "data.npz"]) == 2
    assert "cannot read cut.net" in capsys.readouterr().err
