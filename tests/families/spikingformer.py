"""Spikingformer: every convolution reads spikes, and the residual sums are of real membrane inputs.

`cml` is the down-sampling of the convolutional min-loss variant: the maximum is of the convolution's real
output, before the neuron.
"""

from __future__ import annotations

from torch import Tensor, nn

from tests.families.parts import CLASSES, Mlp, Over, conv, lif, pool, repeated

HEADS = 3


class Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj_lif = lif()
        self.q = Over(nn.Conv1d(dim, dim, 1, bias=False), dim)
        self.k = Over(nn.Conv1d(dim, dim, 1, bias=False), dim)
        self.v = Over(nn.Conv1d(dim, dim, 1, bias=False), dim)
        self.q_lif, self.k_lif, self.v_lif, self.attn_lif = lif(), lif(), lif(), lif(0.15)
        self.proj = Over(nn.Conv1d(dim, dim, 1), dim)

    def forward(self, x: Tensor) -> Tensor:
        t, b, c, h, w = x.shape
        spikes = self.proj_lif(x).flatten(3)
        parts = (
            self.q_lif(self.q(spikes)),
            self.k_lif(self.k(spikes)),
            self.v_lif(self.v(spikes)),
        )
        q, k, v = (p.transpose(-1, -2).reshape(t, b, -1, HEADS, c // HEADS).transpose(2, 3) for p in parts)
        y = (q @ (k.transpose(-2, -1) @ v)) * 0.125
        y = self.attn_lif(y.transpose(3, 4).reshape(t, b, c, -1))
        out: Tensor = self.proj(y).reshape(t, b, c, h, w)
        return out


class Spikingformer(nn.Module):
    def __init__(self, cml: bool = False, inputs: int = 3) -> None:
        super().__init__()
        dim = 12
        self.cml = cml
        self.stem, self.stem_lif = conv(inputs, dim // 2), lif()
        self.stem1, self.stem1_lif = conv(dim // 2, dim), lif()
        self.stem2 = conv(dim, dim)
        self.attn, self.mlp = Attention(dim), Mlp(dim, 18, ahead=True)
        self.head = nn.Linear(dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(repeated(x))
        x = self.stem_lif(pool(x)) if self.cml else pool(self.stem_lif(x))
        x = self.stem1(x)
        x = self.stem1_lif(pool(x)) if self.cml else pool(self.stem1_lif(x))
        x = self.stem2(x)
        x = x + self.attn(x)
        x = x + self.mlp(x)
        t, b, c, h, w = x.shape
        x = x.reshape(t, b, c, int(h) * int(w)).mean(3)
        scores: Tensor = self.head(x).mean(0)
        return scores
