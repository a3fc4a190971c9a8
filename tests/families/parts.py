"""Layers that the families share: a neuron, and convolutions over `[T, B, C, ...]`."""

from __future__ import annotations

from torch import Tensor, nn

from stdeploy.models import LIF

STEPS, CLASSES = 3, 5


def lif(threshold: float = 0.9) -> LIF:
    """A multi-step neuron away from the published defaults (tau 2, threshold 1, reset 0)."""
    return LIF(1.7, threshold, -0.1)


class Over(nn.Module):
    """A layer, then its BatchNorm, on the T * B images (or sequences) of `[T, B, C, ...]`."""

    def __init__(self, layer: nn.Module, channels: int, *behind: nn.Module) -> None:
        super().__init__()
        rank = 1 if isinstance(layer, nn.Conv1d) else 2
        self.layer = layer
        self.bn = nn.BatchNorm1d(channels) if rank == 1 else nn.BatchNorm2d(channels)
        self.behind = nn.Sequential(*behind)

    def forward(self, x: Tensor) -> Tensor:
        t, b = x.shape[:2]
        y: Tensor = self.behind(self.bn(self.layer(x.flatten(0, 1))))
        return y.reshape(t, b, *y.shape[1:])


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *behind: nn.Module) -> Over:
    """A padded convolution without bias and its BatchNorm."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return Over(layer, outputs, *behind)


def pool(x: Tensor) -> Tensor:
    """A 3 x 3 maximum at every second position of each step's image."""
    y = nn.functional.max_pool2d(x.flatten(0, 1), 3, 2, 1)
    return y.reshape(*x.shape[:2], *y.shape[1:])


def repeated(x: Tensor, steps: int = STEPS) -> Tensor:
    """An image over the steps, `[T, B, C, H, W]`; frames `[B, T, C, H, W]` with time first."""
    if x.dim() < 5:
        return x.unsqueeze(0).repeat(steps, 1, 1, 1, 1)
    return x.transpose(0, 1).contiguous()


class Mlp(nn.Module):
    """1 x 1 convolutions with their neuron behind them (or, `ahead`, before: a membrane shortcut)."""

    def __init__(self, dim: int, hidden: int, ahead: bool = False) -> None:
        super().__init__()
        self.ahead = ahead
        self.fc1 = Over(nn.Conv2d(dim, hidden, 1), hidden)
        self.fc1_lif = lif()
        self.fc2 = Over(nn.Conv2d(hidden, dim, 1), dim)
        self.fc2_lif = lif()

    def forward(self, x: Tensor) -> Tensor:
        if self.ahead:
            y: Tensor = self.fc2(self.fc2_lif(self.fc1(self.fc1_lif(x))))
            return y
        z: Tensor = self.fc2_lif(self.fc2(self.fc1_lif(self.fc1(x))))
        return z
