"""Borders that are not zeros: padded by a constant, or written in place by a constant of each channel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stdeploy.errors import UnsupportedError
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.ops import Affine, Conv
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.trace import trace
from tests.families.meta import RepConv
from tests.traced import Repeated, agree, awkward, random_batch


class Bordered(nn.Module):
    """A stem, `border` on its images, a convolution without padding and a neuron."""

    def __init__(self, border: Callable[[nn.Module, Tensor], Tensor], groups: int, padding: int = 0) -> None:
        super().__init__()
        self.border = border
        self.stem = Repeated(3, 6)
        self.shift = nn.Parameter(torch.linspace(-0.4, 0.9, 6).view(1, 6, 1, 1))
        self.conv = nn.Conv2d(6, 4, 3, padding=padding, groups=groups)
        self.bn, self.lif, self.head = nn.BatchNorm2d(4), self.stem.lif, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.border(self, self.stem(x).flatten(0, 1))
        y = self.lif(self.bn(self.conv(y)).unflatten(0, (3, -1)))
        scores: Tensor = self.head(y.mean((-1, -2))).mean(0)
        return scores


def constant(module: nn.Module, x: Tensor) -> Tensor:
    return nn.functional.pad(x, (1, 1, 2, 2), value=-0.7)


def written(module: nn.Module, x: Tensor) -> Tensor:
    y = nn.functional.pad(x, (2, 2, 1, 1))
    shift = module.get_parameter("shift")
    y[:, :, :1] = shift
    y[:, :, -1:] = shift
    y[..., :2] = shift
    y[..., -2:] = shift
    return y


@pytest.mark.parametrize("border", [constant, written])
@pytest.mark.parametrize("groups", [1, 2])
def test_borders(border: Callable[[nn.Module, Tensor], Tensor], groups: int) -> None:
    traced = agree(awkward(Bordered(border, groups)), (2, 5, 4))
    conv = traced.graph["conv"].op
    assert isinstance(conv, Conv) and sorted(conv.padding) == [1, 2]


def unequal(module: nn.Module, x: Tensor) -> Tensor:
    y = nn.functional.pad(x, (1, 1, 1, 1))
    y[:, :, :1] = 0.5
    return y


def inside(module: nn.Module, x: Tensor) -> Tensor:
    y = nn.functional.pad(x, (1, 1, 1, 1))
    y[:, :, :2] = 0.5
    return y


@pytest.mark.parametrize(
    ("border", "padding", "reason"),
    [
        (unequal, 0, "follows a padding"),
        (inside, 0, "follows a padding"),
        (constant, 1, "zeros around a border of another constant"),
    ],
)
def test_refusals(border: Callable[[nn.Module, Tensor], Tensor], padding: int, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        trace(awkward(Bordered(border, 1, padding)), (2, 5, 4))


class Reparametrised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.rep, self.bn = Repeated(3, 6), RepConv(6), nn.BatchNorm2d(6)
        self.lif, self.head = self.stem.lif, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.rep(self.stem(x).flatten(0, 1)))
        scores: Tensor = self.head(self.lif(y.unflatten(0, (3, -1))).mean((-1, -2))).mean(0)
        return scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("target", ["onnx", "nir"])
def test_reparametrised_convolution_becomes_one(dtype: torch.dtype, target: str) -> None:
    """1x1, BNAndPad, depthwise 3x3, 1x1, BN, BN: one convolution, although c was rounded by the model."""
    net = awkward(Reparametrised()).to(dtype)
    traced = trace(net, (2, 7, 6))
    graph = run_pipeline(traced.graph, PIPELINES[target]).graph
    convs = [n for n in graph.of(Conv) if n.name.startswith("rep")]
    assert [(c.op.weight.shape, c.op.groups, c.op.padding) for c in convs] == [((6, 6, 3, 3), 1, (1, 1))]  # type: ignore[attr-defined]
    assert not graph.of(Affine) and not [n for n in graph if n.kind == "Linear" and n.name.startswith("rep")]
    if dtype == torch.float64:
        x = random_batch(traced)
        before, after = interpret(traced.graph, x), interpret(graph, x)
        for name, spikes in before.spikes.items():
            assert 0.01 < spikes.mean() < 0.97
            np.testing.assert_array_equal(spikes, after.spikes[name])
        np.testing.assert_allclose(before.outputs["output"], after.outputs["output"], rtol=1e-10)


def test_separable_convolutions_stay_separable() -> None:
    """Depthwise then pointwise: composed, a 7x7 kernel would have many times the weights."""

    class Separable(Reparametrised):
        def __init__(self) -> None:
            super().__init__()
            self.rep = nn.Sequential(nn.Conv2d(6, 6, 7, padding=3, groups=6), nn.Conv2d(6, 6, 1))  # type: ignore[assignment]

    graph = run_pipeline(agree(awkward(Separable()), (2, 7, 6)).graph, PIPELINES["onnx"]).graph
    (conv,) = [n.op for n in graph.of(Conv) if n.name.startswith("rep")]
    assert isinstance(conv, Conv) and conv.groups == 6
