"""Neurons made opaque for the time of a trace or a run; the user's model is left as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

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


class Membrane:
    """Stands for a neuron's membrane during a trace: computing with it raises, resetting it does not.

    Its float at rest would be traced as a constant.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        leaves = pytree.tree_leaves((args, dict(kwargs or {})))
        raise MembraneRead(next(leaf.path for leaf in leaves if isinstance(leaf, cls)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise MembraneRead(self.path)

    def __getitem__(self, index: Any) -> Any:
        raise MembraneRead(self.path)

    def _computed(self, *others: Any) -> Any:
        raise MembraneRead(self.path)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __neg__ = __ge__ = _computed


class MembraneRead(Exception):
    """The model computes with the membrane of the neuron at `path`."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


@contextlib.contextmanager
def membranes_hidden(module: nn.Module, paths: Iterable[str]) -> Iterator[None]:
    """Put a Membrane where a neuron at rest keeps a number as its membrane `v`; the number comes back."""
    children = {path: module.get_submodule(path) for path in paths}
    saved = {
        path: child.v
        for path, child in children.items()
        if isinstance(getattr(child, "v", None), int | float)
    }
    try:
        for path in saved:
            children[path].v = Membrane(path)  # type: ignore[assignment]
        yield
    finally:
        for path, value in saved.items():
            children[path].v = value


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
