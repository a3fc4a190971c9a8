"""Neuron modules by duck typing: what each computes, read from its attributes and proved by a probe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stdeploy.errors import Unsupported, UserError
from stdeploy.graph.ops import Neuron
from stdeploy.graph.weight import Array

KINDS = {
    "LIF": "LIF",
    "SLIF": "SLIF",
    "LIFNode": "LIF",
    "MultiStepLIFNode": "LIF",
    "IFNode": "IF",
    "MultiStepIFNode": "IF",
    "ParametricLIFNode": "PLIF",
    "MultiStepParametricLIFNode": "PLIF",
}
"""Class names (of the module or of what it derives from) whose equations the graph's Neuron has."""

SETTINGS = ("tau", "v_threshold", "v_reset", "decay_input")
"""What a user may override."""

_PROBE_STEPS = 6


@dataclass(frozen=True, eq=False)
class NeuronSpec:
    """One neuron module. `tau`, `v_threshold`, `v_reset`: [] or [C]; `channel_dim`: where C is in its input.

    `stateful`: the module keeps its membrane between calls unless it is reset.
    """

    path: str
    kind: str
    tau: Array | None
    v_threshold: Array
    v_reset: Array | None
    decay_input: bool
    channel_dim: int | None
    stateful: bool

    @property
    def channels(self) -> int | None:
        sizes = [p.shape[0] for p in (self.tau, self.v_threshold, self.v_reset) if p is not None and p.ndim]
        return sizes[0] if sizes else None

    def op(self, order: Array | None = None) -> Neuron:
        """The graph's operator; `order[i]` is the value's channel of the module's channel i (None: the same)."""

        def arranged(parameter: Array | None) -> Array | None:
            if parameter is None or not parameter.ndim or order is None:
                return parameter
            out = np.empty_like(parameter)
            out[order] = parameter
            return out

        threshold = arranged(self.v_threshold)
        if threshold is None:
            raise TypeError("a neuron without a threshold")
        return Neuron(arranged(self.tau), threshold, arranged(self.v_reset), self.decay_input, self.kind)


def is_neuron(module: nn.Module) -> bool:
    """Whether a module looks like a spiking neuron."""
    return hasattr(module, "v_threshold") or _known(module) is not None


def _known(module: nn.Module) -> str | None:
    return next((KINDS[c.__name__] for c in type(module).__mro__ if c.__name__ in KINDS), None)


def read_neurons(
    module: nn.Module, settings: Mapping[str, Any]
) -> tuple[dict[str, NeuronSpec], list[Unsupported]]:
    """Every neuron of a model by module path, and what cannot be taken; `settings` are already applied."""
    found: dict[str, NeuronSpec] = {}
    refused: list[Unsupported] = []
    for path, child in module.named_modules():
        if not is_neuron(child):
            continue
        what = type(child).__name__
        problem = _problem(child)
        if problem is None:
            try:
                spec = _spec(path, child)
                problem = _probe(child, spec)
            except (AttributeError, TypeError, ValueError) as error:
                problem = (f"its parameters cannot be read: {error}", None)
        if problem is not None:
            refused.append(Unsupported(path, what, *problem))
        else:
            found[path] = spec
    return found, refused


def _problem(module: nn.Module) -> tuple[str, str | None] | None:
    known = _known(module)
    always_multi = any(c.__name__.startswith("MultiStep") for c in type(module).__mro__)
    multi = getattr(module, "step_mode", "m" if always_multi else "s") == "m"
    if known is None and not all(hasattr(module, s) for s in ("tau", "v_reset", "decay_input")):
        return "a neuron whose equations are not known", "use IF, LIF, PLIF or sLIF neurons"
    if not multi:
        return "a single-step neuron, whose time loop is outside the model", "set step_mode to 'm'"
    if getattr(module, "store_v_seq", False):
        return "it returns its membranes too (store_v_seq)", "set store_v_seq to False"
    if isinstance(getattr(module, "v", None), Tensor):
        return "it carries a membrane from an earlier call", "reset the network before tracing"
    return None


def _array(value: Any) -> Array:
    array: Array = (
        value.detach().cpu().numpy().copy() if isinstance(value, Tensor) else np.asarray(float(value))
    )
    if array.size == 1:
        return array.reshape(())
    if max(array.shape) != array.size:
        raise ValueError(f"a parameter of shape {array.shape} is neither one number nor one per channel")
    return array.reshape(-1)


def _spec(path: str, module: nn.Module) -> NeuronSpec:
    kind = _known(module) or "LIF"
    tau: Array | None = None
    if kind == "PLIF":
        tau = _array(1.0 / torch.sigmoid(module.w))  # type: ignore[arg-type]
    elif kind != "IF":
        tau = _array(module.tau)
    reset = None if module.v_reset is None else _array(module.v_reset)
    threshold = _array(module.v_threshold)
    decay = bool(getattr(module, "decay_input", True))
    per_channel = [
        n for n in ("tau", "v_threshold", "v_reset", "w") if getattr(getattr(module, n, 0), "ndim", 0)
    ]
    dim = (
        _channel_dim(module, per_channel)
        if any(p is not None and p.ndim for p in (tau, threshold, reset))
        else None
    )
    sizes = {p.shape for p in (tau, threshold, reset) if p is not None and p.ndim}
    if len(sizes) > 1:
        raise ValueError(f"its parameters have different numbers of channels: {sorted(sizes)}")
    return NeuronSpec(path, kind, tau, threshold, reset, decay, dim, hasattr(module, "reset"))


