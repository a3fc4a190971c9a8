"""From one checkpoint to a compressed one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from stdeploy.checkpoint import load_checkpoint, save_checkpoint
from stdeploy.compress.dsp import Rounding, Scope, prune_dsp, remove_dimensions
from stdeploy.compress.l1p import prune_l1p
from stdeploy.compress.ledger import ParameterCount, count_parameters
from stdeploy.compress.masks import Masks, PruningRecord, apply_masks
from stdeploy.compress.neurons import replace_lif
from stdeploy.compress.tau import merged, quantise_and_measure
from stdeploy.errors import UserError
from stdeploy.graph import Graph
from stdeploy.models.spikformer import Spikformer
from stdeploy.quantise import Effect, Inputs, TauRecord

Method = Literal["l1p", "dsp"]
Neurons = Literal["slif", "slif-channel", "keep"]


@dataclass(frozen=True)
class Compressed:
    """The written file, what was pruned, and the parameters before and after as the papers count them.

    `record` None: nothing was pruned. `tau`, `effect`: the quantisation of tau and what it changed.
    """

    path: Path
    record: PruningRecord | None
    before: ParameterCount
    after: ParameterCount
    neurons_replaced: int
    earlier: Mapping[str, Any] | None = None
    """The record of a compression that the model had already gone through."""
    tau: TauRecord | None = None
    effect: Effect | None = None


def prune(
    model: nn.Module, method: str, sparsity: float, *, rounding: Rounding = "up", scope: Scope = "head"
) -> tuple[Masks, PruningRecord]:
    """Masks and record of `method` ("l1p" or "dsp"); the model is left as it is."""
    if method == "l1p":
        return prune_l1p(model, sparsity)
    if method == "dsp":
        return prune_dsp(model, sparsity, rounding=rounding, scope=scope)
    raise UserError(f"unknown method {method!r}", hint="l1p (unstructured) or dsp (structured)")


def compress_checkpoint(
    model_path: Path | str,
    method: str | None,
    sparsity: float | None,
    out: Path | str,
    *,
    neuron: Neurons | None = None,
    rounding: Rounding = "up",
    scope: Scope = "head",
    mode: Literal["mask", "remove"] = "mask",
    tau_levels: int | None = None,
    data: Callable[[Graph], Inputs] | None = None,
) -> Compressed:
    """Prune the Spikformer in `model_path`, replace its blocks' neurons, quantise tau, and write `out`.

    Each step only where asked for. `neuron` None: "slif" where a method prunes, else "keep"; "slif-channel" learns
    tau and threshold per channel. `mode="mask"` keeps the architecture and zeroes weights; `"remove"` (DSP only)
    writes the smaller architecture to fine-tune from. `tau_levels` needs `data`, on which its effect is measured.
    UserError where the file or an option does not fit.
    """
    if method is None and tau_levels is None and neuron in (None, "keep"):
        raise UserError("there is nothing to do", hint="give a pruning method, tau levels or a neuron")
    if (method is None) != (sparsity is None):
        raise UserError("a pruning method and its sparsity go together")
    if mode == "remove" and method != "dsp":
        raise UserError("only DSP removes whole dimensions", hint="leave out --mode remove")
    loaded = load_checkpoint(model_path)
    model = loaded.module
    if not isinstance(model, Spikformer):
        raise UserError(f"{model_path} is not a Spikformer checkpoint")
    entry: dict[str, Any] = dict(loaded.compression or {})
    record, masks = None, None
    before = count_parameters(model)
    if method is not None and sparsity is not None:
        masks, record = prune(model, method, sparsity, rounding=rounding, scope=scope)
        apply_masks(model, masks)
        entry = {**record.to_dict(), "mode": mode, "source_sha256": loaded.sha256}
        if loaded.compression:
            entry["before"] = dict(loaded.compression)
    after = count_parameters(model, masks)
    if record is not None and mode == "remove":
        model = remove_dimensions(model, record)
    replaced = _replaced(model, neuron or ("slif" if method else "keep"))
    tau, effect = None, None
    if tau_levels is not None:
        if data is None:
            raise UserError("tau is quantised by a measured step", hint="give data to measure on")
        tau, effect = quantise_and_measure(model, tau_levels, data)
        entry = merged(entry, tau, loaded.sha256)
    path = save_checkpoint(out, model, entry)
    return Compressed(path, record, before, after, replaced, loaded.compression, tau, effect)


def _replaced(model: Spikformer, neuron: Neurons) -> int:
    """Neuron layers that became sLIF; those that are what is asked for stay as they are."""
    config = model.config
    if neuron == "keep" or (config.neuron == "slif" and (neuron == "slif" or config.per_channel)):
        return 0
    return replace_lif(model, per_channel=neuron == "slif-channel")
