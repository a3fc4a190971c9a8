"""Lava: core processes (Sparse, DelaySparse, LIFReset, one attention process) in a folder that runs by itself.

Lowering: `lower.py`; timing: `signal.py` and `plan.py`. Lava is archived upstream; its CPU simulation is the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stdeploy.errors import Unsupported, UnsupportedError
from stdeploy.exporters.artifact import Artifact
from stdeploy.exporters.lava.emit import write
from stdeploy.exporters.lava.layout import NETWORK
from stdeploy.exporters.lava.lower import Lowering
from stdeploy.exporters.lava.netx import APPROXIMATE, check_netx, write_netx
from stdeploy.exporters.lava.netx import SUFFIX as NETX_SUFFIX
from stdeploy.exporters.lava.options import Options
from stdeploy.graph.graph import Graph

SUFFIX = "_lava"
"""Default ending of the artefact's folder; it may have any name."""

MARKER = NETWORK
"""The file by which a folder is known as this target's."""

FORMATS = {"netx": NETX_SUFFIX}
"""Suffix of the file that an option `format` makes it write instead."""


def check(graph: Graph, options: Mapping[str, Any] | None = None) -> list[Unsupported]:
    """Everything in `graph` that cannot be written as Lava processes; UserError for an unknown option."""
    parsed = Options.parse(options)
    if parsed.format == "netx":
        return check_netx(graph)
    return Lowering(graph, parsed).run().refused


def export(graph: Graph, path: Path | str, options: Mapping[str, Any] | None = None) -> Artifact:
    """Write `graph` as a folder (or a netx file), which appears whole or not at all.

    Options: see options.Options. Raises UnsupportedError listing every offender, UserError where an option is wrong
    or the folder cannot be written.
    """
    parsed = Options.parse(options)
    if parsed.format == "netx":
        return _export_netx(graph, Path(path))
    low = Lowering(graph, parsed).run()
    if low.refused:
        raise UnsupportedError(
            f"{len(low.refused)} parts of the model cannot be written for Lava", low.refused
        )
    size = write(low, Path(path))
    counts = low.plan.counts()
    size_note = (
        f"{counts['processes']} Lava processes, {counts['synapses']:,} synapses, "
        f"output {counts['latency_steps']} steps behind the input, T = {graph.steps}"
    )
    run_note = "runs in Lava's CPU simulation: python run.py inputs.npz result.npz (lava-nc, numpy, scipy)"
    return Artifact(Path(path), "lava", size, (size_note, run_note), counts)


def _export_netx(graph: Graph, path: Path) -> Artifact:
    refused = check_netx(graph)
    if refused:
        raise UnsupportedError(f"{len(refused)} parts of the model cannot be written as a netx file", refused)
    size = write_netx(graph, path)
    note = f"netx: lava-dl's Network(path, reset_interval={graph.steps}, reset_offset=1)"
    return Artifact(path, "lava", size, (note,), {"approximate": APPROXIMATE})
