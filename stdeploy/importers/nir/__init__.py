"""NIR files as graphs: stdeploy's own, and hand-written ones of the standard primitives.

A file of stdeploy says its steps, dt, input and output, and which nodes are which neuron layer; its auxiliary
neurons (attention, pooling) stay neurons of the graph. What docs/nir.md writes, this reads back.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np

from stdeploy.errors import Unsupported, UnsupportedError, UserError
from stdeploy.graph.graph import Graph, GraphError
from stdeploy.graph.validate import validate
from stdeploy.importers.nir.assemble import Layout, Timing, assemble
from stdeploy.importers.nir.document import Document, read_document
from stdeploy.importers.nir.network import Network, flatten, structure
from stdeploy.importers.nir.nodes import refusal


def import_nir(
    path: Path | str, *, dt: float | None = None, steps: int | None = None, layout: str | None = None
) -> Graph:
    """A NIR file as a graph, neurons under their layer's name.

    `dt` (in the file's unit of time), `steps` and `layout` (of the input: B, BT, TB; BT by default) are needed
    for files that stdeploy did not write, and refused for those that it did. Raises UserError where the file or
    an option is wrong, UnsupportedError with every node that a graph cannot hold.
    """
    document = read_document(path)
    timing = timing_of(document, dt, steps, layout)
    try:
        network = flatten(document.network)
        refused = refusals(network)
        if refused:
            count = f"{len(refused)} part{'s' if len(refused) > 1 else ''}"
            raise UnsupportedError(f"{count} of {document.path} cannot be expressed in a graph", refused)
        return validate(assemble(document, network, timing))
    except GraphError as error:
        raise UserError(f"{document.path}: {error}") from error
    except UserError as error:
        raise UserError(f"{document.path}: {error.message}", hint=error.hint) from error


def timing_of(document: Document, dt: float | None, steps: int | None, layout: str | None) -> Timing:
    """Steps, dt and layout from the file's contract or, where it has none, from the user; UserError else."""
    path, contract = document.path, document.contract
    options = {"--dt": dt, "--steps": steps, "--layout": layout}
    given = [flag for flag, value in options.items() if value is not None]
    if contract is not None:
        if given:
            raise UserError(
                f"{path} says itself how it runs: it takes no {', '.join(given)}", hint="leave it out"
            )
        return Timing(contract.steps, contract.dt, contract.input["layout"])
    if dt is None or steps is None:
        missing = [flag for flag in ("--dt", "--steps") if options[flag] is None]
        raise UserError(
            f"{path} does not say how many steps it runs and how long one is: give {' and '.join(missing)}",
            hint="dt in the unit of the file's tau, as in --dt 1e-4 --steps 16",
        )
    if not (np.isfinite(dt) and dt > 0) or steps < 1:
        raise UserError(f"dt = {dt:g} and steps = {steps} have to be positive")
    return Timing(steps, dt, cast(Layout, layout or "BT"))


def refusals(network: Network) -> list[Unsupported]:
    """Everything in a network that a graph cannot hold."""
    reasons = {name: refusal(node) for name, node in network.nodes.items()}
    return structure(network) + [
        Unsupported(name, type(network.nodes[name]).__name__, reason)
        for name, reason in reasons.items()
        if reason is not None
    ]
