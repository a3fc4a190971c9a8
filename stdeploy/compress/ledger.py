"""The papers' way of counting parameters (paper 003, tables 1-3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from stdeploy.compress.masks import Masks, find_blocks, weight_of


@dataclass(frozen=True)
class ParameterCount:
    """`total`: every parameter, also unused ones, less the pruned weights. `blocks`: weights of the six
    matrices of every block, without bias and BatchNorm, less the pruned ones."""

    total: int
    blocks: int


def count_parameters(model: nn.Module, masks: Masks | None = None) -> ParameterCount:
    """Parameters of `model` as the papers count them.

    Bias and BatchNorm of pruned dimensions still count: without them none of the nine DSP rows fits.
    """
    pruned = {name: int(mask.numel() - mask.sum()) for name, mask in (masks or {}).items()}
    blocks = 0
    for block in find_blocks(model):
        for path in (block.q, block.k, block.v, block.proj, block.fc1, block.fc2):
            blocks += weight_of(model, path).numel() - pruned.get(f"{path}.weight", 0)
    return ParameterCount(sum(p.numel() for p in model.parameters()) - sum(pruned.values()), blocks)
