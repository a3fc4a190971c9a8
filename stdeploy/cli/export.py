"""`stdeploy export`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stdeploy.cli.options import chosen_for, common_options, data_option, model_options, target_options

if TYPE_CHECKING:
    from stdeploy.approximate import Approximation
    from stdeploy.cli.console import Talk
    from stdeploy.graph import Graph
    from stdeploy.graph.weight import Array
    from stdeploy.parity import Report
    from stdeploy.workflow import Lowered, Source, SourceOptions

EPILOG = """\b
Examples:
  stdeploy export pruned.pt --target onnx -o model.onnx
  stdeploy export pruned.pt --target onnx --weights int8 --data images.npz
  stdeploy export pruned.pt --target nir --data images.npz -n 256
  stdeploy export pruned.pt --target lava -o out_lava/
  stdeploy export pruned.pt --target event --data images.npz
  stdeploy export pruned.pt --target nir --dialect compact --reader stdeploy
  stdeploy export weights.pth --model mypackage.models:spikformer --input 3x32x32 --target onnx
  stdeploy export pruned.pt --target graph -o pruned.stg    (then: stdeploy export pruned.stg --target nir)
"""
COMPILING = "compiling the event engine's kernels, once per machine and version: up to a minute"
_NOTES = 8
"""Notes of the passes that are printed without -v."""


@click.command(epilog=EPILOG, short_help="Write a file for a target and prove it spike for spike.")
@click.argument("model_file", metavar="MODEL", type=click.Path(path_type=Path))
@click.option(
    "--target", required=True, help="onnx, nir, lava, event, graph, or a plug-in's name (stdeploy targets)."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File or folder to write (default: MODEL's name here).",
)
@click.option("--no-verify", is_flag=True, help="Do not run the artefact against the model.")
@data_option
@click.option(
    "-n", "--samples", type=click.IntRange(min=1), help="Samples to verify on (default 16; all of --data)."
)
@click.option(
    "--reader",
    "readers",
    multiple=True,
    help="Software to verify with, repeatable: openvino, snntorch, spikingjelly, norse, ...",
)
@click.option("--save-graph", type=click.Path(path_type=Path), help="Also write the traced graph (.stg).")
@target_options
@model_options
@common_options
def command(
    model_file: Path,
    target: str,
    output: Path | None,
    no_verify: bool,
    data: Path | None,
    samples: int | None,
    readers: tuple[str, ...],
    save_graph: Path | None,
    talk: Talk,
    source_options: SourceOptions,
    **options: Any,
) -> None:
    """Compile MODEL (a checkpoint, a .stg graph or a .nir file) for a target, and prove that it spikes alike."""
    from stdeploy import rates, running, workflow
    from stdeploy.cli.console import size_text
    from stdeploy.graph import file as graph_file
    from stdeploy.verify import require

    wanted = chosen_for(target, options)
    path = output or Path(model_file.stem + workflow.suffix_of(target, wanted))
    workflow.require_output(model_file, target, path, wanted, any_suffix=no_verify and target != "graph")
    if not no_verify and target != "graph":
        running.require_readers(target, readers, wanted)
    wanted = workflow.read_options(target, wanted)
    source = workflow.open_source(model_file, source_options)
    describe(talk, source)
    if save_graph is not None:
        graph_file.save_graph(source.graph, save_graph)
    if target == "graph":
        graph_file.save_graph(source.graph, path)
        talk.phase("export", f"{path}  {size_text(path.stat().st_size)}")
        talk.document(
            {"schema_version": 1, "path": str(path), "target": target, "size_bytes": path.stat().st_size}
        )
        return
    measured = data is not None and rates.wants_rates(target)
    chosen = None if no_verify and not measured else inputs_for(talk, source.graph, data, samples)
    lowered = workflow.lower(source.graph, target)
    if chosen is not None and data is not None and measured:
        workflow.require_expressible(source, lowered, wanted)
        wanted |= rates.rate_option(source, lowered.graph, chosen[0], data.name)
    describe_passes(talk, lowered)
    start = time.perf_counter()
    artifact = workflow.export(source, lowered, path, wanted)
    seconds = time.perf_counter() - start
    was = f" (was {size_text(model_file.stat().st_size)})"
    talk.phase(
        "export", "\n".join([f"{path}  {size_text(artifact.size_bytes)}{was}", *artifact.notes]), seconds
    )
    found = Findings()
    if chosen is not None and not no_verify:
        found = verify(talk, source, lowered.graph, path, chosen, readers)
    talk.document(
        {
            "schema_version": 1,
            "path": str(path),
            "target": target,
            "size_bytes": artifact.size_bytes,
            "trace_s": source.seconds,
            "passes_s": lowered.seconds,
            "export_s": seconds,
            "notes": [*lowered.result.notes, *artifact.notes],
            **found.to_dict(),
        }
    )
    require(*found.reports, hint=f"the file {path} was written but must not be used")
    if no_verify:
        talk.log(f"not verified; stdeploy verify {model_file} {path} does it")


def describe(talk: Talk, source: Source) -> None:
    """The line about the trace."""
    graph = source.graph
    kind = graph.metadata.get("model", "graph")
    text = f"{kind}, {len(graph)} nodes, {len(graph.neurons)} neuron layers, T={graph.steps}"
    notes = source.opened.notes if source.opened is not None else ()
    talk.phase("trace", "\n".join([text, *notes]), source.seconds)


def describe_passes(talk: Talk, lowered: Lowered) -> None:
    """The lines about the passes."""
    notes = list(lowered.result.notes)
    shown = notes if talk.verbose else notes[:_NOTES]
    if len(shown) < len(notes):
        shown.append(f"... {len(notes) - len(shown)} more (-v)")
    graph = lowered.graph
    text = f"{len(graph)} nodes, {len(graph.neurons)} neuron layers left"
    talk.phase("passes", "\n".join([text, *shown]), lowered.seconds)


def inputs_for(
    talk: Talk, graph: Graph, data: Path | None, samples: int | None, what: str = "verifying"
) -> tuple[Array, Array | None]:
    """Inputs and labels to run on; read before anything is written, so that wrong data leaves nothing."""
    from stdeploy.data import load_data, random_data

    if data is not None:
        return load_data(data, graph, samples)
    talk.log(f"no --data: {what} on standard normal noise (fixed seed)")
    return random_data(graph, samples or 16), None


def verify(
    talk: Talk,
    source: Source,
    exported: Graph,
    path: Path,
    data: tuple[Array, Array | None],
    readers: tuple[str, ...],
) -> Findings:
    """Run every executor of the artefact against the source; a line each.

    What an approximate artefact changes is measured instead (stdeploy.approximate).
    """
    from stdeploy import approximate, running, workflow
    from stdeploy.verify import batch_axis

    inputs, labels = data
    candidates = running.executors(path, readers)
    with talk.patience(COMPILING):
        running.compile_first(candidates)
    start = time.perf_counter()
    with talk.progress(f"verify {path}", inputs.shape[batch_axis(source.graph)]) as progress:
        if any(approximate.approximation_of(c) for c in candidates):
            for candidate in candidates:
                workflow.require_same_network(source, exported, candidate)
            measured = approximate.measure_all(exported, candidates, inputs, labels, progress)
            found = Findings(approximations=tuple(measured))
        else:
            checked = workflow.check_all(source, exported, candidates, inputs, labels, progress)
            found = Findings(tuple(checked))
    seconds = time.perf_counter() - start
    lines = [r.summary() for r in found.reports] + [a.summary() for a in found.approximations]
    for i, line in enumerate(lines, 1):
        talk.phase("verify", line, seconds if i == len(lines) else None)
    for approximation in found.approximations:
        talk.result(approximation.render())
    for report in found.reports:
        if report.mismatches or report.selection_mismatches or not report.ok or talk.verbose:
            talk.result(report.render())
    for warning in dict.fromkeys(w for report in found.reports for w in report.warnings):
        talk.log(f"warning: {warning}")
    return found


@dataclass(frozen=True)
class Findings:
    """What running an artefact showed: proofs, or for an approximate one the measured effects."""

    reports: tuple[Report, ...] = ()
    approximations: tuple[Approximation, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Entries of the JSON document."""
        effects = (
            {"approximations": [a.to_dict() for a in self.approximations]} if self.approximations else {}
        )
        return {"verify": [report.to_dict() for report in self.reports], **effects}
