"""Spike-driven Transformer V2 (Meta-SpikeFormer): depthwise SepConv, RepConv, strided stem.

RepConv is 1x1, BNAndPad, depthwise 3x3, 1x1, BN, BN without a neuron between. BNAndPad pads by what its
BatchNorm makes of a zero, and writes that border in place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.families.parts import CLASSES, Mlp, Over, conv, lif, repeated

HEADS = 2


class BNAndPad(nn.Module):
    """A BatchNorm whose output gets a border of the BatchNorm's own constant."""

    def __init__(self, channels: int, border: int = 1) -> None:
        super().__init__()
        self.bn, self.border = nn.BatchNorm2d(channels), border

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(x)
        n = self.border
        shift = self.bn.bias.detach() - self.bn.running_mean * self.bn.weight.detach() / torch.sqrt(  # type: ignore[operator]
            self.bn.running_var + self.bn.eps  # type: ignore[operator]
        )
        y = nn.functional.pad(y, [n] * 4)
        shift = shift.view(1, -1, 1, 1)
        y[:, :, 0:n, :] = shift
        y[:, :, -n:, :] = shift
        y[:, :, :, 0:n] = shift
        y[:, :, :, -n:] = shift
        return y


class RepConv(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(dim, dim, 1, bias=False),
            BNAndPad(dim),
            nn.Sequential(
                nn.Conv2d(dim, dim, 3, 1, 0, groups=dim, bias=False),
                nn.Conv2d(dim, dim, 1, bias=False),
                nn.BatchNorm2d(dim),
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y


class SepConv(nn.Module):
    """Neuron, 1x1, BN, neuron, depthwise 7x7, 1x1, BN."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lif1, self.pwconv1 = lif(), Over(nn.Conv2d(dim, hidden, 1, bias=False), hidden)
        self.lif2 = lif()
        self.dwconv = nn.Conv2d(hidden, hidden, 7, padding=3, groups=hidden, bias=False)
        self.pwconv2 = Over(nn.Conv2d(hidden, dim, 1, bias=False), dim)

    def forward(self, x: Tensor) -> Tensor:
        t, b = x.shape[:2]
        y = self.lif2(self.pwconv1(self.lif1(x)))
        y = self.dwconv(y.flatten(0, 1))
        out: Tensor = self.pwconv2(y.reshape(t, b, -1, *y.shape[2:]))
        return out


class Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.head_lif = lif()
        self.q, self.k, self.v, self.proj = (
            nn.Sequential(RepConv(dim), nn.BatchNorm2d(dim)) for _ in range(4)
        )
        self.q_lif, self.k_lif, self.v_lif, self.attn_lif = lif(), lif(), lif(), lif(0.15)

    def forward(self, x: Tensor) -> Tensor:
        t, b, c, h, w = x.shape
        images = self.head_lif(x).flatten(0, 1)

        def heads(y: Tensor) -> Tensor:
            y = y.flatten(3).transpose(-1, -2).reshape(t, b, h * w, HEADS, c // HEADS)
            return y.permute(0, 1, 3, 2, 4).contiguous()

        q, k, v = (
            heads(neuron(projection(images).reshape(t, b, c, h, w).flatten(3)))
            for projection, neuron in ((self.q, self.q_lif), (self.k, self.k_lif), (self.v, self.v_lif))
        )
        y = (q @ (k.transpose(-2, -1) @ v)) * 0.125
        y = self.attn_lif(y.transpose(3, 4).reshape(t, b, c, h * w).contiguous())
        out: Tensor = self.proj(y.reshape(t, b, c, h, w).flatten(0, 1)).reshape(t, b, c, h, w)
        return out


class MetaSpikeFormer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        dim = 8
        self.stem = Over(nn.Conv2d(3, 6, 7, 2, 3), 6)
        self.separable = SepConv(6, 10)
        self.conv1, self.conv1_lif = Over(nn.Conv2d(6, 9, 3, padding=1, bias=False), 9), lif()
        self.conv2, self.conv2_lif = Over(nn.Conv2d(9, 6, 3, padding=1, bias=False), 6), lif()
        self.down, self.down_lif = conv(6, dim, 3, 2), lif()
        self.attn, self.mlp = Attention(dim), Mlp(dim, 12, ahead=True)
        self.head_lif, self.head = lif(), nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(repeated(x))
        x = x + self.separable(x)
        x = x + self.conv2(self.conv2_lif(self.conv1(self.conv1_lif(x))))
        x = self.down(self.down_lif(x))
        x = x + self.attn(x)
        x = x + self.mlp(x)
        scores: Tensor = self.head(self.head_lif(x.flatten(3).mean(3)))
        return scores.mean(0)
