"""`stdeploy verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stdeploy.cli.options import common_options, data_option, model_options

if TYPE_CHECKING:
    from stdeploy.cli.console import Talk
    from stdeploy.workflow import SourceOptions

EPILOG = """\b
Examples:
  stdeploy verify pruned.pt model.onnx --data images.npz -n 256
  stdeploy verify pruned.pt model.nir --data images.npz --reader snntorch --reader spikingjelly
  stdeploy verify pruned.stg model.onnx --json report.json
\b
Each neuron layer is compared on the model's own spikes (teacher forcing). A spike that differs is explained
where its exact membrane lies within float32 rounding of the threshold; anything else fails (exit 1).
"""


@click.command(epilog=EPILOG, short_help="Compare a written file with its model, spike for spike.")
@click.argument("model_file", metavar="MODEL", type=click.Path(path_type=Path))
@click.argument("artefact", metavar="ARTEFACT", type=click.Path(path_type=Path))
@data_option
@click.option(
    "-n", "--samples", type=click.IntRange(min=1), help="Samples to compare (default 16; all of --data)."
)
@click.option(
    "--reader",
    "readers",
    multiple=True,
    help="Software to run it, repeatable: openvino, snntorch, spikingjelly, norse, ...",
)
@model_options
@common_options
def command(
    model_file: Path,
    artefact: Path,
    data: Path | None,
    samples: int | None,
    readers: tuple[str, ...],
    talk: Talk,
    source_options: SourceOptions,
) -> None:
    """Compare ARTEFACT with MODEL, spike for spike."""
    from stdeploy import running, workflow
    from stdeploy.cli import export
    from stdeploy.verify import require

    # a wrong file or reader is refused before the model is traced
    running.require_readers(running.runs_as(artefact), readers)
    source = workflow.open_source(model_file, source_options)
    exported = workflow.exported_graph(source, artefact)
    chosen = export.inputs_for(talk, source.graph, data, samples)
    found = export.verify(talk, source, exported, artefact, chosen, readers)
    talk.document({"schema_version": 1, **found.to_dict()})
    require(*found.reports, hint=f"do not use {artefact}; export it again with this version")
