"""Synergistic learning: weights and the neurons' intrinsic parameters together (paper 003, Fig. 3)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from stdeploy.compress.masks import Masks, apply_masks
from stdeploy.compress.neurons import project_neurons
from stdeploy.models.neurons import SLIF


def parameter_groups(model: nn.Module, lr: float, intrinsic_lr: float) -> list[dict[str, object]]:
    """Optimiser groups: synaptic parameters at `lr`, tau and threshold of every sLIF at `intrinsic_lr`."""
    intrinsic = [p for m in model.modules() if isinstance(m, SLIF) for p in (m.tau, m.v_threshold)]
    ids = {id(p) for p in intrinsic}
    synaptic = [p for p in model.parameters() if id(p) not in ids]
    groups: list[dict[str, object]] = [{"params": synaptic, "lr": lr}]
    if intrinsic:
        groups.append({"params": intrinsic, "lr": intrinsic_lr, "weight_decay": 0.0})
    return groups


def keeper(model: nn.Module, masks: Masks) -> Callable[[], None]:
    """What to call after every optimiser step: pruned weights stay zero, sLIF parameters in range."""

    def keep() -> None:
        apply_masks(model, masks)
        project_neurons(model)

    keep()
    return keep
