"""From a file to a proven artefact: open, trace, lower, export, compare. What the command line calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stdeploy import __version__
from stdeploy.environment import target_states
from stdeploy.errors import ParityError, Unsupported, UnsupportedError, UserError
from stdeploy.exporters import load_target, targets
from stdeploy.exporters.artifact import Artifact
from stdeploy.files import require_replaceable
from stdeploy.graph import Graph
from stdeploy.graph.execution import Executor
from stdeploy.graph.file import SUFFIX as GRAPH_SUFFIX
from stdeploy.graph.file import load_graph
from stdeploy.graph.graph import ParameterError
from stdeploy.graph.interpreter import Interpreter
from stdeploy.graph.weight import Array
from stdeploy.parity import Report
from stdeploy.passes.base import PassResult, run_pipeline
from stdeploy.verify import compare_all

if TYPE_CHECKING:
    from stdeploy.checkpoint_foreign import OpenedModel

NIR_SUFFIX = ".nir"
PROGRAMS = (".onnx", ".sev")
"""Files that run a network but do not tell it."""


@dataclass(frozen=True)
class SourceOptions:
    """What a file may not say about its model (see `stdeploy export --help`)."""

    model: str | None = None
    state_dict_key: str | None = None
    input_shape: tuple[int, ...] | None = None
    layout: str | None = None
    steps: int | None = None
    neuron: Mapping[str, Any] | None = None
    assume_reset_per_sample: bool | None = None
    dt: float | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """A traced model: its graph before any pass, and what runs it as the user's own code does.

    `reference` is the PyTorch model; for a graph or NIR file, which has none, the interpreter in float32.
    """

    path: Path
    graph: Graph
    reference: Executor
    opened: OpenedModel | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Lowered:
    """The graph after a target's passes."""

    result: PassResult
    target: str
    seconds: float

    @property
    def graph(self) -> Graph:
        return self.result.graph


def open_source(path: Path, options: SourceOptions | None = None) -> Source:
    """Read and trace a checkpoint, or read a graph or NIR file (which need no PyTorch)."""
    options = options or SourceOptions()
    start = time.perf_counter()
    if path.suffix == GRAPH_SUFFIX:
        _refuse_options(path, "graph", options, [f.name for f in fields(options)])
        graph = load_graph(path)
        return Source(path, graph, Interpreter(graph, np.float32), None, time.perf_counter() - start)
    if path.suffix == NIR_SUFFIX:
        from stdeploy.importers.nir import import_nir

        graph = import_nir(path, **nir_options(path, options))
        return Source(path, graph, Interpreter(graph, np.float32), None, time.perf_counter() - start)
    if path.suffix in PROGRAMS and path.is_file():
        raise UserError(
            f"{path} is a program, from which no network is read back",
            hint="give the model that it was made from",
        )
    _refuse_options(path, "PyTorch file", options, ["dt"])
    from stdeploy.checkpoint_foreign import open_checkpoint

    opened = open_checkpoint(path, model=options.model, key=options.state_dict_key)
    if opened.config is not None:
        _refuse_options(path, "stdeploy checkpoint", options, ["model", "state_dict_key"])
    shape = options.input_shape or opened.input_shape
    if shape is None:
        raise UserError(
            f"{path} does not say what the model takes",
            hint="give one sample's shape without batch: --input 3x32x32, or 16x2x128x128 for event frames",
        )
    from stdeploy.trace import trace

    metadata: dict[str, Any] = {
        "stdeploy_version": __version__,
        "source": path.name,
        "source_sha256": opened.sha256,
        "dtype": "float32",
    }
    if opened.compression:
        metadata["compression"] = opened.compression.get("method")
        if "tau_levels" in opened.compression:
            metadata["tau_levels"] = opened.compression["tau_levels"]
    try:
        traced = trace(
            opened.module,
            shape,
            steps=options.steps,
            layout=options.layout,
            neuron=options.neuron,
            metadata=metadata,
            assume_reset_per_sample=bool(options.assume_reset_per_sample),
        )
    except ParameterError as error:
        raise UserError(f"{path}: {error}", hint="the file is damaged, or its training diverged") from error
    return Source(path, traced.graph, traced, opened, time.perf_counter() - start)


