"""What a pruning method decided: masks over weights and a plain record of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stdeploy.errors import UserError

Masks = dict[str, Tensor]
"""Parameter name to boolean mask, True where the weight stays."""

_SITES = {
    "q": ("q_linear", "q_conv"),
    "k": ("k_linear", "k_conv"),
    "v": ("v_linear", "v_conv"),
    "proj": ("proj_linear", "proj_conv"),
    "fc1": ("fc1_linear", "fc1_conv", "mlp1_conv"),
    "fc2": ("fc2_linear", "fc2_conv", "mlp2_conv"),
}


@dataclass(frozen=True)
class PruningRecord:
    """Method, sparsity and what was kept; JSON-able, so that a checkpoint can hold it."""

    method: str
    sparsity: float
    options: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class BlockSites:
    """The six weight matrices of one spiking transformer block, by module path, and its heads."""

    prefix: str
    q: str
    k: str
    v: str
    proj: str
    fc1: str
    fc2: str
    qk_heads: tuple[int, ...]
    v_heads: tuple[int, ...]


def check_sparsity(p: float) -> None:
    """UserError unless 0 <= p < 1."""
    if not (isinstance(p, int | float) and 0 <= p < 1):
        raise UserError(f"sparsity is a fraction in [0, 1), not {p}", hint="90 % is 0.9")


def share(p: float, n: int, rounding: str) -> int:
    """ceil(p n) or floor(p n), immune to the last bit of p (0.1 * 30 is 3, not 4)."""
    exact = round(p * n, 9)
    return math.ceil(exact) if rounding == "up" else math.floor(exact)


def weight_of(model: nn.Module, path: str) -> nn.Parameter:
    """Weight parameter of the module at `path`."""
    weight = model.get_submodule(path).weight
    if not isinstance(weight, nn.Parameter):
        raise UserError(f"{path} has no weight parameter")
    return weight


def find_blocks(model: nn.Module) -> list[BlockSites]:
    """Every spiking transformer block: a module with attention and MLP matrices under the published names.

    UserError where there is none.
    """
    blocks = [sites for item in model.named_modules() if (sites := _sites(*item))]
    if not blocks:
        names = ", ".join(sorted({name for names in _SITES.values() for name in names}))
        raise UserError("no spiking transformer block found", hint=f"blocks have layers named {names}")
    return blocks


def _sites(prefix: str, module: nn.Module) -> BlockSites | None:
    found: dict[str, str] = {}
    parents: dict[str, nn.Module] = {}
    for child_name, child in module.named_children():
        for site, names in _SITES.items():
            for name in names:
                if isinstance(getattr(child, name, None), nn.Module):
                    found[site] = ".".join(filter(None, (prefix, child_name, name)))
                    parents[site] = child
    if set(found) != set(_SITES):
        return None
    width_qk, width_v = (int(weight_of(module, _below(found[s], prefix)).shape[0]) for s in ("q", "v"))
    qk, v = _head_sizes(parents["q"], width_qk, "qk_heads"), _head_sizes(parents["q"], width_v, "v_heads")
    return BlockSites(prefix=prefix, qk_heads=qk, v_heads=v, **found)


def _below(path: str, prefix: str) -> str:
    return path[len(prefix) + 1 :] if prefix else path


def _head_sizes(attention: nn.Module, width: int, attribute: str) -> tuple[int, ...]:
    stated = getattr(attention, attribute, None)
    if isinstance(stated, tuple):
        return stated
    heads = getattr(attention, "num_heads", None)
    if not isinstance(heads, int) or width % heads:
        raise UserError(
            f"{type(attention).__name__} does not say its number of heads",
            hint=f"give it an attribute num_heads, an integer that divides its {width} channels",
        )
    return (width // heads,) * heads


def head_slices(heads: tuple[int, ...]) -> Iterator[slice]:
    """Channel range of each head."""
    start = 0
    for size in heads:
        yield slice(start, start + size)
        start += size


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Zero the pruned weights in place; call again after every optimiser step."""
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        parameters[name].mul_(mask.view(mask.shape + (1,) * (parameters[name].ndim - mask.ndim)))
