"""What the tests of the trace share: nets whose every neuron layer fires, and the comparison with the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stdeploy.graph.interpreter import interpret
from stdeploy.graph.ops import Input
from stdeploy.graph.weight import Array
from stdeploy.models import LIF
from stdeploy.trace import TracedModel, trace


def awkward(net: nn.Module, level: float = 1.2, seed: int = 0) -> nn.Module:
    """Evaluation mode in float64, with random BatchNorms around a drive of `level` and nonzero biases."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.copy_(0.1 * normal(module.running_mean))
                module.running_var.copy_(0.03 + 0.03 * normal(module.running_var).abs())
                module.weight.copy_(0.9 + 0.2 * normal(module.weight))
                module.bias.copy_(level + 0.5 * normal(module.bias))
            elif isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                fan = module.weight[0].numel()
                module.weight.copy_(2.0 * normal(module.weight) / fan**0.5)
                if module.bias is not None:
                    module.bias.copy_(0.4 + 0.5 * normal(module.bias))
    return net.eval().double()


def random_batch(traced: TracedModel, batch: int = 3, seed: int = 1) -> Array:
    op = traced.graph.inputs[0].op
    assert isinstance(op, Input)
    steps = traced.graph.steps
    lead = {"B": (batch,), "BT": (batch, steps), "TB": (steps, batch)}[op.layout]
    return np.random.default_rng(seed).standard_normal((*lead, *op.shape))


def agree(net: nn.Module, shape: tuple[int, ...], *, batch: int = 3, **options: Any) -> TracedModel:
    """Trace, run the module and the graph in float64, and compare every spike and output."""
    traced = trace(net, shape, **options)
    x = random_batch(traced, batch)
    module, graph = traced.run(x), interpret(traced.graph, x)
    assert list(graph.spikes) and set(module.spikes) == set(graph.spikes)
    for name, spikes in module.spikes.items():
        rate = float(spikes.mean())
        assert 0.005 < rate < 0.97, f"{name} fires at {rate}"
        assert spikes.shape == (traced.graph.steps, batch, *traced.graph[name].value.shape)
        np.testing.assert_array_equal(spikes, graph.spikes[name], err_msg=name)
    assert module.outputs.keys() == graph.outputs.keys()
    for label, out in module.outputs.items():
        assert np.ptp(out) > 0
        np.testing.assert_allclose(out, graph.outputs[label], rtol=1e-9, atol=1e-10, err_msg=label)
    return traced


def kinds(traced: TracedModel) -> list[str]:
    return [node.kind for node in traced.graph]


class Repeated(nn.Module):
    """An image repeated over T steps, a stem of convolution, BatchNorm and neuron: `[T, B, C, H, W]`."""

    def __init__(self, steps: int, channels: int, lif: nn.Module | None = None) -> None:
        super().__init__()
        self.steps = steps
        self.conv = nn.Conv2d(2, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.lif = lif or LIF(1.7, 0.9, -0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(self.steps, 1, 1, 1, 1)
        y = self.bn(self.conv(x.flatten(0, 1)))
        return self.lif(y.reshape(self.steps, x.shape[1], *y.shape[1:]))