def nir_options(path: Path, options: SourceOptions) -> dict[str, Any]:
    """What a NIR file may have to be told; UserError where other options are given."""
    told = ("dt", "steps", "layout")
    _refuse_options(path, "NIR file", options, [f.name for f in fields(options) if f.name not in told])
    return {name: getattr(options, name) for name in told}


def _refuse_options(path: Path, kind: str, options: SourceOptions, names: Sequence[str]) -> None:
    """UserError where an option is given that a file of this kind decides itself."""
    given = [name for name in names if getattr(options, name) is not None]
    flags = ", ".join("--" + name.removesuffix("_shape").replace("_", "-") for name in given)
    if given:
        raise UserError(f"{path} is a {kind}: it takes no {flags}", hint="leave it out")


def lower(graph: Graph, target: str) -> Lowered:
    """Run the target's passes; UserError where there is no such target."""
    from stdeploy.passes.pipelines import PIPELINES

    start = time.perf_counter()
    passes = PIPELINES.get(target, PIPELINES["default"])
    return Lowered(run_pipeline(graph, passes), target, time.perf_counter() - start)


def refusals(graph: Graph, target: str) -> list[Unsupported]:
    """Everything that `target` cannot express in `graph`, after the passes that run for it."""
    return load_target(target).check(lower(graph, target).graph)


def export(
    source: Source, lowered: Lowered, path: Path, options: Mapping[str, Any] | None = None
) -> Artifact:
    """Write the artefact; UnsupportedError lists all that the target cannot express."""
    refuse_overwriting(source.path, path)
    require_expressible(source, lowered, options)
    return load_target(lowered.target).export(lowered.graph, path, options)


def require_expressible(source: Source, lowered: Lowered, options: Mapping[str, Any] | None = None) -> None:
    """UnsupportedError that lists all that the target cannot express; UserError where an option does not fit the model."""
    found = load_target(lowered.target).check(lowered.graph, options)
    if found:
        able = [t for t in targets() if t != lowered.target and not refusals(source.graph, t)]
        hint = f"--target {able[0]} takes the whole model" if able else None
        count = f"{len(found)} node{'s' if len(found) > 1 else ''}"
        raise UnsupportedError(f"{count} cannot be expressed in {lowered.target}", found, hint=hint)


def refuse_overwriting(source: Path, path: Path) -> None:
    """UserError where `path` is the model that was read."""
    if path.exists() and source.exists() and path.samefile(source):
        raise UserError(f"{path} is the model itself", hint="choose another file with -o")


