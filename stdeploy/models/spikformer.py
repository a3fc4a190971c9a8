"""Spikformer and its compressed relatives: patch stem, spiking self-attention, MLP, SEW residuals."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stdeploy.errors import UserError
from stdeploy.models.neurons import LIF, SLIF


@dataclass(frozen=True)
class BlockDims:
    """Kept dimensions of one block: per head for q and k, and for v (ragged allowed); hidden units of the MLP."""

    qk: tuple[int, ...]
    v: tuple[int, ...]
    mlp: int


_COUNTS = ("depth", "embed_dim", "mlp_dim", "num_heads", "steps", "in_channels", "num_classes")
_REALS = ("scale", "tau", "v_threshold", "attn_threshold", "v_reset")
_CHOICES = {"input_kind": ("image", "event_frames"), "neuron": ("lif", "slif")}


@dataclass(frozen=True)
class SpikformerConfig:
    """Everything that fixes a Spikformer's architecture; plain data, so that a checkpoint can hold it.

    `stem`: per stage (channels, pool). `blocks`: kept dimensions per block, or empty for the full model.
    `tau` holds for every neuron; `attn_threshold` for the one behind the attention product.
    `neuron="slif"` puts sLIF into the blocks; the stem keeps LIF, as in the papers. `legacy_norms` and
    `legacy_position` add parameters that the published code carries and counts, but never uses: two
    LayerNorms a block; a position table and a LayerNorm.
    """

    depth: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    steps: int
    stem: tuple[tuple[int, bool], ...]
    in_channels: int = 3
    image_size: tuple[int, int] = (32, 32)
    num_classes: int = 10
    input_kind: Literal["image", "event_frames"] = "image"
    scale: float = 0.125
    tau: float = 2.0
    v_threshold: float = 1.0
    attn_threshold: float = 0.5
    v_reset: float | None = 0.0
    qkv_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    neuron: Literal["lif", "slif"] = "lif"
    per_channel: bool = False
    legacy_norms: bool = False
    legacy_position: bool = False
    blocks: tuple[BlockDims, ...] = field(default=())

    def __post_init__(self) -> None:
        self._check_numbers()
        if self.embed_dim % self.num_heads:
            raise UserError(f"embed_dim {self.embed_dim} does not divide into {self.num_heads} heads")
        if self.blocks and len(self.blocks) != self.depth:
            raise UserError(f"{len(self.blocks)} blocks of kept dimensions for depth {self.depth}")
        if not self.stem or self.stem[-1][0] != self.embed_dim:
            raise UserError(f"the stem must end with {self.embed_dim} channels")

    def _check_numbers(self) -> None:
        counts = {
            **{name: getattr(self, name) for name in _COUNTS},
            "stem": [channels for channels, _ in self.stem],
            "image_size": self.image_size,
        }
        for name, value in counts.items():
            for count in value if isinstance(value, list | tuple) else (value,):
                if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                    raise UserError(f"{name} has to be a positive integer, not {count!r}")
        for name in _REALS:
            value = getattr(self, name)
            optional = name == "v_reset" and value is None
            if not optional and (not isinstance(value, int | float) or not math.isfinite(value)):
                raise UserError(f"{name} has to be a finite number, not {value!r}")
        if self.tau < 1:
            raise UserError(f"tau {self.tau} is below 1: the membrane would change sign every step")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(f"unknown {name} {getattr(self, name)!r}", hint=f"known: {', '.join(known)}")

    def block(self, index: int) -> BlockDims:
        """Dimensions of block `index`; the full ones where nothing was removed."""
        if self.blocks:
            return self.blocks[index]
        heads = (self.embed_dim // self.num_heads,) * self.num_heads
        return BlockDims(heads, heads, self.mlp_dim)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """One sample without batch, frames first for event data."""
        image = (self.in_channels, *self.image_size)
        return image if self.input_kind == "image" else (self.steps, *image)

    @property
    def token_map(self) -> tuple[int, int]:
        """Height and width of the stem's output, one token a pixel."""
        height, width = self.image_size
        for _, pool in self.stem:
            if pool:
                height, width = (height + 1) // 2, (width + 1) // 2
        return height, width

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SpikformerConfig:
        """Inverse of to_dict; UserError for unknown or missing fields."""
        try:
            blocks = tuple(
                BlockDims(tuple(b["qk"]), tuple(b["v"]), int(b["mlp"])) for b in data.get("blocks", ())
            )
            stem = tuple((int(c), bool(p)) for c, p in data["stem"])
            height, width = data["image_size"]
            return cls(**{**data, "blocks": blocks, "stem": stem, "image_size": (int(height), int(width))})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"not a Spikformer configuration: {error}") from error


