"""tau of a module's neurons at most k different numbers (stdeploy.quantise), written back into the module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from stdeploy.errors import UserError
from stdeploy.graph import Graph
from stdeploy.graph.weight import Array
from stdeploy.models.spikformer import Spikformer
from stdeploy.quantise import Effect, Inputs, TauRecord, batches, channel_weights, level_layer, measure
from stdeploy.trace import trace


@torch.no_grad()
def quantise_tau(
    model: nn.Module, levels: int, weights: Mapping[str, Array] | None = None, *, weighted: bool = False
) -> TauRecord:
    """Bring tau of every neuron layer with tau per channel to at most `levels` distinct values, in place.

    Takes any module with `v_threshold` and a tensor `tau` of more than one number. `weights`: by module path, [C]
    (stdeploy.quantise.channel_weights); `weighted` says that data went into them. A later optimiser step moves
    every channel's tau again. UserError, and nothing changed, where a module computes its tau anew each time.
    """
    found = {
        path: module
        for path, module in model.named_modules()
        if hasattr(module, "v_threshold") and isinstance(tau := getattr(module, "tau", None), Tensor)
        if tau.numel() > 1
    }
    computed = [path for path, module in found.items() if module.tau is not module.tau]
    if computed:
        raise UserError(
            f"tau is computed, not stored, in {', '.join(computed)}", hint="quantise the model's .stg graph"
        )
    layers = {}
    for path, module in found.items():
        tau = cast(Tensor, module.tau)
        array = tau.detach().cpu().numpy()
        given = None if weights is None else weights.get(path)
        new, layers[path] = level_layer(array.reshape(-1), levels, given)
        tau.copy_(torch.as_tensor(new.reshape(array.shape)))
    return TauRecord(levels, weighted, layers)


def quantise_and_measure(
    model: Spikformer,
    levels: int,
    data: Callable[[Graph], Inputs],
) -> tuple[TauRecord, Effect]:
    """quantise_tau weighted by the user's data where there is some, and what it changes on `data`."""
    original = trace(deepcopy(model), model.config.input_shape)
    graph, given = original.graph, data(original.graph)
    weights = channel_weights(graph, batches(graph, given.inputs) if given.real else ())
    record = quantise_tau(model, levels, weights, weighted=given.real)
    after = trace(model, model.config.input_shape)
    return record, measure(original, after, graph, given.inputs, given.labels)


def merged(earlier: Mapping[str, Any] | None, record: TauRecord, source_sha256: str) -> dict[str, Any]:
    """A checkpoint's compression record with the quantisation added: pruning stays the method."""
    return {**(earlier or {}), "tau_levels": {**record.to_dict(), "source_sha256": source_sha256}}
