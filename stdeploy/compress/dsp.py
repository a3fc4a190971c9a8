"""DSP: structured pruning of attention dimensions and hidden units by their value (paper 003 eq. 9-10)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from stdeploy.compress.masks import (
    BlockSites,
    Masks,
    PruningRecord,
    check_sparsity,
    find_blocks,
    head_slices,
    share,
    weight_of,
)
from stdeploy.errors import UserError
from stdeploy.models.spikformer import BlockDims, Spikformer

Rounding = Literal["up", "down"]
Scope = Literal["head", "all"]


def dva(weight: Tensor) -> Tensor:
    """Dimension value assessment: s_j = sum_i |w_ij| for every output dimension j (eq. 9)."""
    return weight.detach().abs().flatten(1).sum(1)


def _keep(scores: Tensor, heads: tuple[int, ...], p: float, rounding: Rounding, scope: Scope) -> Tensor:
    """Mask of kept dimensions; at least one a head. Ties go to the lower index, so that a rerun agrees."""
    keep = torch.zeros_like(scores, dtype=torch.bool)
    if scope == "head":
        for part in head_slices(heads):
            size = part.stop - part.start
            best = torch.argsort(scores[part], descending=True, stable=True)
            keep[part][best[: max(1, size - share(p, size, rounding))]] = True
        return keep
    best = torch.argsort(scores, descending=True, stable=True)
    keep[best[: max(1, len(scores) - share(p, len(scores), rounding))]] = True
    for part in head_slices(heads):
        if not keep[part].any():
            keep[part][int(scores[part].argmax())] = True
    return keep


def prune_dsp(
    model: nn.Module, p: float, *, rounding: Rounding = "up", scope: Scope = "head"
) -> tuple[Masks, PruningRecord]:
    """Masks that zero the pruned dimensions of U_q, U_k, U_v, M_1 and the columns of M_0, M_2 they feed.

    In the attention the least valuable ceil(p n) (`rounding="up"`, eq. 10) or floor(p n) (`"down"`, which
    the published CIFAR-10 rows need) dimensions go, of each head (`scope="head"`, as the published
    architectures show) or of all heads together (`"all"`: ragged heads). In the MLP ceil(p d_m) hidden
    units go under either rounding, as every published row shows. Bias and BatchNorm of a masked dimension stay as
    they are, as the papers count them: such a channel still has a constant drive and may fire.
    """
    check_sparsity(p)
    masks: Masks = {}
    layers = {}
    for block in find_blocks(model):
        if block.qk_heads != block.v_heads:
            raise UserError(
                f"{block.prefix}: query and value dimensions differ; it is pruned already",
                hint="start from the full model",
            )
        attention = torch.stack([dva(weight_of(model, path)) for path in (block.q, block.k, block.v)]).mean(0)
        dims = _keep(attention, block.qk_heads, p, rounding, scope)
        hidden_scores = dva(weight_of(model, block.fc1))
        hidden = _keep(hidden_scores, (len(hidden_scores),), p, "up", "all")
        masks |= _block_masks(model, block, dims, hidden)
        layers[block.prefix] = {
            "attention": dims.nonzero().flatten().tolist(),
            "mlp": hidden.nonzero().flatten().tolist(),
        }
    return masks, PruningRecord("dsp", p, {"rounding": rounding, "scope": scope}, layers)


def _block_masks(model: nn.Module, block: BlockSites, dims: Tensor, hidden: Tensor) -> Masks:
    def rows(path: str, keep: Tensor) -> Tensor:
        return keep[:, None].expand(weight_of(model, path).shape[:2])

    def columns(path: str, keep: Tensor) -> Tensor:
        return keep[None, :].expand(weight_of(model, path).shape[:2])

    masks = {f"{path}.weight": rows(path, dims) for path in (block.q, block.k, block.v)}
    masks[f"{block.proj}.weight"] = columns(block.proj, dims)
    masks[f"{block.fc1}.weight"] = rows(block.fc1, hidden)
    masks[f"{block.fc2}.weight"] = columns(block.fc2, hidden)
    return masks


@torch.no_grad()
def remove_dimensions(model: Spikformer, record: PruningRecord) -> Spikformer:
    """A physically smaller Spikformer with the kept dimensions only; heads may be ragged.

    This drops a pruned channel with its bias and BatchNorm, whose constant drive may have made it fire:
    use it to fine-tune from, not to convert a fine-tuned masked model (the compiler's passes do that
    exactly).
    """
    state = model.state_dict()
    dims = []
    for index, block in enumerate(find_blocks(model)):
        kept = record.layers[block.prefix]
        attention, hidden = torch.tensor(kept["attention"]), torch.tensor(kept["mlp"])
        for name in ("q", "k", "v"):
            _select(state, f"block.{index}.attn.{name}", attention, rows=True)
        _select(state, f"block.{index}.attn.attn", attention, rows=True)
        _select(state, f"block.{index}.attn.proj", attention, rows=False)
        _select(state, f"block.{index}.mlp.fc1", hidden, rows=True)
        _select(state, f"block.{index}.mlp.fc2", hidden, rows=False)
        heads = tuple(
            int(((attention >= s.start) & (attention < s.stop)).sum()) for s in head_slices(block.qk_heads)
        )
        dims.append(BlockDims(heads, heads, len(hidden)))
    smaller = Spikformer(replace(model.config, blocks=tuple(dims)))
    smaller.load_state_dict(state)
    return smaller.train(model.training)


def _select(state: dict[str, Tensor], site: str, kept: Tensor, *, rows: bool) -> None:
    """Keep the rows (and the per-channel parameters behind them) or the columns of one layer."""
    if not rows:
        state[f"{site}_linear.weight"] = state[f"{site}_linear.weight"][:, kept]
        return
    for name, value in state.items():
        if name.startswith((f"{site}_linear.", f"{site}_bn.", f"{site}_lif.")) and value.ndim:
            state[name] = value[kept]
