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
The result is not fine-tuned: train it further (stdeploy.compress) before you judge its accuracy.
"""


@click.command(epilog=EPILOG)
@click.argument("model_file", metavar="MODEL", type=click.Path(path_type=Path))
@click.option(
    "--method",
    type=click.Choice(["l1p", "dsp"]),
    required=True,
    help="l1p: the smallest weights of each matrix. dsp: whole dimensions, by their importance.",
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
    help="slif: neurons with learnable tau and threshold, starting from the LIF's.",
)
@click.option(
    "--rounding",
    type=click.Choice(["up", "down"]),
    default="up",
    show_default=True,
    help="dsp: how the number of dimensions is rounded.",
)
@click.option(
    "--scope",
    type=click.Choice(["head", "all"]),
    default="head",
    show_default=True,
    help="dsp: rank within each head, or over all heads (they may then differ in size).",
)
@click.option(
    "--mode",
    type=click.Choice(["mask", "remove"]),
    default="mask",
    show_default=True,
    help="mask: zero the weights. remove: write the smaller architecture (dsp), to be fine-tuned.",
)
@common_options
def command(
    model_file: Path,
    method: str,
    sparsity: float,
    output: Path,
    neuron: Literal["slif", "keep"],
    rounding: Literal["up", "down"],
    scope: Literal["head", "all"],
    mode: Literal["mask", "remove"],
    json_file: str | None,
    verbose: int,
    quiet: bool,
    traceback: bool,
) -> None:
    """Prune MODEL with L1P or DSP and give it sLIF neurons."""
    from stdeploy.cli.console import Talk, size_text
    from stdeploy.compress import compress_checkpoint
    from stdeploy.workflow import refuse_overwriting

    talk = Talk(json_file, verbose, quiet)
    refuse_overwriting(model_file, output)
    done = compress_checkpoint(
        model_file, method, sparsity, output, neuron=neuron, rounding=rounding, scope=scope, mode=mode
    )
    if done.earlier:
        what = " ".join(str(done.earlier[k]) for k in ("method", "sparsity") if k in done.earlier)
        talk.log(
            f"warning: {model_file} is compressed already ({what}): the counts are of this pruning alone"
        )
    size = output.stat().st_size
    talk.phase(
        "compress",
        f"{method} {sparsity:g}: {done.before.total:,} parameters, {done.after.total:,} left "
        f"(block weights {done.before.blocks:,}, {done.after.blocks:,} left)\n"
        f"{done.neurons_replaced} neuron layers became sLIF",
    )
    talk.phase("write", f"{output}  {size_text(size)}")
    talk.document(
        {
            "schema_version": 1,
            "path": str(output),
            "method": method,
            "sparsity": sparsity,
            "params_before": done.before.total,
            "params_after": done.after.total,
            "block_weights_before": done.before.blocks,
            "block_weights_after": done.after.blocks,
            "neuron_layers_replaced": done.neurons_replaced,
            "size_bytes": size,
        }
    )
