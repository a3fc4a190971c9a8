"""Targets: each a package with `check(graph, options)` and `export(graph, path, options)`."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from stdeploy.errors import Unsupported, UserError
from stdeploy.exporters.artifact import Artifact
from stdeploy.graph import Graph

BUILT_IN = {
    "onnx": "stdeploy.exporters.onnx",
    "nir": "stdeploy.exporters.nir",
    "lava": "stdeploy.exporters.lava",
    "event": "stdeploy.exporters.event",
}
"""Target name to module, imported only when asked for."""

GRAPH = "graph"
"""What `export` writes without an exporter: the traced graph, a .stg file."""

ENTRY_POINT_GROUP = "stdeploy.exporters"


class Target(Protocol):
    """The two functions of a back end, and the suffix of its files.

    A target that writes a folder has `MARKER`, a file that its folders and no others hold. One that has an option
    `format` has `FORMATS`: the suffix of each that is not the default. One with a true `TAKES_RATES` has an option
    `rates` (stdeploy.exporters.event.plan.Rates): how much of every layer's input is not zero, on the user's data.
    One whose options name files has `read_options(options)`, the options with those files read, or a UserError: it is
    asked before the model is traced.
    """

    SUFFIX: str

    def check(self, graph: Graph, options: Mapping[str, Any] | None = None) -> list[Unsupported]:
        """Everything in `graph` that the target cannot express, all at once."""
        ...

    def export(self, graph: Graph, path: Path, options: Mapping[str, Any] | None = None) -> Artifact:
        """Write `graph`; the file appears whole or not at all. UnsupportedError where `check` finds anything."""
        ...


def targets() -> dict[str, str]:
    """Every known target with the module that implements it; third parties register an entry point."""
    found = {p.name: p.value for p in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}
    return {**found, **BUILT_IN}


def load_target(name: str) -> Target:
    """The target called `name`; UserError that lists the known ones where there is none."""
    known = targets()
    if name not in known:
        listed = sorted([*known, GRAPH])
        close = difflib.get_close_matches(name, listed, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known targets: {', '.join(listed)}"
        raise UserError(f"unknown target {name!r}", hint=hint)
    return cast(Target, importlib.import_module(known[name]))
