"""QKFormer: token attention by channel sums, then a stage of self-attention; convolutions as shortcuts.

`leaky` is the published self-attention whose last neuron is called on `[T*B, C, N]`: its loop over "time"
runs from sample to sample.
"""

from __future__ import annotations

from torch import Tensor, nn

from tests.families.parts import CLASSES, Mlp, Over, conv, lif, repeated

HEADS = 2


class Embedding(nn.Module):
    """Convolution, BatchNorm, maximum and neuron, twice, beside a strided convolution with its own neuron."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.lif1 = conv(inputs, outputs), lif()
        self.conv2 = conv(outputs, outputs, 3, 1, nn.MaxPool2d(3, 2, 1))
        self.lif2 = lif()
        self.shortcut, self.shortcut_lif = conv(inputs, outputs, 1, 2), lif()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lif2(self.conv2(self.lif1(self.conv1(x))))
        z: Tensor = self.shortcut_lif(self.shortcut(x))
        return y + z


class TokenAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q, self.k = (Over(nn.Conv1d(dim, dim, 1, bias=False), dim) for _ in range(2))
        self.q_lif, self.k_lif, self.attn_lif = lif(), lif(), lif(0.15)
        self.proj, self.proj_lif = Over(nn.Conv1d(dim, dim, 1, bias=False), dim), lif()

    def forward(self, x: Tensor) -> Tensor:
        t, b, c, h, w = x.shape
        tokens = x.flatten(3)
        q = self.q_lif(self.q(tokens)).unsqueeze(2).reshape(t, b, HEADS, c // HEADS, h * w)
        k = self.k_lif(self.k(tokens)).unsqueeze(2).reshape(t, b, HEADS, c // HEADS, h * w)
        chosen = self.attn_lif(q.sum(dim=3, keepdim=True))
        y = chosen.mul(k).flatten(2, 3)
        out: Tensor = self.proj_lif(self.proj(y)).reshape(t, b, c, h, w)
        return out


class SelfAttention(nn.Module):
    def __init__(self, dim: int, leaky: bool) -> None:
        super().__init__()
        self.leaky = leaky
        self.q, self.k, self.v = (Over(nn.Conv1d(dim, dim, 1, bias=False), dim) for _ in range(3))
        self.q_lif, self.k_lif, self.v_lif, self.attn_lif = lif(), lif(), lif(), lif(0.15)
        self.proj_conv = nn.Conv1d(dim, dim, 1, bias=False)
        self.proj_bn, self.proj_lif = nn.BatchNorm1d(dim), lif()

    def forward(self, x: Tensor) -> Tensor:
        t, b, c, h, w = x.shape
        tokens = x.flatten(3)
        parts = (self.q_lif(self.q(tokens)), self.k_lif(self.k(tokens)), self.v_lif(self.v(tokens)))
        q, k, v = (
            p.transpose(-1, -2).reshape(t, b, h * w, HEADS, c // HEADS).permute(0, 1, 3, 2, 4) for p in parts
        )
        y = (q @ (k.transpose(-2, -1) @ v)) * 0.125
        y = self.attn_lif(y.transpose(3, 4).reshape(t, b, c, h * w)).flatten(0, 1)
        y = self.proj_bn(self.proj_conv(y))
        if self.leaky:
            out: Tensor = self.proj_lif(y).reshape(t, b, c, h, w)
            return out
        right: Tensor = self.proj_lif(y.reshape(t, b, c, h, w))
        return right


class QKFormer(nn.Module):
    def __init__(self, leaky: bool = False) -> None:
        super().__init__()
        self.embed1, self.token, self.mlp1 = Embedding(3, 6), TokenAttention(6), Mlp(6, 10)
        self.embed2, self.attn, self.mlp2 = Embedding(6, 8), SelfAttention(8, leaky), Mlp(8, 12)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed1(repeated(x))
        x = x + self.token(x)
        x = x + self.mlp1(x)
        x = self.embed2(x)
        x = x + self.attn(x)
        x = x + self.mlp2(x)
        scores: Tensor = self.head(x.flatten(3).mean(3))
        return scores.mean(0)
