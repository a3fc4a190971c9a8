"""Spikformer: spiking self-attention without softmax, residual sums of spikes.

Static images or event frames; projections as Linear over `[T, B, N, C]`, Conv1d over `[T*B, C, N]` or
Conv2d over `[T*B, C, H, W]`, fused or not; either order of the product; scale 0.125 or 0.25.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.families.parts import CLASSES, Mlp, Over, conv, lif, pool, repeated

HEADS = 2


class Projection(nn.Module):
    """A projection with its BatchNorm of a map `[T, B, C, H, W]` to `[T, B, C', N]`."""

    def __init__(self, kind: str, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "linear":
            self.map: nn.Module = nn.Linear(inputs, outputs)
            self.bn = nn.BatchNorm1d(outputs)
        elif kind == "conv1d":
            self.map = Over(nn.Conv1d(inputs, outputs, 1, bias=False), outputs)
        else:
            self.map = Over(nn.Conv2d(inputs, outputs, 1, bias=False), outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "conv2d":
            maps: Tensor = self.map(x)
            return maps.flatten(3)
        y = x.flatten(3)
        if self.kind == "conv1d":
            rows: Tensor = self.map(y)
            return rows
        t, b, _, n = y.shape
        tokens = self.map(y.transpose(-1, -2).flatten(0, 1))
        normed: Tensor = self.bn(tokens.transpose(-1, -2))
        return normed.reshape(t, b, -1, n).contiguous()


class Attention(nn.Module):
    def __init__(self, kind: str, dim: int, order: str, scale: float, fused: bool) -> None:
        super().__init__()
        self.order, self.scale, self.fused = order, scale, fused
        if fused:
            self.qkv, self.qkv_lif = Projection(kind, dim, 3 * dim), lif()
        else:
            self.q, self.q_lif = Projection(kind, dim, dim), lif()
            self.k, self.k_lif = Projection(kind, dim, dim), lif()
            self.v, self.v_lif = Projection(kind, dim, dim), lif()
        self.attn_lif = lif(0.15)
        self.proj, self.proj_lif = Projection(kind, dim, dim), lif()

    def forward(self, x: Tensor) -> Tensor:
        t, b, c, h, w = x.shape
        if self.fused:
            parts = self.qkv_lif(self.qkv(x)).chunk(3, dim=2)
        else:
            parts = (self.q_lif(self.q(x)), self.k_lif(self.k(x)), self.v_lif(self.v(x)))
        q, k, v = (
            p.transpose(-1, -2).reshape(t, b, h * w, HEADS, c // HEADS).permute(0, 1, 3, 2, 4).contiguous()
            for p in parts
        )
        if self.order == "qk":
            y = ((q @ k.transpose(-2, -1)) * self.scale) @ v
        else:
            y = (q @ (k.transpose(-2, -1) @ v)) * self.scale
        y = self.attn_lif(y.transpose(3, 4).reshape(t, b, c, h * w).contiguous())
        out: Tensor = self.proj_lif(self.proj(y.reshape(t, b, c, h, w))).reshape(t, b, c, h, w)
        return out


class Spikformer(nn.Module):
    """Stem of convolution, BatchNorm, neuron and pooling; one block; the mean over tokens and steps."""

    def __init__(
        self,
        kind: str = "conv1d",
        order: str = "qk",
        scale: float = 0.125,
        fused: bool = False,
        inputs: int = 3,
        output: str = "mean",
        iand: bool = False,
    ) -> None:
        super().__init__()
        dim = 12
        self.output, self.iand = output, iand
        self.stem, self.stem_lif = conv(inputs, dim // 2), lif()
        self.stem1, self.stem1_lif = conv(dim // 2, dim), lif()
        self.rpe, self.rpe_lif = conv(dim, dim), lif()
        self.attn = Attention(kind, dim, order, scale, fused)
        self.norm1 = nn.LayerNorm(dim)  # published and never called
        self.mlp = Mlp(dim, 18)
        self.head = nn.Linear(dim, CLASSES)

    def joined(self, x: Tensor, y: Tensor) -> Tensor:
        """The residual: a sum, or x AND NOT y, which stays a spike."""
        return x * (1.0 - y) if self.iand else y + x

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = pool(self.stem_lif(self.stem(repeated(x))))
        x = pool(self.stem1_lif(self.stem1(x)))
        x = self.joined(x, self.rpe_lif(self.rpe(x)))
        x = self.joined(x, self.attn(x))
        x = self.joined(x, self.mlp(x))
        scores: Tensor = self.head(x.flatten(3).mean(-1))
        if self.output == "steps":
            return scores
        if self.output == "tuple":
            return scores.mean(0), torch.flatten(x, 3).mean((0, 3))
        return scores.mean(0)
