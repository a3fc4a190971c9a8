"""Max-Former: maxima in the embedding, depthwise convolution blocks, self-attention in the last stage.

Membrane shortcuts; the pooled shortcut takes the maximum of a BatchNorm's real output.
"""

from __future__ import annotations

from torch import Tensor, nn

from tests.families.parts import CLASSES, Mlp, Over, conv, lif, repeated
from tests.families.spikingformer import Attention


class Stem(nn.Module):
    """Two strided convolutions with their neurons, a third without, beside a strided shortcut."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1, self.lif1 = Over(nn.Conv2d(3, dim // 2, 3, 2, 1), dim // 2), lif()
        self.conv2, self.lif2 = Over(nn.Conv2d(dim // 2, dim, 3, 2, 1), dim), lif()
        self.conv3 = conv(dim, dim)
        self.shortcut = conv(dim // 2, dim, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif1(self.conv1(x))
        y: Tensor = self.conv3(self.lif2(self.conv2(x)))
        z: Tensor = self.shortcut(x)
        return y + z


class Embedding(nn.Module):
    """The same spikes into a pooled convolution with another behind it, and into a pooled shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.lif1 = lif()
        self.conv1 = conv(inputs, outputs, 3, 1, nn.MaxPool2d(3, 2, 1))
        self.lif2, self.conv2 = lif(), conv(outputs, outputs)
        self.shortcut = conv(inputs, outputs, 1, 1, nn.MaxPool2d(3, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.lif1(x)
        y: Tensor = self.conv2(self.lif2(self.conv1(spikes)))
        z: Tensor = self.shortcut(spikes)
        return y + z


class Depthwise(nn.Module):
    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.lif = lif()
        self.conv = Over(nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim), dim)
        self.mlp = Mlp(dim, dim + 3, ahead=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.conv(self.lif(x))
        y: Tensor = self.mlp(x)
        return x + y


class MaxFormer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage1 = Stem(6), Depthwise(6, 7)
        self.embed2, self.stage2 = Embedding(6, 9), Depthwise(9, 5)
        self.attn, self.mlp = Attention(9), Mlp(9, 14, ahead=True)
        self.head_lif, self.head = lif(), nn.Linear(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(self.stem(repeated(x)))
        x = self.stage2(self.embed2(x))
        x = x + self.attn(x)
        x = x + self.mlp(x)
        scores: Tensor = self.head(self.head_lif(x).flatten(3).mean(3))
        return scores.mean(0)
