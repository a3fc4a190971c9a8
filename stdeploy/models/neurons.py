"""Leaky integrate-and-fire neurons: LIF, and sLIF with learned time constant and threshold."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

SURROGATE_WIDTH = 2.0
"""alpha of the arctangent surrogate, SpikingJelly's default."""

TAU_MINIMUM = 1.0 + 1e-3
THRESHOLD_MINIMUM = 1e-3


class _Fire(torch.autograd.Function):
    """All steps of charge, fire, reset at once, with the arctangent surrogate and a detached reset.

    ds/dh = alpha / (2 (1 + (pi/2 alpha (h - threshold))^2)). One function over all steps keeps one
    tensor a step (h) for the backward pass where plain autograd keeps about eight.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, tau: Tensor, threshold: Tensor, rest: float | None, decay_input: bool
    ) -> Tensor:
        r = rest or 0.0
        v = torch.full_like(x[0], r)
        charged, spikes = torch.empty_like(x), torch.empty_like(x)
        for t in range(x.shape[0]):
            h = v + (x[t] - (v - r)) / tau if decay_input else v - (v - r) / tau + x[t]
            s = (h >= threshold).to(x.dtype)
            v = h - s * threshold if rest is None else (1 - s) * h + s * r
            charged[t], spikes[t] = h, s
        ctx.save_for_backward(charged, tau, threshold)
        ctx.rest, ctx.decay_input = rest, decay_input
        return spikes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = gradients
        h, tau, threshold = ctx.saved_tensors
        r = ctx.rest or 0.0
        grad_x = torch.empty_like(h)
        grad_tau, grad_threshold = torch.zeros_like(h[0]), torch.zeros_like(h[0])
        carried = torch.zeros_like(h[0])
        for t in range(h.shape[0] - 1, -1, -1):
            fired = h[t] >= threshold
            z = (math.pi / 2 * SURROGATE_WIDTH) * (h[t] - threshold)
            through_spike = upstream[t] * (SURROGATE_WIDTH / 2) / (1 + z * z)
            kept = carried if ctx.rest is None else carried.masked_fill(fired, 0.0)
            grad_h = through_spike + kept
            grad_threshold -= through_spike
            if ctx.rest is None:
                grad_threshold -= carried.masked_fill(~fired, 0.0)
            before = _after_reset(h[t - 1], threshold, ctx.rest) if t else torch.full_like(h[0], r)
            if ctx.decay_input:
                grad_x[t] = grad_h / tau
                grad_tau -= (
                    grad_h * (h[t] - before) / tau
                )  # dh/dtau = -(x - (v - r)) / tau^2 = -(h - v) / tau
            else:
                grad_x[t] = grad_h
                grad_tau += grad_h * (before - r) / (tau * tau)
            carried = grad_h * (1 - 1 / tau)
        return grad_x, _sum_to(grad_tau, tau), _sum_to(grad_threshold, threshold), None, None


def _after_reset(h: Tensor, threshold: Tensor, rest: float | None) -> Tensor:
    fired = (h >= threshold).to(h.dtype)
    return h - fired * threshold if rest is None else (1 - fired) * h + fired * rest


def _sum_to(gradient: Tensor, parameter: Tensor) -> Tensor:
    return gradient.sum_to_size(parameter.shape) if parameter.ndim else gradient.sum()


class LIF(nn.Module):
    """Leaky integrate-and-fire over `[T, ...]`, from rest at every call; SpikingJelly's equations.

    Charge h = v + (x - (v - v_reset)) / tau (`decay_input`) or v - (v - v_reset) / tau + x; spike where
    h >= v_threshold; hard reset to `v_reset`, or soft (subtract the threshold) where it is None.
    """

    step_mode = "m"
    detach_reset = True

    def __init__(
        self,
        tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        decay_input: bool = True,
    ) -> None:
        super().__init__()
        self.tau = tau
        self.v_threshold = v_threshold
        self.v_reset = v_reset
        self.decay_input = decay_input

    def forward(self, x: Tensor) -> Tensor:
        """Spikes `[T, ...]` of inputs `[T, ...]`."""
        tau, threshold = x.new_tensor(self.tau), x.new_tensor(self.v_threshold)
        return _Fire.apply(x, tau, threshold, self.v_reset, self.decay_input)  # type: ignore[no-any-return,no-untyped-call]

    def extra_repr(self) -> str:
        return f"tau={self.tau}, v_threshold={self.v_threshold}, v_reset={self.v_reset}, decay_input={self.decay_input}"


class SLIF(nn.Module):
    """LIF whose membrane time constant and threshold are learned (synergistic LIF, paper 003 eq. 11-13).

    `tau` and `v_threshold` are parameters of shape () for a layer, or (channels,); then `channel_dim` is
    the channel's position in the `[T, B, ...]` input. They are used as they are stored: `project_` keeps
    them in range (tau > 1, threshold > 0) after each optimiser step.
    """

    step_mode = "m"
    detach_reset = True

    def __init__(
        self,
        tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        decay_input: bool = True,
        channels: int | None = None,
        channel_dim: int = -1,
    ) -> None:
        super().__init__()
        shape = () if channels is None else (channels,)
        self.tau = nn.Parameter(torch.full(shape, float(tau)))
        self.v_threshold = nn.Parameter(torch.full(shape, float(v_threshold)))
        self.v_reset = v_reset
        self.decay_input = decay_input
        self.channel_dim = channel_dim

    @torch.no_grad()
    def project_(self) -> None:
        """Bring tau and threshold back into their range."""
        self.tau.clamp_(min=TAU_MINIMUM)
        self.v_threshold.clamp_(min=THRESHOLD_MINIMUM)

    def _per_channel(self, parameter: Tensor, x: Tensor) -> Tensor:
        if parameter.ndim == 0:
            return parameter
        shape = [1] * (x.ndim - 1)  # a step has no time dimension
        shape[self.channel_dim if self.channel_dim < 0 else self.channel_dim - 1] = -1
        return parameter.view(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes `[T, ...]` of inputs `[T, ...]`."""
        tau, threshold = self._per_channel(self.tau, x), self._per_channel(self.v_threshold, x)
        return _Fire.apply(x, tau, threshold, self.v_reset, self.decay_input)  # type: ignore[no-any-return,no-untyped-call]

    def extra_repr(self) -> str:
        return f"shape={tuple(self.tau.shape)}, v_reset={self.v_reset}, decay_input={self.decay_input}"