def _channel_dim(module: nn.Module, names: list[str]) -> int:
    """Where the channels are in the input `[T, B, ...]`: as the module says, or as its parameters broadcast."""
    if hasattr(module, "channel_dim"):
        return int(module.channel_dim)  # type: ignore[arg-type]
    shapes = [tuple(getattr(module, n).shape) for n in names]
    return next(i - len(s) for s in shapes for i, n in enumerate(s) if n > 1)


def _simulate(spec: NeuronSpec, x: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and charged membranes of the graph's equations on `x [T, ...]`."""

    def shaped(parameter: Array | None) -> Tensor:
        value = torch.as_tensor(0.0 if parameter is None else parameter).to(x.dtype)
        if not value.ndim or spec.channel_dim is None:
            return value
        shape = [1] * (x.ndim - 1)
        shape[spec.channel_dim if spec.channel_dim < 0 else spec.channel_dim - 1] = -1
        return value.reshape(shape)

    tau, threshold, rest = shaped(spec.tau), shaped(spec.v_threshold), shaped(spec.v_reset)
    v = torch.zeros_like(x[0]) + rest
    spikes, charged = [], []
    for step in x:
        if spec.tau is None:
            h = v + step
        elif spec.decay_input:
            h = v + (step - (v - rest)) / tau
        else:
            h = v - (v - rest) / tau + step
        s = (h >= threshold).to(x.dtype)
        v = h - s * threshold if spec.v_reset is None else (1 - s) * h + s * rest
        spikes.append(s)
        charged.append(h)
    return torch.stack(spikes), torch.stack(charged)


def _probe(module: nn.Module, spec: NeuronSpec) -> tuple[str, str | None] | None:
    """Run the module on random and on threshold-hitting drives; a reason where its spikes are other ones.

    This is what tells a class with the right attributes but other equations (or a strict threshold).
    """
    floating = [p for p in module.parameters() if p.is_floating_point()]
    dtype = floating[0].dtype if floating else torch.float32
    device = floating[0].device if floating else torch.device("cpu")
    rank = max(3, 0 if spec.channel_dim is None else abs(spec.channel_dim) + 1)
    shape = [_PROBE_STEPS, 16] + [4] * (rank - 2)
    if spec.channels is not None and spec.channel_dim is not None:
        shape[spec.channel_dim] = spec.channels
    generator = torch.Generator().manual_seed(0)
    scale = float(np.max(spec.v_threshold)) * (
        1.0 if spec.tau is None or not spec.decay_input else float(np.max(spec.tau))
    )
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    x[:, ::2] = x[:, ::2].abs() * 0.7  # half of them mostly charge
    hits = _reaching(spec)
    if hits is not None and spec.channels is None:
        x[:, 0] = hits
    x = x.to(dtype).to(device)
    expected, charged = _simulate(spec, x)
    with torch.no_grad():
        got = _call(module, x)
    if not isinstance(got, Tensor) or got.shape != x.shape:
        return "it does not return spikes of its input's shape", None
    # a rounding's distance from the threshold is no evidence, unless the membrane is on it exactly
    gap = (charged - torch.as_tensor(np.max(spec.v_threshold)).to(charged)).abs()
    near = (gap < 1e-4 * max(1.0, scale)) & (gap > 0) if spec.channels is None else gap < 0
    unclear = torch.cummax(near.to(torch.int8), 0).values.bool()
    if bool(((got != expected) & ~unclear).any()):
        return "its spikes are not those of its tau, v_threshold, v_reset and decay_input", None
    return None


def _reaching(spec: NeuronSpec) -> float | None:
    """A drive whose first charge is exactly the threshold in float32, where a few tries find one."""
    rest = np.float32(0.0 if spec.v_reset is None else spec.v_reset) if spec.channels is None else None
    if rest is None:
        return None
    threshold = np.float32(spec.v_threshold)
    divided = spec.tau is not None and spec.decay_input
    x = np.float32((threshold - rest) * (np.float32(spec.tau) if divided else 1))
    for _ in range(4):
        h = rest + (x / np.float32(spec.tau) if divided else x)
        if h == threshold:
            return float(x)
        x = np.nextafter(x, np.float32(math.inf if h < threshold else -math.inf))
    return None


def _call(module: nn.Module, x: Tensor) -> Any:
    reset = getattr(module, "reset", None)
    if reset is not None:
        reset()
    try:
        return module.forward(x)
    finally:
        if reset is not None:
            reset()


def check_settings(settings: Mapping[str, Any]) -> None:
    """UserError for a setting that no neuron has."""
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise UserError(f"unknown neuron setting {', '.join(unknown)}", hint=f"known: {', '.join(SETTINGS)}")
