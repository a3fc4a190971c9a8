"""What is installed here and whether it works: versions, onnxruntime's providers, NIR readers, targets."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from dataclasses import asdict, dataclass, field
from typing import Any

from stdeploy import __version__
from stdeploy.errors import UserError
from stdeploy.exporters import load_target, targets
from stdeploy.runtime.bench import needs

PACKAGES = ("torch", "numpy", "onnx", "nir", "onnxruntime", "onnxruntime-gpu", "openvino", "numba")
READERS = ("snntorch", "spikingjelly", "nirtorch", "norse", "torchvision")
"""Packages that read NIR files, and torchvision, whose mismatch with torch breaks some of them."""


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of software; `version` None: not installed; `remark`: what it offers, or why it is broken."""

    name: str
    version: str | None
    remark: str = ""


@dataclass(frozen=True, slots=True)
class TargetState:
    """One target; `problem` None: it loads. `other_suffixes`: of further file formats that it writes."""

    name: str
    module: str
    suffix: str
    problem: str | None
    other_suffixes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Environment:
    """Everything found. `problems`: what stdeploy needs and does not work; `warnings`: what it can do without."""

    parts: tuple[Part, ...]
    targets: tuple[TargetState, ...]
    problems: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"schema_version": 1, **asdict(self)}


def examine() -> Environment:
    """Look at everything; imports the optional packages, so it takes seconds."""
    parts = [Part("stdeploy", __version__), Part("python", platform.python_version(), platform.platform())]
    problems: list[str] = []
    warnings: list[str] = []
    for name in (*PACKAGES, *READERS):
        version = installed(name)
        remark = ""
        if version is not None and name != "onnxruntime-gpu":
            remark, problem = _try(name)
            (warnings if name in READERS else problems).extend([problem] if problem else [])
        parts.append(Part(name, version, remark))
    if installed("onnxruntime") and installed("onnxruntime-gpu"):
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files: "
            "uninstall both, then install one"
        )
    parts.append(_lava(warnings))
    parts.append(Part("bench candidates", *needs.summary()))
    states = target_states()
    for state in states:
        parts.append(
            Part(f"target {state.name}", "ok" if state.problem is None else "broken", state.problem or "")
        )
        problems += [f"target {state.name}: {state.problem}"] if state.problem else []
    return Environment(tuple(parts), tuple(states), tuple(problems), tuple(warnings))


def installed(distribution: str) -> str | None:
    """Version of an installed distribution."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _try(name: str) -> tuple[str, str | None]:
    """What an installed package offers, and what is wrong with it if it does not import."""
    try:
        module = importlib.import_module(name)
    except Exception as error:  # noqa: BLE001 - a broken package raises whatever it likes; that is the finding
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = _torchvision_hint() if name in READERS else ""
        return "does not import", f"{name} does not import: {type(error).__name__}: {text}{hint}"
    if name == "onnxruntime":
        return ", ".join(module.get_available_providers()), None
    if name == "torch":
        count = module.cuda.device_count()
        return f"{count} CUDA device{'s' if count > 1 else ''}" if count else "CPU only", None
    return "", None


def _lava(warnings: list[str]) -> Part:
    """Lava's own Python; a warning where there is none."""
    from stdeploy.runtime.lava_process import lava_python, lava_version

    try:
        python = lava_python()
        return Part("lava-nc", lava_version(python), str(python))
    except UserError as error:
        warnings.append(f"{error}: Lava folders can be written, not run; {error.hint}")
        return Part("lava-nc", None)


def _torchvision_hint() -> str:
    """torchvision's compiled operators exist only for the torch build (CPU or CUDA) they were made for."""
    vision, torch = installed("torchvision"), installed("torch")
    if vision is None or torch is None or ("+cpu" in vision) == ("+cpu" in torch):
        return ""
    return f" (torchvision {vision} and torch {torch} are different builds: install both from the same index)"


def target_states() -> list[TargetState]:
    """Every known target, and whether it loads here."""
    out = []
    for name, module in sorted(targets().items()):
        try:
            target = load_target(name)
            others = tuple(getattr(target, "FORMATS", {}).values())
            out.append(TargetState(name, module, target.SUFFIX, None, others))
        except (ImportError, AttributeError, UserError) as error:
            out.append(TargetState(name, module, "", f"{type(error).__name__}: {error}"))
    return out
