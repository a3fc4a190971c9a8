"""From one checkpoint to a compressed one."""

from __future__ import annotations

from collections.abc import Mapping
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
from stdeploy.errors import UserError
from stdeploy.models.spikformer import Spikformer

Method = Literal["l1p", "dsp"]


@dataclass(frozen=True)
class Compressed:
    """The written file, what was pruned, and the parameters before and after as the papers count them."""

    path: Path
    record: PruningRecord
    before: ParameterCount
    after: ParameterCount
    neurons_replaced: int
    earlier: Mapping[str, Any] | None = None
    """The record of a compression that the model had already gone through."""


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
    method: str,
    sparsity: float,
    out: Path | str,
    *,
    neuron: Literal["slif", "keep"] = "slif",
    rounding: Rounding = "up",
    scope: Scope = "head",
    mode: Literal["mask", "remove"] = "mask",
) -> Compressed:
    """Prune the Spikformer in `model_path`, replace its blocks' LIF by sLIF, and write `out`.

    `mode="mask"` keeps the architecture and zeroes weights; `"remove"` (DSP only) writes the smaller
    architecture to fine-tune from. UserError where the file or an option does not fit.
    """
    loaded = load_checkpoint(model_path)
    model = loaded.module
    if not isinstance(model, Spikformer):
        raise UserError(f"{model_path} is not a Spikformer checkpoint")
    if mode == "remove" and method != "dsp":
        raise UserError("only DSP removes whole dimensions", hint="leave out --mode remove")
    before = count_parameters(model)
    masks, record = prune(model, method, sparsity, rounding=rounding, scope=scope)
    apply_masks(model, masks)
    after = count_parameters(model, masks)
    if mode == "remove":
        model = remove_dimensions(model, record)
    replaced = replace_lif(model) if neuron == "slif" and model.config.neuron != "slif" else 0
    entry = {**record.to_dict(), "mode": mode, "source_sha256": loaded.sha256}
    if loaded.compression:
        entry["before"] = dict(loaded.compression)
    path = save_checkpoint(out, model, entry)
    return Compressed(path, record, before, after, replaced, loaded.compression)
