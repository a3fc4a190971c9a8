"""`stdeploy inspect` of a NIR file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from stdeploy.cli.console import Talk
    from stdeploy.importers.nir import Survey
    from stdeploy.nir_summary import NirSummary
    from stdeploy.workflow import SourceOptions

_LARGEST = 8
"""Nodes listed by size without --all."""


def inspect_nir(talk: Talk, path: Path, options: SourceOptions, everything: bool, svg: Path | None) -> None:
    """Facts about a file, its largest nodes, and whether it can be a model; with `svg` a picture."""
    from stdeploy import workflow
    from stdeploy.importers.nir import survey
    from stdeploy.nir_summary import summarise_nir

    found = survey(path, **workflow.nir_options(path, options))
    summary = summarise_nir(found)
    for name, fact in facts(summary):
        talk.result(f"{name:<9} {fact}")
    talk.result(node_table(summary, everything))
    if summary.refused:
        talk.result(f"as a model: no, {len(summary.refused)} parts cannot be expressed")
        for item in summary.refused:
            talk.result(f"  {item}")
    else:
        need = "" if summary.contract is not None else ", with --dt and --steps"
        talk.result(f"as a model: yes{need}")
    talk.document(summary.to_dict())
    if svg is not None:
        draw(found, summary, svg)
        talk.log(f"drawn: {svg}")


def draw(found: Survey, summary: NirSummary, path: Path) -> None:
    """The network as a picture; UnsupportedError where its nodes have no order or their shapes are not known."""
    from stdeploy.drawing import save
    from stdeploy.drawing.blocks import diagram
    from stdeploy.errors import UnsupportedError

    document = found.document
    if found.graph is None:
        raise UnsupportedError(f"{document.path} cannot be drawn", found.refused)
    kinds = {item.where: item.what for item in found.refused}
    roles = {} if document.contract is None else document.contract.roles
    shown = [
        f"{name}: {fact}" for name, fact in facts(summary) if name in ("runs", "nodes", "synapses", "depth")
    ]
    save(diagram(found.graph, roles, kinds), path, document.path.name, shown)


def facts(s: NirSummary) -> list[tuple[str, str]]:
    """Named lines about the whole file."""
    from stdeploy.cli.console import size_text

    arrays = s.size_bytes - s.structure_bytes
    out = [
        ("file", f"{s.file}  {size_text(s.size_bytes)}: arrays {size_text(arrays)}, the rest structure"),
        ("format", f"NIR, written by nir {s.nir_version}{_dialect(s.contract)}"),
        *_contract(s.contract),
        ("nodes", f"{sum(s.types.values())}: {_counts(s.types)}"),
        ("edges", f"{s.edges:,}"),
        ("neurons", f"{sum(s.neurons.values()):,}: {_counts(s.neurons)}"),
    ]
    if s.synapses is not None:
        out.append(("synapses", f"{s.synapses:,} nonzero connections, and {s.pool_connections:,} of pools"))
    out.append(("weights", f"{s.weights:,} stored, {s.nonzero_weights:,} nonzero"))
    if s.depth is not None:
        d = s.depth
        path = f"from input to output {d.layers} layers and {d.units} memoryless hops"
        out.append(("depth", f"at most {d.units_between_layers} memoryless hops between two layers; {path}"))
    return out


def _dialect(contract: dict[str, Any] | None) -> str:
    if contract is None:
        return ""
    return f", stdeploy {contract.get('stdeploy_version')}, dialect {contract.get('dialect')}"


def _contract(contract: dict[str, Any] | None) -> list[tuple[str, str]]:
    if contract is None:
        return [("runs", "the file does not say how many steps, nor how long one is")]
    source, sink = contract["input"], contract["output"]
    made = f"{contract.get('source', 'unknown')}, sha256 {str(contract.get('source_sha256', 'unknown'))[:16]}"
    shapes = ["x".join(str(n) for n in end["shape"]) for end in (source, sink)]
    return [
        ("made from", made),
        ("runs", f"T = {contract['steps']}, dt = {contract['dt']:g}"),
        ("input", f"{shapes[0]}, layout {source['layout']}: {source.get('drive', 'as the layout says')}"),
        ("output", f"{sink['label']} {shapes[1]}, over the steps: {sink['over_steps']}"),
    ]


def _counts(items: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in items.items()) or "none"


def node_table(s: NirSummary, everything: bool) -> Table:
    """Nodes by size on disk, the largest first."""
    from rich.table import Table

    from stdeploy.cli.console import size_text

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("node", "type", "role"):
        table.add_column(title)
    for title in ("neurons", "weights", "nonzero", "bytes", "of the file"):
        table.add_column(title, justify="right")
    nodes = sorted(s.nodes, key=lambda n: -n.size_bytes)
    for n in nodes if everything else nodes[:_LARGEST]:
        counts = (f"{k:,}" if k else "" for k in (n.neurons, n.weights, n.nonzero_weights))
        share = f"{n.size_bytes / s.size_bytes:.1%}"
        table.add_row(n.name, n.type, n.role, *counts, size_text(n.size_bytes), share)
    if not everything and len(nodes) > _LARGEST:
        table.add_row(f"... {len(nodes) - _LARGEST} more (--all)")
    return table
