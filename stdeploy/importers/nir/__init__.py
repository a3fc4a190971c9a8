"""NIR files as graphs: stdeploy's own, and hand-written ones of the standard primitives.

A file of stdeploy says its steps, dt, input and output, and which nodes are which neuron layer; its auxiliary
neurons (attention, pooling) stay neurons of the graph. What docs/nir.md writes, this reads back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nir
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
    return build(document, timing_of(document, dt, steps, layout))[1]


def build(document: Document, timing: Timing) -> tuple[Network, Graph]:
    """A document's network as the file has it, and its graph; errors as of `import_nir`."""
    with _named(document.path):
        network = flatten(document.network)
        refused = refusals(network)
        if refused:
            count = f"{len(refused)} part{'s' if len(refused) > 1 else ''}"
            raise UnsupportedError(f"{count} of {document.path} cannot be expressed in a graph", refused)
        return network, validate(assemble(document, network, timing))


@contextlib.contextmanager
def _named(path: Path) -> Generator[None]:
    """Errors that name the file."""
    try:
        yield
    except GraphError as error:
        raise UserError(f"{path}: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error.message}", hint=error.hint) from error


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


@dataclass(frozen=True, eq=False)
class Survey:
    """What a file holds, whether a graph can hold it or not.

    `graph` hands through what is in `refused`; None where no order of the nodes, or no shape behind one that
    is refused, is known. `timed`: whether its tau are in true steps.
    """

    document: Document
    network: Network
    refused: list[Unsupported]
    graph: Graph | None
    timed: bool


def survey(
    path: Path | str, *, dt: float | None = None, steps: int | None = None, layout: str | None = None
) -> Survey:
    """Look into a NIR file; `dt`, `steps` and `layout` may be missing. UserError where the file is damaged."""
    document = read_document(path)
    timed = document.contract is not None or dt is not None
    if document.contract is None:
        taus = [float(np.min(node.tau)) for node in _lifs(document.network) if np.size(node.tau)]
        dt, steps = dt or min([tau for tau in taus if tau > 0], default=1.0), steps or 1
    timing = timing_of(document, dt, steps, layout)
    with _named(document.path):
        network = flatten(document.network)
        refused = refusals(network)
        return Survey(document, network, refused, _sketch(document, network, timing, refused), timed)


def _sketch(document: Document, network: Network, timing: Timing, refused: list[Unsupported]) -> Graph | None:
    if network.loops or len(network.inputs) != 1:
        return None
    try:
        return assemble(document, network, timing, frozenset(item.where for item in refused))
    except (GraphError, UserError):
        if refused:  # a shape that follows from what has no form
            return None
        raise


def _lifs(graph: Any) -> Iterator[Any]:
    for node in graph.nodes.values():
        if isinstance(node, nir.NIRGraph):
            yield from _lifs(node)
        elif isinstance(node, nir.LIF):
            yield node
