"""What runs an artefact here: the readers of every target, which of them are default, and their executors."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stdeploy.errors import UserError
from stdeploy.graph.execution import Executor
from stdeploy.graph.file import load_graph
from stdeploy.graph.interpreter import Interpreter
from stdeploy.workflow import target_of

READERS: dict[str, dict[str, str | None]] = {
    "graph": {"interpreter": None},
    "onnx": {"onnxruntime": "onnxruntime", "cuda": None, "openvino": None},
    "nir": {
        "snntorch": "snntorch",
        "spikingjelly": "spikingjelly",
        "norse": "norse",
        "spikingjelly-m": None,
        "stdeploy": None,
    },
    "lava": {"lava": None},
    "netx": {"stdeploy": None},
    "event": {"event": "numba"},
}
"""Readers by target. Those with a package run by default where it is installed."""

_EXTRAS = {"onnx": ("onnxruntime", "cpu"), "event": ("numba", "event")}
"""The package that runs a target's files by default, and the extra that brings it."""


def executors(artefact: Path, readers: Sequence[str] = ()) -> list[Executor]:
    """What can run an artefact here: onnxruntime, every installed NIR reader (else our own), the interpreter.

    `readers` picks some by name instead. Raises UserError where the file is missing or a reader is not there.
    """
    target = runs_as(artefact)
    require_readers(target, readers)
    names = readers or _readers_of(artefact, target)
    if target == "nir":
        from stdeploy.runtime.nir_file import NirFile
        from stdeploy.runtime.nir_readers import NirReader

        file = NirFile(artefact)
        return [NirReader(file, name) for name in names]
    return [_executor(artefact, target, name) for name in names]


def compile_first(candidates: Sequence[Executor]) -> None:
    """Have those that compile kernels of their own (the event engine) do it now, not in the first run."""
    for candidate in candidates:
        compile_: Callable[[], None] = getattr(candidate, "compile", lambda: None)
        compile_()


def runs_as(artefact: Path) -> str:
    """The key of READERS for an artefact: its target, or the file format that it is in."""
    target = target_of(artefact)
    return "netx" if target == "lava" and artefact.is_file() else target


def _readers_of(artefact: Path, target: str) -> list[str]:
    """The default readers, of a NIR file those that its dialect was proven in."""
    found = default_readers(target)
    if target != "nir":
        return found
    from stdeploy.importers.nir.document import stored_contract

    contract = stored_contract(artefact)
    proven = None if contract is None else contract.dialect.proven_in
    return found if proven is None else [name for name in found if name in proven] or ["stdeploy"]


def require_readers(
    target: str, readers: Sequence[str] = (), options: Mapping[str, Any] | None = None
) -> None:
    """UserError where a named reader does not run the target's files as `options` have them, or nothing does."""
    if target not in READERS:
        raise UserError(f"nothing here runs {target} files", hint="export with --no-verify")
    package, extra = _EXTRAS.get(target, ("", ""))
    default = not readers or next(iter(READERS[target])) in readers
    if package and default and importlib.util.find_spec(package) is None:
        raise UserError(
            f"{package} is not installed", hint=f'pip install "stdeploy[{extra}]", or export with --no-verify'
        )
    if target == "lava" and (options or {}).get("format") == "netx":
        target = "netx"
    if target == "lava":
        from stdeploy.runtime.lava_process import lava_python, lava_version

        lava_version(lava_python())
    known = ", ".join(READERS[target])
    for name in readers:
        if name in READERS[target]:
            if options and "dialect" in options:
                from stdeploy.exporters.nir.dialect import load_dialect

                load_dialect(options["dialect"]).require(name)
            continue
        if target == "nir":
            from stdeploy.runtime.nir_readers import REFUSED, require_reader

            if name in REFUSED:
                require_reader(name)
        raise UserError(f"no reader {name!r} runs {target} files", hint=f"readers: {known}")


def default_readers(target: str) -> list[str]:
    """Readers that verify a target's files here unless the user names some."""
    by_package = {name: package for name, package in READERS[target].items() if package is not None}
    found = [name for name, package in by_package.items() if importlib.util.find_spec(package) is not None]
    if found or target == "nir":
        return found or ["stdeploy"]
    return [next(iter(READERS[target]))]  # its absence is then an error that says what to install


def spiking_executor(artefact: Path, readers: Sequence[str] = ()) -> Executor:
    """One executor of an artefact that reports the spikes of its own run, and counts if it can; UserError as `executors`."""
    target = runs_as(artefact)
    require_readers(target, readers)
    if len(readers) > 1:
        raise UserError("spikes are counted of one reader", hint="name one with --reader")
    return _executor(artefact, target, (*readers, *default_readers(target))[0], spikes=True)


def _executor(artefact: Path, target: str, reader: str, spikes: bool = False) -> Executor:
    if target == "graph":
        return Interpreter(load_graph(artefact))
    if target == "lava":
        from stdeploy.runtime.lava_process import LavaExecutor

        simulation: Executor = LavaExecutor(artefact, spikes=spikes)
        return simulation
    if target == "netx":
        from stdeploy.runtime.netx_reference import NetxReference

        reference: Executor = NetxReference(artefact)
        return reference
    if target == "nir":
        from stdeploy.runtime.nir_readers import NirReader

        executor: Executor = NirReader(artefact, reader=reader)
        return executor
    if target == "event":
        from stdeploy.runtime.event.session import EventSession

        engine: Executor = EventSession(artefact, counting=spikes)
        return engine
    from stdeploy.runtime.onnx_session import OnnxRuntimeExecutor, OpenVinoExecutor

    # without spikes the free run is of the file as it is; forced runs show spikes anyway
    if reader == "openvino":
        return OpenVinoExecutor(artefact, spikes=spikes)
    return OnnxRuntimeExecutor(artefact, "cuda" if reader == "cuda" else "cpu", spikes=spikes)
