"""Replacing LIF neurons by sLIF, with their parameters transferred (paper 003, "Synergistic Learning")."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from stdeploy.errors import UserError
from stdeploy.models.neurons import SLIF
from stdeploy.models.spikformer import Spikformer

_MULTI_STEP_LIF = {"LIF", "LIFNode", "MultiStepLIFNode"}


def is_lif(module: nn.Module) -> bool:
    """A multi-step LIF of ours or of SpikingJelly."""
    return type(module).__name__ in _MULTI_STEP_LIF and getattr(module, "step_mode", "m") == "m"


def replace_lif(model: nn.Module, under: str = "block", *, per_channel: bool = False) -> int:
    """Swap every LIF below the module path `under` for an sLIF in place; returns how many.

    tau, v_threshold, v_reset and decay_input are carried over. The papers replace the neurons of the
    transformer blocks and learn one tau and one threshold a layer. `per_channel` gives every channel its own
    (a Spikformer only, which knows its layers' channels), also where an sLIF has one for the layer.
    UserError where there is nothing to replace.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if (is_lif(module) or (per_channel and _is_scalar_slif(module)))
        and (not under or name == under or name.startswith(f"{under}."))
    ]
    if not found:
        raise UserError(f"no LIF neuron below {under or 'the model'}", hint="are they sLIF already?")
    sizes = _channels(model) if per_channel else {}
    for name, module in found:
        if per_channel and name not in sizes:
            raise UserError(f"{name} does not say how many channels it has", hint="name the blocks only")
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _transfer(module, sizes.get(name)))
    if isinstance(model, Spikformer):
        model.config = replace(model.config, neuron="slif", per_channel=per_channel)
    return len(found)


def _is_scalar_slif(module: nn.Module) -> bool:
    return isinstance(module, SLIF) and module.tau.ndim == 0


def _channels(model: nn.Module) -> dict[str, int]:
    """Channels of every neuron of a Spikformer's blocks, by module path."""
    if not isinstance(model, Spikformer):
        raise UserError(
            f"a {type(model).__name__} does not say how many channels its neurons have",
            hint="build it with SLIF(channels=..., channel_dim=...), or replace them with one tau a layer",
        )
    out: dict[str, int] = {}
    for i in range(model.config.depth):
        dims, width = model.config.block(i), model.config.embed_dim
        sizes = {"q": sum(dims.qk), "k": sum(dims.qk), "v": sum(dims.v), "proj": width}
        out |= {f"block.{i}.attn.{name}_lif": size for name, size in sizes.items()}
        out[f"block.{i}.attn.attn_lif"] = sum(dims.v)
        out |= {f"block.{i}.mlp.fc1_lif": dims.mlp, f"block.{i}.mlp.fc2_lif": width}
    return out


def _transfer(neuron: nn.Module, channels: int | None) -> SLIF:
    def number(value: object) -> float:
        return float(value.detach() if isinstance(value, Tensor) else value)  # type: ignore[arg-type]

    reset = None if neuron.v_reset is None else number(neuron.v_reset)
    decay = bool(getattr(neuron, "decay_input", True))
    return SLIF(number(neuron.tau), number(neuron.v_threshold), reset, decay, channels)


def project_neurons(model: nn.Module) -> None:
    """Bring every sLIF's parameters back into range; call after each optimiser step."""
    for module in model.modules():
        if isinstance(module, SLIF):
            module.project_()


__all__ = ["is_lif", "project_neurons", "replace_lif"]
