"""BatchNorm statistics and shifts that make every neuron layer fire, layer by layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stdeploy.errors import UserError

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@torch.no_grad()
def calibrate_batchnorm(
    model: nn.Module, inputs: Tensor, rate: float = 0.15, tries: int = 12
) -> dict[str, float]:
    """Set every BatchNorm so that the neuron layer behind it fires at about `rate` on `inputs`.

    A freshly initialised spiking transformer is silent: its outputs are zeros. Running statistics become
    those of the layer's own input; the shift (one number a layer, beside small differences between
    channels) is found by bisection. Returns each neuron layer's rate by module path. UserError where a
    neuron layer stays silent or saturated.
    """
    was_training = model.training
    model.eval()
    norms = [(name, m) for name, m in model.named_modules() if isinstance(m, _BATCH_NORMS)]
    generator = torch.Generator().manual_seed(0)
    for name, norm in norms:
        _match_statistics(model, norm, inputs)
        norm.weight.copy_(0.75 + 0.5 * torch.rand(norm.weight.shape, generator=generator))
        spread = 0.3 * torch.randn(norm.bias.shape, generator=generator)
        low, high = -6.0, 6.0
        for _ in range(tries):
            middle = (low + high) / 2
            norm.bias.copy_(middle + spread)
            fired = _rate_behind(model, name, inputs)
            low, high = (middle, high) if fired < rate else (low, middle)
    rates = firing_rates(model, inputs)
    bad = [f"{name} ({r:.3f})" for name, r in rates.items() if not 0.0 < r < 0.95]
    model.train(was_training)
    if bad:
        raise UserError(f"neuron layers stay silent or saturated: {', '.join(bad)}", hint="try other inputs")
    return rates


class _Seen(Exception):
    """Ends a forward pass at the layer that was waited for: the layers behind it cost as much again."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


def _run_until(model: nn.Module, inputs: Tensor, hooks: list[Any]) -> Tensor | None:
    """What a hook raised in _Seen, None where none did; the hooks are removed."""
    try:
        model(inputs)
    except _Seen as seen:
        return seen.value
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _match_statistics(model: nn.Module, norm: nn.Module, inputs: Tensor) -> None:
    def see(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        raise _Seen(args[0])

    seen = _run_until(model, inputs, [norm.register_forward_pre_hook(see)])
    if seen is None:
        raise UserError("a BatchNorm of the model is never called")
    x = seen.transpose(0, 1).flatten(1)
    norm.running_mean.copy_(x.mean(1))  # type: ignore[operator]
    norm.running_var.copy_(x.var(1).clamp_min(1e-6))  # type: ignore[operator]


def _rate_behind(model: nn.Module, norm_name: str, inputs: Tensor) -> float:
    """Rate of the first neuron layer that is called after the BatchNorm."""
    passed: list[bool] = []

    def see(_module: nn.Module, _args: Any, out: Tensor) -> None:
        if passed:
            raise _Seen(out)

    hooks = [model.get_submodule(norm_name).register_forward_hook(lambda *_: passed.append(True))]
    hooks += [m.register_forward_hook(see) for m in model.modules() if hasattr(m, "v_threshold")]
    spikes = _run_until(model, inputs, hooks)
    return 1.0 if spikes is None else float(spikes.mean())


@torch.no_grad()
def firing_rates(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Mean firing rate of every neuron layer by module path."""
    rates: dict[str, float] = {}
    handles = [
        m.register_forward_hook(lambda _m, _a, out, name=name: rates.__setitem__(name, float(out.mean())))
        for name, m in model.named_modules()
        if hasattr(m, "v_threshold")
    ]
    model(inputs)
    for handle in handles:
        handle.remove()
    return rates
