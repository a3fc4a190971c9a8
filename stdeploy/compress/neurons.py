"""Replacing LIF neurons by sLIF, with their parameters transferred (paper 003, "Synergistic Learning")."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from stdeploy.errors import UserError
from stdeploy.models.neurons import SLIF
from stdeploy.models.spikformer import Spikformer

_MULTI_STEP_LIF = {"LIF", "LIFNode", "MultiStepLIFNode"}


def is_lif(module: nn.Module) -> bool:
    """A multi-step LIF of ours or of SpikingJelly."""
    return type(module).__name__ in _MULTI_STEP_LIF and getattr(module, "step_mode", "m") == "m"


def replace_lif(model: nn.Module, under: str = "block") -> int:
    """Swap every LIF below the module path `under` for an sLIF in place; returns how many.

    tau, v_threshold, v_reset and decay_input are carried over. The papers replace the neurons of the
    transformer blocks. UserError where there is none.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if is_lif(module) and (not under or name == under or name.startswith(f"{under}."))
    ]
    if not found:
        raise UserError(f"no LIF neuron below {under or 'the model'}", hint="are they sLIF already?")
    for name, module in found:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _transfer(module))
    if isinstance(model, Spikformer):
        model.config = replace(model.config, neuron="slif")
    return len(found)


def _transfer(neuron: nn.Module) -> SLIF:
    reset = neuron.v_reset
    return SLIF(
        float(neuron.tau),  # type: ignore[arg-type]
        float(neuron.v_threshold),  # type: ignore[arg-type]
        None if reset is None else float(reset),  # type: ignore[arg-type]
        bool(getattr(neuron, "decay_input", True)),
    )


def project_neurons(model: nn.Module) -> None:
    """Bring every sLIF's parameters back into range; call after each optimiser step."""
    for module in model.modules():
        if isinstance(module, SLIF):
            module.project_()


__all__ = ["is_lif", "project_neurons", "replace_lif"]
