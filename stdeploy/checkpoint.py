"""The native checkpoint: configuration, weights and compression record; reading one runs no code of it."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stdeploy.errors import UserError
from stdeploy.files import atomic_write, sha256
from stdeploy.models.spikformer import Spikformer, SpikformerConfig

FORMAT = "stdeploy.checkpoint"
VERSION = 1


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A module in eval mode, with what the file says about it."""

    module: nn.Module
    source: Path
    sha256: str
    config: Mapping[str, Any] = field(default_factory=dict)
    compression: Mapping[str, Any] | None = None


def save_checkpoint(
    path: Path | str, model: Spikformer, compression: Mapping[str, Any] | None = None
) -> Path:
    """Write `model` with its configuration; the file appears whole or not at all.

    UserError where it cannot be written, or the model is another one, whose code no configuration replaces.
    """
    if not isinstance(model, Spikformer):
        raise UserError(
            f"a {type(model).__name__} is not stdeploy's Spikformer: {path} could not say how to build it",
            hint="torch.save its state_dict() and name a function that builds it, neurons replaced, with --model",
        )
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": model.config.to_dict(),
        "state_dict": {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()},
        "compression": dict(compression) if compression else None,
    }
    # In memory first: torch names the file within the archive, here a temporary one, and a full disk would
    # be a RuntimeError of its zip writer.
    stream = io.BytesIO()
    torch.save(content, stream)
    with atomic_write(path) as temporary:
        temporary.write_bytes(stream.getvalue())
    return Path(path)


def read_container(path: Path) -> Any:
    """Unpickle `path` with tensors and plain data only; UserError for anything else, nothing executed."""
    if not path.is_file():
        raise UserError(f"{path} is a folder" if path.is_dir() else f"{path} does not exist")
    if path.suffix == ".npz":
        raise UserError(f"{path} holds arrays, not a model", hint="give a model, and inputs with --data")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if path.read_bytes()[:1] not in (b"P", b"\x80"):  # zip or pickle: all that torch writes
            raise UserError(f"{path} is not a readable checkpoint: it is neither zip nor pickle") from error
        raise _refusal(path, str(error)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not a readable checkpoint: {_reason(error)}", hint="is it truncated?"
        ) from error


# The ways in which torch's restricted unpickler names what it would not load; the rest of its message
# advises to switch the restriction off, which no user should read here.
_REFUSED = re.compile(
    r"Unsupported global: GLOBAL (\S+)|unsupported GLOBAL (\S+)|Unsupported (?:operand|class) (\S+)"
)


def _refusal(path: Path, message: str) -> UserError:
    found = _REFUSED.search(message)
    what = next((group for group in found.groups() if group), "") if found else ""
    if what.isdecimal():
        what = f"pickle instruction {what}"
    return UserError(
        f"{path} holds more than tensors and plain data{f' ({what})' if what else ''}: "
        "loading it could run code, so nothing of it was",
        hint="save its state_dict() alone (torch.save or safetensors) and name the model with --model "
        "package.module:factory",
    )


def _reason(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "it ends too early"
    if isinstance(error, KeyError):  # the restricted unpickler looks instructions up in a table
        return f"it is no pickle (instruction {error})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def load_checkpoint(path: Path | str) -> LoadedModel:
    """Model of a file written by save_checkpoint, in eval mode; UserError that says what does not fit."""
    source = Path(path)
    content = read_container(source)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"{source} is not a stdeploy checkpoint",
            hint="other models are pruned from Python (README, Compressing your own), and exported with --model",
        )
    if content.get("version") != VERSION:
        raise UserError(
            f"{source} has version {content.get('version')}; this stdeploy reads version {VERSION}"
        )
    described: Any = content.get("config")
    state: Any = content.get("state_dict")
    record: Any = content.get("compression")
    for name, entry in (("config", described), ("state_dict", state), ("compression", record or {})):
        if not isinstance(entry, dict):
            raise UserError(f"{source} is damaged: its {name} is a {type(entry).__name__}, not a dictionary")
    try:
        config = SpikformerConfig.from_dict(described)
    except UserError as error:
        raise UserError(error.message, where=str(source), hint=error.hint) from error
    if config.depth > len(state):  # a block has many weights; building blocks without any could take forever
        raise UserError(f"{source} does not fit: depth {config.depth}, but only {len(state)} weights")
    model = Spikformer(config)
    load_state(model, state, source)
    return LoadedModel(model.eval(), source, sha256(source), config.to_dict(), record)


def load_state(model: nn.Module, state: Mapping[str, Any], source: Path) -> None:
    """Copy `state` into `model`; UserError that names the entries that do not fit.

    These are the missing, unexpected and misshapen ones, those that are no tensor of the model's kind
    (integers for a float would be a quantised file without its scales), and values that are not finite.
    """
    own = model.state_dict()
    odd = [str(n) for n, t in state.items() if not isinstance(n, str) or not isinstance(t, Tensor)]
    if odd:
        raise UserError(f"{source} is not a state dict: {_some(odd)} should be tensors with names")
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    misshapen = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    fitting = [(name, state[name]) for name in own if name in state]
    mistyped = [
        f"{name} {_kind(tensor)} for {_kind(own[name])}"
        for name, tensor in fitting
        if _kind(tensor) != _kind(own[name])
    ]
    infinite = [name for name, t in fitting if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    problems = [
        f"{label}: {_some(names)}"
        for label, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape", misshapen),
            ("wrong type", mistyped),
            ("not finite", infinite),
        )
        if names
    ]
    if problems:
        raise UserError(f"{source} does not fit {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict(dict(state))


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "float"
    return str(tensor.dtype).removeprefix("torch.") if tensor.is_complex() else "integer"


def _some(names: list[str], limit: int = 4) -> str:
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
