"""Neurons made opaque for the time of a trace or a run; the user's model is left as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stdeploy.errors import UserError

OP = "stdeploy::neuron"

_library = torch.library.Library("stdeploy", "DEF")  # type: ignore[no-untyped-call]
_library.define("neuron(Tensor x, str path) -> Tensor")  # type: ignore[no-untyped-call]


@torch.library.register_fake(OP, lib=_library)  # type: ignore[untyped-decorator]
def _neuron_shape(x: Tensor, path: str) -> Tensor:
    """A contiguous tensor like `x`, whatever its strides: views behind it must not depend on them.

    The operator exists only inside a trace, where shapes are all there is to compute.
    """
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def opaque(path: str) -> Callable[..., Tensor]:
    """A forward that leaves one operator with the module's path in the trace."""

    def forward(x: Tensor, *rest: Any, **options: Any) -> Tensor:
        return torch.ops.stdeploy.neuron(x, path)  # type: ignore[no-any-return]

    return forward


@contextlib.contextmanager
def forwards(module: nn.Module, replaced: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Give modules (by path) another forward; the class's own comes back at the end."""
    children = {path: module.get_submodule(path) for path in replaced}
    before = {path: child.__dict__.get("forward") for path, child in children.items()}
    try:
        for path, child in children.items():
            child.__dict__["forward"] = replaced[path]
        yield
    finally:
        for path, child in children.items():
            child.__dict__.pop("forward", None)
            if before[path] is not None:
                child.__dict__["forward"] = before[path]


@contextlib.contextmanager
def settings_applied(
    module: nn.Module, settings: Mapping[str, Any], neurons: Callable[[nn.Module], bool]
) -> Iterator[None]:
    """Give every neuron the user's settings, then its own ones back.

    Raises UserError where a neuron keeps that setting as something that is learned in another form.
    """
    undo: list[Callable[[], None]] = []
    try:
        for path, child in module.named_modules():
            if settings and neurons(child):
                for name, value in settings.items():
                    undo.append(_set(path, child, name, value))
        yield
    finally:
        for restore in reversed(undo):
            restore()


def _set(path: str, child: nn.Module, name: str, value: Any) -> Callable[[], None]:
    current = getattr(child, name, None)
    if name == "tau" and hasattr(child, "w"):
        raise UserError("tau is learned by the model and cannot be set", where=path)
    if isinstance(current, nn.Parameter):
        if value is None:
            raise UserError(f"{name} is learned by the model and cannot be none", where=path)
        saved = current.detach().clone()
        with torch.no_grad():
            current.fill_(float(value))
        return lambda: _copy(current, saved)
    if not hasattr(child, name):
        return lambda: None  # an IF neuron has no tau
    setattr(child, name, value)
    return lambda: setattr(child, name, current)


def _copy(parameter: nn.Parameter, saved: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(saved)
