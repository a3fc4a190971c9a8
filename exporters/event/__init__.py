"""Event: one file that the event-driven CPU engine maps and runs (stdeploy.runtime.event); docs/event.md.

Writing it needs no numba; running it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stdeploy import __version__
from stdeploy.errors import Unsupported, UnsupportedError
from stdeploy.exporters.artifact import Artifact
from stdeploy.exporters.event.container import SUFFIX, Sev
from stdeploy.exporters.event.lower import lower, refusal
from stdeploy.exporters.event.plan import Options, plan
from stdeploy.graph.graph import Graph

__all__ = ["SUFFIX", "TAKES_RATES", "check", "export", "read_options"]

TAKES_RATES = True


def read_options(options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options, the plan's file read; UserError where one is unknown or the file holds no plan."""
    parsed = Options.parse(options)
    return dict(options or {}) if parsed.plan is None else {**(options or {}), "plan": parsed.fixed()}


def check(graph: Graph, options: Mapping[str, Any] | None = None) -> list[Unsupported]:
    """Everything in `graph` that the engine does not run; UserError for an unknown option, or a plan of other layers."""
    parsed = Options.parse(options)
    found = [
        Unsupported(node.source or node.name, node.kind, reason)
        for node in graph
        if (reason := refusal(graph, node))
    ]
    if len(graph.inputs) != 1:
        found.append(Unsupported("", "Input", f"the engine takes one input, not {len(graph.inputs)}"))
    if not found and parsed.plan is not None:
        plan(graph, parsed)
    return found


def export(graph: Graph, path: Path | str, options: Mapping[str, Any] | None = None) -> Artifact:
    """Write `graph` as one .sev file, which appears whole or not at all.

    Options: see plan.Options. Raises UnsupportedError listing every offender, UserError where an option is wrong or the
    file cannot be written.
    """
    options = read_options(options)
    refused = check(graph, options)
    if refused:
        raise UnsupportedError(f"{len(refused)} parts of the model cannot be run by the engine", refused)
    chosen = plan(graph, Options.parse(options))
    program, arrays = lower(graph, chosen.kernels)
    known = {key: value for key, value in graph.metadata.items() if value is not None}
    header = {"metadata": {**known, "stdeploy_version": __version__}, **program, "plan": chosen.to_dict()}
    size = Sev(header, arrays).write(path)
    made = f"{len(program['stages'])} stages, T = {graph.steps}"
    return Artifact(Path(path), "event", size, (made, *chosen.notes), {"kernels": chosen.kernels})
