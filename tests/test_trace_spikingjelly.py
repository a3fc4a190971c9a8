"""SpikingJelly's neurons and models through the trace."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stdeploy.errors import UnsupportedError
from stdeploy.graph.ops import MatMul, Neuron
from stdeploy.trace import trace
from tests.test_trace_refusals import MultiStepLIFNode
from tests.traced import Repeated, agree, awkward, kinds, random_batch

neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
models = "spikingjelly.activation_based.model"


class Net(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.stem = Repeated(5, 6, first)
        self.fc, self.lif, self.head = nn.Linear(6, 8), second, nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x).flatten(3).transpose(-1, -2)
        out: torch.Tensor = self.head(self.lif(self.fc(y)).mean((0, 2)))
        return out


def plif(**options: Any) -> nn.Module:
    node: nn.Module = neuron.ParametricLIFNode(step_mode="m", **options)
    nn.init.constant_(node.get_parameter("w"), 0.37)
    return node


NEURONS: dict[str, Any] = {
    "hard": lambda: neuron.LIFNode(tau=1.7, v_threshold=0.9, v_reset=-0.1, step_mode="m"),
    "soft": lambda: neuron.LIFNode(tau=2.6, v_threshold=0.9, v_reset=None, step_mode="m"),
    "undecayed": lambda: neuron.LIFNode(tau=1.7, decay_input=False, v_reset=0.15, step_mode="m"),
    "if": lambda: neuron.IFNode(v_threshold=1.3, v_reset=None, step_mode="m"),
    "if hard": lambda: neuron.IFNode(v_threshold=1.3, v_reset=0.1, step_mode="m"),
    "plif": lambda: plif(v_threshold=0.9, v_reset=-0.1),
    "plif undecayed": lambda: plif(decay_input=False, v_reset=None),
    "0.0.0.0.12": lambda: MultiStepLIFNode(1.9, 0.8, 0.05),
}


@pytest.mark.parametrize("kind", NEURONS)
def test_neurons(kind: str) -> None:
    net = awkward(Net(NEURONS[kind](), NEURONS[kind]()))
    traced = agree(net, (2, 4, 3))
    op = traced.graph["lif"].op
    assert isinstance(op, Neuron)
    if kind.startswith("plif"):
        assert op.tau is not None and op.kind == "PLIF"
        assert math.isclose(float(op.tau), 1 + math.exp(-0.37), rel_tol=1e-6)
    assert (op.tau is None) == kind.startswith("if")
    x = random_batch(traced)
    first, second = traced.run(x), traced.run(x)  # membranes do not leak from run to run
    np.testing.assert_array_equal(first.outputs["output"], second.outputs["output"])
    assert not isinstance(net.get_submodule("lif").v, torch.Tensor)


@pytest.mark.parametrize("name", ["QIFNode", "EIFNode", "IzhikevichNode"])
def test_other_neurons_are_refused(name: str) -> None:
    net = awkward(Net(NEURONS["hard"](), getattr(neuron, name)(step_mode="m")))
    with pytest.raises(UnsupportedError, match=rf"lif: {name}"):
        trace(net, (2, 4, 3))


def test_single_step_neurons_are_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedError, match="step_mode to 'm'"):
        trace(awkward(Net(NEURONS["hard"](), neuron.LIFNode(step_mode="s"))), (2, 4, 3))


def test_spikformer() -> None:
    module = pytest.importorskip(f"{models}.spikformer")
    net = module.Spikformer(
        T=3, img_size_h=16, img_size_w=16, patch_size=4, num_classes=5, embed_dims=16, num_heads=2, depths=2
    )
    traced = agree(awkward(net), (3, 16, 16))
    assert [n.op.over for n in traced.graph.of(MatMul) if isinstance(n.op, MatMul)] == ["tokens", "pairs"] * 2
    assert traced.run(random_batch(traced)).outputs["output"].shape == (3, 3, 5)  # [T, B, classes]


def calibrated(net: nn.Module) -> nn.Module:
    """In float64, every BatchNorm with the statistics of its own input, so that its output is near 1 +- 1."""
    net = awkward(net, 1.0)

    def settle(norm: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        x, rank = arguments[0], 4 if isinstance(norm, nn.BatchNorm2d) else 3
        x = x.flatten(0, 1) if x.ndim > rank else x  # [T, B, ...]
        rows = x.transpose(0, 1).flatten(1)
        norm.get_buffer("running_mean").copy_(rows.mean(1))
        norm.get_buffer("running_var").copy_(rows.var(1) + 1e-3)

    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    handles = [m.register_forward_pre_hook(settle) for m in norms]
    with torch.no_grad():
        net(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    for handle in handles:
        handle.remove()
    importlib.import_module("spikingjelly.activation_based.functional").reset_net(net)
    return net


@pytest.mark.parametrize("kind", ["token", "channel"])
def test_qkformer(kind: str) -> None:
    """Sums over a head's channels and spikes that each gate a whole head."""
    module = pytest.importorskip(f"{models}.qkformer")
    net = module.QKFormer(
        T=2, num_classes=5, embed_dims=16, num_heads=(1, 2, 2), depths=(1, 1, 1), mlp_ratio=2.0, qka_type=kind
    )
    agree(calibrated(net), (3, 32, 32))


def test_maxformer() -> None:
    module = pytest.importorskip(f"{models}.maxformer")
    net = module.MaxFormer(T=2, num_classes=5, embed_dims=32, depths=(1, 1, 1), mlp_ratio=2.0, cifar=True)
    agree(awkward(net), (3, 32, 32))


def test_spike_driven_transformer() -> None:
    module = pytest.importorskip(f"{models}.spike_driven_transformer")
    net = module.SpikeDrivenTransformer(
        T=3, num_classes=5, embed_dims=16, num_heads=2, depths=1, mlp_ratio=2.0
    )
    traced = agree(awkward(net), (3, 32, 32))
    assert "Mul" in kinds(traced) and "MatMul" not in kinds(traced)


def reads_sum(y: torch.Tensor, lif: Any) -> torch.Tensor:
    return y + lif.v


def reads_function(y: torch.Tensor, lif: Any) -> torch.Tensor:
    return torch.stack([y[-1], lif.v])


def reads_method(y: torch.Tensor, lif: Any) -> torch.Tensor:
    out: torch.Tensor = lif.v.mean(-1)
    return out


@pytest.mark.parametrize("read", [reads_sum, reads_function, reads_method])
def test_a_membrane_that_the_model_reads_is_refused(read: Any) -> None:
    """At rest it is a number, which a trace would keep as a constant."""

    class Reading(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.lif(self.fc(self.stem(x).flatten(3).transpose(-1, -2)))
            return self.head(read(y, self.lif)).mean(0)

    net = awkward(Reading(NEURONS["hard"](), NEURONS["hard"]()))
    lif: Any = net.get_submodule("lif")
    with pytest.raises(UnsupportedError, match="lif: membrane: its membrane is read by the model"):
        trace(net, (2, 4, 3))
    assert lif.v == -0.1