def read_options(target: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A target's options, the files that they name read: wrong ones are refused before the work, not after it."""
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    if target != "graph":
        read = getattr(load_target(target), "read_options", dict)
    return read(options)


def require_output(
    model: Path, target: str, path: Path, options: Mapping[str, Any] | None = None, *, any_suffix: bool
) -> None:
    """UserError where `path` is the model, has no folder, or a suffix by which nothing could read it back."""
    if not model.is_file():
        raise UserError(f"{model} is a folder" if model.is_dir() else f"{model} does not exist")
    refuse_overwriting(model, path)
    suffix, marker = suffix_of(target, options), marker_of(target)
    if suffix.startswith(".") and path.suffix != suffix and not any_suffix:
        raise UserError(f"{path} does not end in {suffix}, as {target} files do", hint="change -o")
    if marker is not None and not suffix.startswith("."):
        require_replaceable(path, marker)
        _require_parent(path)
    else:
        require_folder(path)


def require_folder(path: Path) -> None:
    """UserError where no file can be at `path`: told before the work, not after it."""
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a file", hint="name a file with -o")
    _require_parent(path)


def _require_parent(path: Path) -> None:
    if not path.absolute().parent.is_dir():
        raise UserError(
            f"cannot write {path}: its folder does not exist", hint="choose a writable path with -o"
        )


def suffix_of(target: str, options: Mapping[str, Any] | None = None) -> str:
    """The suffix of a target's files; the ending of a folder's name has no dot, and is a default only."""
    if target == "graph":
        return GRAPH_SUFFIX
    found = load_target(target)
    formats: Mapping[str, str] = getattr(found, "FORMATS", {})
    return formats.get((options or {}).get("format", ""), found.SUFFIX)


def marker_of(target: str) -> str | None:
    """The file by which a target's folders are known; None for a target that writes one file."""
    return None if target == "graph" else getattr(load_target(target), "MARKER", None)


def exported_graph(source: Source, artefact: Path) -> Graph:
    """The graph that an artefact of `source` was made from; a graph file holds its own."""
    target = target_of(artefact)
    return load_graph(artefact) if target == "graph" else lower(source.graph, target).graph


def target_of(artefact: Path) -> str:
    """The target of an existing artefact, by its suffix or what its folder holds (UserError where there is none)."""
    if not artefact.exists():
        raise UserError(f"{artefact} does not exist")
    if artefact.is_dir():
        return _target_of_folder(artefact)
    if artefact.suffix == GRAPH_SUFFIX:
        return "graph"
    able = [state for state in target_states() if state.problem is None]
    known = {suffix: state.name for state in able for suffix in (state.suffix, *state.other_suffixes)}
    if artefact.suffix not in known:
        listed = ", ".join(sorted(known))
        raise UserError(
            f"{artefact}: no target writes {artefact.suffix or 'such'} files", hint=f"known: {listed}"
        )
    return known[artefact.suffix]


def _target_of_folder(folder: Path) -> str:
    for state in target_states():
        marker = marker_of(state.name) if state.problem is None else None
        if marker is not None and (folder / marker).is_file():
            return state.name
    raise UserError(f"{folder} is a folder, and no target's", hint="name the file that stdeploy export wrote")


def check(
    source: Source,
    exported: Graph,
    candidate: Executor,
    inputs: Array,
    labels: Array | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Compare one executor of an artefact with the source (stdeploy.verify)."""
    return check_all(source, exported, [candidate], inputs, labels, progress)[0]


def check_all(
    source: Source,
    exported: Graph,
    candidates: Sequence[Executor],
    inputs: Array,
    labels: Array | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Report]:
    """Compare every executor of an artefact with the source, which runs once.

    ParityError where the artefact is of another network, UserError where it does not say its neurons.
    """
    for candidate in candidates:
        require_same_network(source, exported, candidate)
    return compare_all(
        source.reference,
        candidates,
        source.graph,
        inputs,
        exported=exported,
        labels=labels,
        progress=progress,
    )


def require_same_network(source: Source, exported: Graph, candidate: Executor) -> None:
    """The neuron layers that a file says it holds have to be those of the graph it was made from."""
    file: Any = getattr(candidate, "file", None)
    if file is None:
        return
    if not file.shapes:
        raise UserError(
            f"{file.path} does not say which of its values are spikes",
            hint="only files written by stdeploy export carry that",
        )
    wanted = {node.name: node.value.shape for node in exported.neurons}
    reasons = [] if file.steps == exported.steps else [f"it runs {file.steps} steps, not {exported.steps}"]
    for name in sorted(wanted.keys() | file.shapes.keys()):
        held, needed = (_size(shapes.get(name)) for shapes in (file.shapes, wanted))
        reasons += [] if held == needed else [f"{name}: {held} in the file, {needed} in the model"]
    if reasons:
        rest = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        raise ParityError(
            f"{file.path} is not an export of {source.path.name}: {'; '.join(reasons[:3])}{rest}",
            hint=f"it was made from {file.metadata.get('source', 'an unknown model')}, by stdeploy "
            f"{file.metadata.get('stdeploy_version', 'of unknown version')}",
        )


def _size(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "scalar"
