"""`stdeploy compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from stdeploy.cli.options import common_options

EPILOG = """\b
Examples:
  stdeploy compress model.pt --method l1p --sparsity 0.9 -o pruned.pt
  stdeploy compress model.pt --method dsp --sparsity 0.75 --neuron keep -o pruned.pt
\b
The result is not fine-tuned: train it further (stdeploy.compress.finetune) before you judge its accuracy.
"""


@click.command(epilog=EPILOG)
@click.argument("model_file", metavar="MODEL", type=click.Path(path_type=Path))
@click.option(
    "--method", type=click.Choice(["l1p", "dsp"]), required=True, help="L1P: weights. DSP: dimensions."
)
@click.option(
    "--sparsity", type=click.FloatRange(0, 1, max_open=True), required=True, help="Share to prune, 0 to 1."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Checkpoint to write.")
@click.option(
    "--neuron",
    type=click.Choice(["slif", "keep"]),
    default="slif",
    show_default=True,
    help="Neurons afterwards.",
)
@common_options
def command(
    model_file: Path,
    method: str,
    sparsity: float,
    output: Path,
    neuron: Literal["slif", "keep"],
    json_file: str | None,
    verbose: int,
    quiet: bool,
    traceback: bool,
) -> None:
    """Prune MODEL with L1P or DSP and replace its neurons by sLIF (with the LIF's own parameters)."""
    from stdeploy.cli.console import Talk, size_text
    from stdeploy.compress import compress_checkpoint
    from stdeploy.workflow import refuse_overwriting

    talk = Talk(json_file, verbose, quiet)
    refuse_overwriting(model_file, output)
    compress_checkpoint(model_file, method, sparsity, output, neuron=neuron)
    size = output.stat().st_size
    talk.phase("compress", f"{output}  {method} {sparsity:g}  {size_text(size)}")
    talk.document(
        {"schema_version": 1, "path": str(output), "method": method, "sparsity": sparsity, "size_bytes": size}
    )