def _neuron(config: SpikformerConfig, channels: int, threshold: float | None = None) -> nn.Module:
    v_threshold = config.v_threshold if threshold is None else threshold
    if config.neuron == "lif":
        return LIF(config.tau, v_threshold, config.v_reset)
    size = channels if config.per_channel else None
    return SLIF(config.tau, v_threshold, config.v_reset, channels=size)


class PatchStem(nn.Module):
    """Conv3x3-BN-LIF stages, max-pooled (3, stride 2, pad 1) where asked, and the relative position conv.

    An image that is repeated over time passes the first convolution and BatchNorm once: they have no
    state, so repeating their result is the same.
    """

    def __init__(self, config: SpikformerConfig) -> None:
        super().__init__()
        self.steps = config.steps
        self.repeats = config.input_kind == "image"
        self.pooled = [pool for _, pool in config.stem]
        widths = [config.in_channels, *(c for c, _ in config.stem)]
        for i, (before, after) in enumerate(pairwise(widths)):
            self.add_module(f"conv{i}", nn.Conv2d(before, after, 3, padding=1, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(after))
            self.add_module(f"lif{i}", LIF(config.tau, config.v_threshold, config.v_reset))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.rpe_conv = nn.Conv2d(config.embed_dim, config.embed_dim, 3, padding=1, bias=False)
        self.rpe_bn = nn.BatchNorm2d(config.embed_dim)
        self.rpe_lif = LIF(config.tau, config.v_threshold, config.v_reset)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[T, B, N, d]` of images `[B, C, H, W]` or frames `[T, B, C, H, W]`."""
        for i, pool in enumerate(self.pooled):
            conv, bn, lif = (self.get_submodule(f"{kind}{i}") for kind in ("conv", "bn", "lif"))
            if i == 0 and self.repeats:
                x = bn(conv(x)).unsqueeze(0).repeat(self.steps, 1, 1, 1, 1)
            else:
                x = bn(conv(x.flatten(0, 1))).unflatten(0, (self.steps, -1))
            x = lif(x)
            if pool:
                x = self.pool(x.flatten(0, 1)).unflatten(0, (self.steps, -1))
        position = self.rpe_bn(self.rpe_conv(x.flatten(0, 1))).unflatten(0, (self.steps, -1))
        x = x + self.rpe_lif(position)
        return x.flatten(-2).transpose(-1, -2)


class _LinearBN(nn.Module):
    """Base of the attention and the MLP: Linear-BatchNorm-neuron triples over `[T, B, N, C]`."""

    def _add(self, name: str, config: SpikformerConfig, before: int, after: int, bias: bool) -> None:
        self.add_module(f"{name}_linear", nn.Linear(before, after, bias=bias))
        self.add_module(f"{name}_bn", nn.BatchNorm1d(after))
        self.add_module(f"{name}_lif", _neuron(config, after))

    def _project(self, name: str, x: Tensor) -> Tensor:
        y = self.get_submodule(f"{name}_linear")(x).flatten(0, 1)
        y = self.get_submodule(f"{name}_bn")(y.transpose(-1, -2)).transpose(-1, -2)
        return self.get_submodule(f"{name}_lif")(y.unflatten(0, (x.shape[0], -1)))  # type: ignore[no-any-return]


class SpikingSelfAttention(_LinearBN):
    """Spiking self-attention: (Q K^T) V scaled by a constant, spikes throughout (paper 003 eq. 3-5)."""

    def __init__(self, config: SpikformerConfig, dims: BlockDims) -> None:
        super().__init__()
        self.scale = config.scale
        self.qk_heads, self.v_heads = dims.qk, dims.v
        self._add("q", config, config.embed_dim, sum(dims.qk), config.qkv_bias)
        self._add("k", config, config.embed_dim, sum(dims.qk), config.qkv_bias)
        self._add("v", config, config.embed_dim, sum(dims.v), config.qkv_bias)
        self.attn_lif = _neuron(config, sum(dims.v), config.attn_threshold)
        self._add("proj", config, sum(dims.v), config.embed_dim, config.proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[T, B, N, d]` to tokens `[T, B, N, d]`."""
        q, k, v = (self._project(name, x) for name in "qkv")
        if len(set(self.qk_heads)) == 1 and len(set(self.v_heads)) == 1:
            heads = len(self.v_heads)
            q, k, v = (torch.unflatten(x, -1, (heads, -1)).transpose(2, 3) for x in (q, k, v))
            y = ((q @ k.transpose(-2, -1)) @ v).transpose(2, 3).flatten(-2)
        else:
            sizes = (self.qk_heads, self.qk_heads, self.v_heads)
            heads_of = (torch.split(x, list(size), -1) for x, size in zip((q, k, v), sizes, strict=True))
            y = torch.cat([(a @ b.transpose(-2, -1)) @ c for a, b, c in zip(*heads_of, strict=True)], dim=-1)
        return self._project("proj", self.attn_lif(y * self.scale))


class SpikingMLP(_LinearBN):
    """Two Linear-BatchNorm-neuron layers (paper 003 eq. 6)."""

    def __init__(self, config: SpikformerConfig, dims: BlockDims) -> None:
        super().__init__()
        self._add("fc1", config, config.embed_dim, dims.mlp, config.mlp_bias)
        self._add("fc2", config, dims.mlp, config.embed_dim, config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[T, B, N, d]` to tokens `[T, B, N, d]`."""
        return self._project("fc2", self._project("fc1", x))


class SpikformerBlock(nn.Module):
    """x' = SSA(x) + x; MLP(x') + x' (paper 003 eq. 1-2)."""

    def __init__(self, config: SpikformerConfig, index: int) -> None:
        super().__init__()
        dims = config.block(index)
        self.attn = SpikingSelfAttention(config, dims)
        self.mlp = SpikingMLP(config, dims)
        if config.legacy_norms:
            self.norm1 = nn.LayerNorm(config.embed_dim)
            self.norm2 = nn.LayerNorm(config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)  # type: ignore[no-any-return]


class Spikformer(nn.Module):
    """Spikformer-L-d-dm: stem, `depth` blocks, mean over tokens and steps, linear head.

    Takes images `[B, C, H, W]` (repeated T times) or event frames `[B, T, C, H, W]`; returns logits
    `[B, classes]`. Zhou et al., "Spikformer", ICLR 2023; compressed as in paper 003.
    """

    def __init__(self, config: SpikformerConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchStem(config)
        self.block = nn.ModuleList(SpikformerBlock(config, i) for i in range(config.depth))
        self.head = nn.Linear(config.embed_dim, config.num_classes)
        if config.legacy_position:
            height, width = config.token_map
            self.pos_embed = nn.Parameter(torch.zeros(1, height * width, config.embed_dim))
            self.norm = nn.LayerNorm(config.embed_dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.config.input_kind == "event_frames":
            x = x.transpose(0, 1)
        x = self.patch_embed(x)
        for block in self.block:
            x = block(x)
        return self.head(x.mean(2).mean(0))  # type: ignore[no-any-return]
