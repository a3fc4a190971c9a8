"""Spikformer whose tokens are pruned by an anchor token (STATA), at two places.

The anchor is a learned token in front of the patches. A pruning block keeps, at each step, the patches whose
keys the anchor's query meets most, averaged over the heads: E_h[Q_0 K_1:^T s]. What comes after works on slots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.families.parts import CLASSES, conv, lif, pool, repeated

HEADS = 3


class Projection(nn.Module):
    """Linear and BatchNorm over `[T, B, N, C]`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.map, self.bn = nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        t, b, n, _ = x.shape
        y: Tensor = self.bn(self.map(x).flatten(0, 1).transpose(1, 2))
        return y.transpose(1, 2).reshape(t, b, n, -1)


class Attention(nn.Module):
    """Self-attention that also says how much the anchor attends to every other token, `[T, B, N]`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (Projection(dim, dim) for _ in range(3))
        self.q_lif, self.k_lif, self.v_lif, self.attn_lif = lif(), lif(), lif(), lif(0.3)
        self.proj, self.proj_lif = Projection(dim, dim), lif()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        t, b, n, c = x.shape
        q, k, v = (
            neuron(projection(x)).reshape(t, b, n, HEADS, c // HEADS).permute(0, 1, 3, 2, 4)
            for projection, neuron in ((self.q, self.q_lif), (self.k, self.k_lif), (self.v, self.v_lif))
        )
        attn = (q @ k.transpose(-2, -1)) * 0.125
        y = self.attn_lif((attn @ v).transpose(2, 3).reshape(t, b, n, c))
        out: Tensor = self.proj_lif(self.proj(y))
        return out, attn[:, :, :, 0, 1:].mean(2)


class Block(nn.Module):
    """Attention, perhaps pruning to `kept` patches, feed-forward."""

    def __init__(self, dim: int, kept: int | None, by_index: bool) -> None:
        super().__init__()
        self.attn, self.kept, self.by_index = Attention(dim), kept, by_index
        self.fc1, self.fc1_lif = Projection(dim, dim + 5), lif()
        self.fc2, self.fc2_lif = Projection(dim + 5, dim), lif()

    def forward(self, x: Tensor) -> Tensor:
        y, scores = self.attn(x)
        x = x + y
        if self.kept is not None:
            index = scores.topk(self.kept, dim=-1).indices
            if self.by_index:
                index = index.sort(dim=-1).values
            index = index.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1])
            x = torch.cat([x[..., 0:1, :], x[..., 1:, :].gather(2, index)], dim=2)
        z: Tensor = self.fc2_lif(self.fc2(self.fc1_lif(self.fc1(x))))
        return x + z


class Stata(nn.Module):
    def __init__(self, by_index: bool = False) -> None:
        super().__init__()
        dim = 12
        self.stem, self.stem_lif = conv(3, dim // 2), lif()
        self.stem1, self.stem1_lif = conv(dim // 2, dim), lif()
        self.anchor = nn.Parameter(torch.randn(1, 1, 1, dim))
        self.blocks = nn.ModuleList(
            [Block(dim, 14, by_index), Block(dim, 6, by_index), Block(dim, None, by_index)]
        )
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = pool(self.stem_lif(self.stem(repeated(x))))
        x = self.stem1_lif(self.stem1(x)).flatten(3).transpose(2, 3)
        x = torch.cat([self.anchor.expand(x.shape[0], x.shape[1], -1, -1), x], dim=2)
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.head(x.mean(2))
        return scores.mean(0)
