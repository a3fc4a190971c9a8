"""L1P: unstructured pruning by magnitude, each matrix on its own (paper 003 eq. 7-8)."""

from __future__ import annotations

from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from stdeploy.compress.masks import Masks, PruningRecord, check_sparsity, find_blocks, share, weight_of
from stdeploy.errors import UserError


def l1p_mask(weight: Tensor, p: float) -> Tensor:
    """Mask of the weights that stay: |w| >= the K-th smallest, K = ceil(p m n) (eq. 8).

    The K-th smallest itself stays, so m n - K + 1 weights do where magnitudes differ.
    """
    check_sparsity(p)
    k = share(p, weight.numel(), "up")
    if k == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    magnitude = weight.detach().abs()
    return magnitude >= magnitude.flatten().kthvalue(k).values


def prune_l1p(model: nn.Module, p: float, layers: tuple[str, ...] = ()) -> tuple[Masks, PruningRecord]:
    """Masks for the matrices of every block, or for the modules whose path matches a pattern in `layers`.

    UserError where a pattern matches no module with a weight.
    """
    check_sparsity(p)
    paths = (
        _matching(model, layers)
        if layers
        else [path for b in find_blocks(model) for path in (b.q, b.k, b.v, b.proj, b.fc1, b.fc2)]
    )
    masks = {f"{path}.weight": l1p_mask(weight_of(model, path), p) for path in paths}
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    return masks, PruningRecord("l1p", p, {"layers": list(layers)}, kept)


def _matching(model: nn.Module, patterns: tuple[str, ...]) -> list[str]:
    weighted = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
    ]
    out: list[str] = []
    for pattern in patterns:
        matched = [name for name in weighted if fnmatch(name, pattern)]
        if not matched:
            raise UserError(
                f"no layer with weights matches {pattern!r}", hint="stdeploy inspect lists the layers"
            )
        out += [name for name in matched if name not in out]
    return out
