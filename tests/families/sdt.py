"""Spike-driven Transformer V1: attention without a matrix product.

k and v are multiplied elementwise and summed over the tokens, a neuron fires on the sum, and its spikes
mask q. The last pooling of the stem is before the neuron; the model returns `(scores, hook)`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tests.families.parts import CLASSES, Mlp, conv, lif, pool, repeated

HEADS = 2


class Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shortcut_lif = lif()
        self.q, self.k, self.v, self.proj = (conv(dim, dim, 1) for _ in range(4))
        self.q_lif, self.k_lif, self.v_lif, self.talking_heads_lif = lif(), lif(), lif(), lif(0.15)
        self.attn_lif = lif()  # published and never called
        self.talking_heads = nn.Conv1d(HEADS, HEADS, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        t, b, c, h, w = x.shape
        spikes = self.shortcut_lif(x)

        def heads(y: Tensor) -> Tensor:
            y = y.flatten(3).transpose(-1, -2).reshape(t, b, h * w, HEADS, c // HEADS)
            return y.permute(0, 1, 3, 2, 4).contiguous()

        q = heads(self.q_lif(self.q(spikes)))
        k = heads(self.k_lif(self.k(spikes)))
        v = heads(self.v_lif(self.v(spikes)))
        mask = self.talking_heads_lif(k.mul(v).sum(dim=-2, keepdim=True))
        y = q.mul(mask).transpose(3, 4).reshape(t, b, c, h, w).contiguous()
        out: Tensor = x + self.proj(y)
        return out


class SpikeDrivenTransformer(nn.Module):
    """`pools`: the poolings of the stem that are before their neuron."""

    def __init__(self, late_pooling: bool = False) -> None:
        super().__init__()
        dim = 12
        self.late_pooling = late_pooling
        self.stem, self.stem_lif = conv(3, dim // 2), lif()
        self.stem1, self.stem1_lif = conv(dim // 2, dim), lif()
        self.rpe = conv(dim, dim)
        self.attn, self.mlp = Attention(dim), Mlp(dim, 18, ahead=True)
        self.head_lif, self.head = lif(), nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        x = pool(self.stem_lif(self.stem(repeated(x))))
        x = self.stem1(x)
        x = self.stem1_lif(pool(x)) if self.late_pooling else pool(self.stem1_lif(x))
        x = self.rpe(x) + x
        x = self.mlp_residual(self.attn(x))
        scores: Tensor = self.head(self.head_lif(x.flatten(3).mean(3)))
        return scores.mean(0), None

    def mlp_residual(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(x)
        return x + y
