"""`stdeploy inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stdeploy.cli.options import Output, common_options, model_options
from stdeploy.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from stdeploy.cli.console import Talk
    from stdeploy.summary import Layer, NeuronLayer, Summary
    from stdeploy.workflow import Source, SourceOptions

EPILOG = """\b
Examples:
  stdeploy inspect pruned.pt
  stdeploy inspect pruned.pt --graph
  stdeploy inspect weights.pth --model mypackage.models:spikformer --input 3x32x32
  stdeploy inspect model.nir --svg model.svg
  stdeploy inspect model.sev --json plan.json
"""
_WEIGHTED = ("Linear", "Conv", "Affine")


@click.command(epilog=EPILOG, short_help="Show layers, weights, neurons, and which targets take them.")
@click.argument("model_file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--graph", "as_text", is_flag=True, help="The traced graph instead, a line per node.")
@click.option(
    "--all", "everything", is_flag=True, help="Every node, not only those with weights or the largest."
)
@click.option(
    "--svg",
    type=Output(".svg"),
    help="Also draw the network's modules into this file (not for .onnx and .sev).",
)
@model_options
@common_options
def command(
    model_file: Path,
    everything: bool,
    as_text: bool,
    svg: Path | None,
    talk: Talk,
    source_options: SourceOptions,
) -> None:
    """Show what FILE holds: layers, weights, neurons, what folds, and which targets take it."""
    from stdeploy import workflow
    from stdeploy.graph.printer import print_graph

    if model_file.is_dir():
        raise UserError(
            f"{model_file} is a folder",
            hint="inspect the model; a Lava folder's network.json holds its processes",
        )
    if model_file.suffix == ".nir" and not as_text:
        from stdeploy.cli.inspect_nir import inspect_nir

        inspect_nir(talk, model_file, source_options, everything, svg)
        return
    if model_file.suffix in (".onnx", ".sev") and (svg is not None or as_text):
        flag, kind = "--graph" if as_text else "--svg", model_file.suffix[1:].upper()
        raise UserError(f"{flag} does not take an {kind} file", hint="give the model that it was made from")
    if model_file.suffix == ".sev":
        from stdeploy.cli.inspect_event import inspect_event

        inspect_event(talk, model_file)
        return
    if model_file.suffix == ".onnx":
        from stdeploy.artefacts import describe

        facts = describe(model_file)
        for name, fact in facts.items():
            talk.result(f"{name:<16} {fact}")
        talk.document({"schema_version": 1, **facts})
        return
    source = workflow.open_source(model_file, source_options)
    if svg is not None:
        draw(talk, source, svg)
    if as_text:
        text = print_graph(source.graph)
        talk.text(text)
        talk.document({"schema_version": 1, "graph": text.splitlines()})
        return
    show(talk, source, everything)


def draw(talk: Talk, source: Source, path: Path) -> None:
    """The traced graph as a picture."""
    from stdeploy import workflow
    from stdeploy.drawing import save
    from stdeploy.drawing.blocks import diagram

    workflow.refuse_overwriting(source.path, path)
    graph = source.graph
    facts = [str(graph.metadata.get("model") or "graph"), f"T = {graph.steps}", f"{len(graph)} nodes"]
    save(diagram(graph), path, source.path.name, [", ".join(facts)])
    talk.log(f"drawn: {path}")


def show(talk: Talk, source: Source, everything: bool) -> None:
    """Tables of layers and neurons, then what folds, then the targets."""
    from stdeploy import workflow
    from stdeploy.exporters import targets
    from stdeploy.summary import summarise

    graph = source.graph
    summary = summarise(graph)
    folded = workflow.lower(graph, "inspect").result
    refused = {target: workflow.refusals(graph, target) for target in targets()}
    head = [source.path.name, str(graph.metadata.get("model", "")), f"T={graph.steps}"]
    compression = (source.opened.compression if source.opened is not None else None) or {}
    if compression:
        head.append(" ".join(f"{k}={compression[k]}" for k in ("method", "sparsity") if k in compression))
    if "tau_levels" in graph.metadata:
        head.append(f"tau of at most {graph.metadata['tau_levels']['levels']} levels a layer")
    talk.result("  ".join(part for part in head if part))
    talk.result(layer_table(summary, everything))
    talk.result(neuron_table(summary.neurons))
    share = summary.nnz / summary.params if summary.params else 0.0
    talk.result(
        f"total {summary.params:,} parameters, {summary.nnz:,} nonzero ({share:.1%}), "
        f"{len(summary.neurons)} neuron layers"
    )
    talk.result("\n".join(["folds exactly:", *(f"  {note}" for note in folded.notes)]))
    for target, items in refused.items():
        talk.result(f"export {target}: yes" if not items else f"export {target}: no, {len(items)} nodes")
        for item in items:
            talk.result(f"  {item}")
    talk.document(
        {
            **summary.to_dict(),
            "file": str(source.path),
            "metadata": dict(graph.metadata),
            "compression": dict(compression),
            "folds": list(folded.notes),
            "targets": {
                target: {"supported": not items, "reasons": [str(item) for item in items]}
                for target, items in refused.items()
            },
        }
    )


def layer_table(summary: Summary, everything: bool) -> Table:
    """Nodes with weights (or all), their output, parameters and kept dimensions."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("layer")
    table.add_column("op")
    for title in ("out", "params", "nnz", "density", "rows kept", "columns kept"):
        table.add_column(title, justify="right")
    for layer in summary.layers:
        if everything or layer.op in _WEIGHTED:
            table.add_row(*layer_row(layer, summary.steps))
    return table


def layer_row(layer: Layer, steps: int) -> list[str]:
    """One row of the layer table; the output's shape starts with T where it changes over time."""
    shape = "x".join(str(n) for n in ((steps, *layer.shape) if layer.time == "step" else layer.shape))
    density = layer.density
    return [
        layer.name,
        layer.op,
        shape,
        f"{layer.params:,}" if layer.params else "",
        f"{layer.nnz:,}" if layer.params else "",
        "" if density is None else f"{density:.2f}",
        "" if layer.rows is None else f"{layer.rows_kept}/{layer.rows}",
        "" if layer.columns is None else f"{layer.columns_kept}/{layer.columns}",
    ]


def neuron_table(neurons: tuple[NeuronLayer, ...]) -> Table:
    """Neuron layers with the ranges of their parameters."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("neuron layer", "kind", "shape", "tau", "threshold", "reset", "decay input"):
        table.add_column(title)
    for n in neurons:
        table.add_row(
            n.name,
            n.kind,
            "x".join(str(d) for d in n.shape),
            "none (IF)" if n.tau is None else span(n.tau),
            span(n.v_threshold),
            "soft" if n.v_reset is None else span(n.v_reset),
            "yes" if n.decay_input else "no",
        )
    return table


def span(ends: tuple[float, float]) -> str:
    """`2` or `1.8..2.4`."""
    low, high = ends
    return f"{low:.4g}" if low == high else f"{low:.4g}..{high:.4g}"
