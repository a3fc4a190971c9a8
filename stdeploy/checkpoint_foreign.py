"""Checkpoints of any origin: our own container, safetensors, and the state dicts that others save.

Nothing in a file is ever executed: pickles are read with weights_only=True, which admits tensors and plain
data. Code runs only where the user names it with `--model package.module:factory`.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from stdeploy.checkpoint import FORMAT, load_checkpoint, load_state, read_container
from stdeploy.errors import UserError
from stdeploy.files import sha256
from stdeploy.models.spikformer import SpikformerConfig

CONTAINER_KEYS = ("state_dict", "model", "model_state_dict", "net")
"""Where timm ("state_dict"), torchvision's references and MAE ("model") and others keep the weights."""

_PREFIXES = ("module.", "_orig_mod.")  # nn.DataParallel / DistributedDataParallel, torch.compile
_SCALAR = np.float64(0).__reduce__()[0]  # numpy's constructor of scalars, under the names of numpy 2 and 1
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
]
"""Plain data that public checkpoints carry beside the weights: timm's and MAE's `args`, numpy's scalars."""

_LISTED = 5


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """A model in eval mode with what is known about its file. `config` is None for a foreign model."""

    module: nn.Module
    source: Path
    sha256: str
    config: Mapping[str, Any] | None = None
    compression: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Shape of one sample without batch, frames first for event data; None where the file does not say."""
        if self.config is None:
            return None
        return SpikformerConfig.from_dict(dict(self.config)).input_shape


def open_checkpoint(path: Path | str, *, model: str | None = None, key: str | None = None) -> OpenedModel:
    """The model in `path`, built by `model` ("package.module:factory") where the file holds weights only.

    `key` names the entry of a container that holds the weights (for instance "state_dict_ema"). Raises
    UserError where the file is missing, damaged, would run code, or does not fit the model.
    """
    source = Path(path)
    content = read_file(source)
    if isinstance(content, Mapping) and content.get("format") == FORMAT:
        loaded = load_checkpoint(source)
        return OpenedModel(loaded.module.eval(), source, loaded.sha256, loaded.config, loaded.compression)
    state, notes = state_dict(content, source, key)
    if model is None:
        raise UserError(
            f"{source} holds weights without a model ({len(state)} tensors)",
            hint="name the code that builds it: --model package.module:factory (it will be imported and run)",
        )
    module = build(model)
    _drop_masks(module)
    fit(module, state, source)
    return OpenedModel(module.eval(), source, sha256(source), notes=tuple(notes))


def read_file(path: Path) -> Any:
    """Plain data and tensors of a .safetensors or torch.save file; executes nothing (UserError)."""
    if path.suffix == ".safetensors" and path.is_file():
        return _read_safetensors(path)
    with torch.serialization.safe_globals(_HARMLESS):
        return read_container(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors
    import safetensors.torch

    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file: {_first_line(error)}",
            hint="the file is damaged or truncated",
        ) from error
    return tensors


def state_dict(content: Any, source: Path, key: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by parameter name from whatever container holds them, and what was done to them.

    Strips `module.` prefixes and multiplies out `torch.nn.utils.prune` masks. UserError where no
    tensors are found.
    """
    notes: list[str] = []
    found = _unwrap(content, source, key, notes)
    for prefix in _PREFIXES:
        if found and all(name.startswith(prefix) for name in found):
            found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
            notes.append(f"stripped the prefix {prefix!r} from every name")
    masked = [name.removesuffix("_mask") for name in found if name.endswith("_mask")]
    masked = [name for name in masked if f"{name}_orig" in found]
    for name in masked:
        found[name] = found.pop(f"{name}_orig") * found.pop(f"{name}_mask")
    if masked:
        notes.append(f"multiplied {len(masked)} torch.nn.utils.prune masks into their weights")
    return found, notes


def _unwrap(content: Any, source: Path, key: str | None, notes: list[str]) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise UserError(
            f"{source} holds a {type(content).__name__}, not a state dict",
            hint="save torch.save(model.state_dict(), path)",
        )
    if key is not None and key not in content:
        known = ", ".join(str(k) for k in list(content)[:10])
        raise UserError(f"{source} has no entry {key!r}", hint=f"its entries: {known}")
    for name in (key,) if key is not None else CONTAINER_KEYS:
        if isinstance(content.get(name), Mapping):
            notes.append(f"weights are the entry {name!r}")
            others = [k for k in content if k != name and "ema" in str(k).lower()]
            if others and key is None:
                notes.append(f"the file also holds {', '.join(map(str, others))} (--state-dict-key)")
            content = content[name]
            break
    tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    rest = [str(k) for k, v in content.items() if not isinstance(v, Tensor)]
    if not tensors or rest:
        listed = ", ".join(rest[:_LISTED]) or "nothing"
        raise UserError(
            f"{source} is not a state dict: it holds {listed} where tensors belong",
            hint="name the entry that holds the weights with --state-dict-key",
        )
    return tensors


def build(factory: str) -> nn.Module:
    """Call `package.module:factory` (no arguments), with the working folder importable; UserError where it fails."""
    module_name, _, attribute = factory.partition(":")
    if not module_name or not attribute:
        raise UserError(f"--model {factory!r} is not of the form package.module:factory")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise UserError(
            f"--model {factory}: {_first_line(error)}", hint=f"it is looked for in {here} and on PYTHONPATH"
        ) from error
    module = _call(factory, function)
    if not isinstance(module, nn.Module):
        raise UserError(f"--model {factory} returned a {type(module).__name__}, not an nn.Module")
    return module


def _call(factory: str, function: Callable[[], Any]) -> Any:
    if not callable(function):
        raise UserError(f"--model {factory} is not callable")
    try:
        return function()
    except Exception as error:
        raise UserError(
            f"--model {factory} raised {type(error).__name__}: {_first_line(error)}",
            hint="it is called without arguments; --traceback shows where",
        ) from error


def _drop_masks(module: nn.Module) -> None:
    """Take torch.nn.utils.prune's masks off a built model: the file's weights hold its own."""
    for child in module.modules():
        for hook in list(child._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(child, hook._tensor_name)  # type: ignore[no-untyped-call]


def fit(module: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Load `state` into `module`; UserError that names what is missing, unexpected or misshapen.

    BatchNorm's step counter may be missing: old files lack it and inference does not read it.
    """
    counters = {n: t for n, t in module.state_dict().items() if n.endswith("num_batches_tracked")}
    try:
        load_state(module, {**counters, **state}, source)
    except UserError as error:
        hint = (
            "--model has to build what was saved: the same sizes, and the same neurons (replace_lif's, too)"
        )
        raise UserError(error.message, where=error.where, hint=error.hint or hint) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
