"""BatchNorm statistics and shifts that make every neuron layer fire, in one forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stdeploy.errors import UserError

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_FARTHEST = 6.0
"""Standard deviations that a layer's drive is shifted by at most."""
_HALVINGS = 20


@torch.no_grad()
def calibrate_batchnorm(model: nn.Module, inputs: Tensor, rate: float = 0.15) -> dict[str, float]:
    """Set every BatchNorm so that the neuron layer behind it fires at `rate` on `inputs`.

    A freshly initialised spiking transformer is silent: its outputs are zeros. Running statistics become
    those of the layer's own input; the shift (one number a layer, beside small differences between
    channels) is found by bisection. Neurons without a BatchNorm of their own (behind an attention product) fire
    as their inputs make them. Returns each neuron layer's rate by module path. UserError where a BatchNorm is never
    called, or a neuron layer stays silent or saturated.
    """
    was_training = model.training
    model.eval()
    calibration = _Calibration(model, rate)
    calibration.run(inputs)
    rates = firing_rates(model, inputs)
    bad = [f"{name} ({r:.3f})" for name, r in rates.items() if not 0.0 < r < 0.95]
    model.train(was_training)
    if bad:
        raise UserError(f"neuron layers stay silent or saturated: {', '.join(bad)}", hint="try other inputs")
    return rates


class _Calibration:
    """One forward pass in which each BatchNorm gets its statistics, and each neuron its BatchNorm's shift.

    Which BatchNorm a neuron's drive moves with is read off its gradient: a shift of one at the BatchNorm has to
    be a shift of one at every place of the drive, as it is through views, max-pools and residual sums.
    """

    def __init__(self, model: nn.Module, rate: float) -> None:
        self.model, self.rate = model, rate
        self.norms = [m for m in model.modules() if isinstance(m, _BATCH_NORMS)]
        self.neurons = [m for m in model.modules() if hasattr(m, "v_threshold")]
        self.shifts: list[tuple[nn.Module, Tensor]] = []
        self.called: set[nn.Module] = set()

    def run(self, inputs: Tensor) -> None:
        """UserError where a BatchNorm is never called."""
        generator = torch.Generator().manual_seed(0)
        for norm in self.norms:
            norm.weight.copy_(0.75 + 0.5 * torch.rand(norm.weight.shape, generator=generator))
            norm.bias.copy_(0.3 * torch.randn(norm.bias.shape, generator=generator))
        hooks = [norm.register_forward_pre_hook(self._match_statistics) for norm in self.norms]
        hooks += [norm.register_forward_hook(self._watch) for norm in self.norms]
        hooks += [neuron.register_forward_hook(self._shift) for neuron in self.neurons]
        try:
            with torch.enable_grad():
                self.model(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        if len(self.called) < len(self.norms):
            raise UserError("a BatchNorm of the model is never called")

    @torch.no_grad()
    def _match_statistics(self, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        if norm not in self.called:
            x = args[0].transpose(0, 1).flatten(1)
            norm.running_mean.copy_(x.mean(1))  # type: ignore[operator]
            norm.running_var.copy_(x.var(1).clamp_min(1e-6))  # type: ignore[operator]

    def _watch(self, norm: nn.Module, _args: Any, out: Tensor) -> Tensor:
        if norm in self.called:
            return out
        self.called.add(norm)
        shift = torch.zeros((), dtype=out.dtype, device=out.device, requires_grad=True)
        self.shifts.append((norm, shift))
        return out.detach() + shift

    def _shift(self, neuron: nn.Module, args: tuple[Tensor, ...], _out: Tensor) -> Tensor:
        """What the neuron fires on the drive as its BatchNorm's new shift makes it."""
        drive = args[0]
        norm = self._norm_of(drive)
        with torch.no_grad():
            if norm is None:
                return _fired(neuron, drive)
            low, high = -_FARTHEST, _FARTHEST
            for _ in range(_HALVINGS):
                middle = (low + high) / 2
                fires = float(_fired(neuron, drive + middle).mean())
                low, high = (middle, high) if fires < self.rate else (low, middle)
            norm.bias.add_(high)  # type: ignore[operator]
            return _fired(neuron, drive + high)

    def _norm_of(self, drive: Tensor) -> nn.Module | None:
        """The latest BatchNorm that shifts all of `drive` as itself; None where there is none."""
        shifts = [shift for _, shift in self.shifts]
        if not drive.requires_grad or not shifts:
            return None
        found = torch.autograd.grad(drive.sum(), shifts, allow_unused=True, retain_graph=True)
        for (norm, _), gradient in zip(reversed(self.shifts), reversed(found), strict=True):
            if gradient is not None and abs(float(gradient) / drive.numel() - 1) < 1e-3:
                self.shifts = [entry for entry in self.shifts if entry[0] is not norm]
                return norm
        return None


def _fired(neuron: nn.Module, drive: Tensor) -> Tensor:
    """Spikes from rest (a neuron of SpikingJelly keeps its membrane until `reset`)."""
    reset = getattr(neuron, "reset", None)
    if callable(reset):
        reset()
    spikes = neuron.forward(drive)
    if callable(reset):
        reset()
    return spikes  # type: ignore[no-any-return]


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
