"""`stdeploy compress`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from stdeploy.cli.options import common_options, data_option

if TYPE_CHECKING:
    from rich.table import Table

    from stdeploy.cli.console import Talk
    from stdeploy.compress import Compressed
    from stdeploy.graph import Graph
    from stdeploy.quantise import Effect, Inputs, TauRecord

EPILOG = """\b
Examples:
  stdeploy compress model.pt --method l1p --sparsity 0.9 -o pruned.pt
  stdeploy compress model.pt --method dsp --sparsity 0.75 --neuron slif-channel -o pruned.pt
  stdeploy compress tuned.pt --tau-levels 8 --data images.npz -o portable.pt
  stdeploy compress net.stg --tau-levels 8 --data images.npz -o portable.stg
\b
A pruned model is not fine-tuned: train it further (stdeploy.compress) before you judge its accuracy. Quantise tau
last. A model of your own code is quantised as a graph: stdeploy export ... --target graph -o net.stg.
"""


@click.command(epilog=EPILOG, short_help="Prune a model, give it sLIF neurons, bring its tau to few levels.")
@click.argument("model_file", metavar="MODEL", type=click.Path(path_type=Path))
@click.option(
    "--method",
    type=click.Choice(["l1p", "dsp"]),
    help="l1p: the smallest weights of each matrix. dsp: whole dimensions, by their importance.",
)
@click.option("--sparsity", type=click.FloatRange(0, 1, max_open=True), help="Share to prune, 0 to 1.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Checkpoint to write.")
@click.option(
    "--neuron",
    type=click.Choice(["slif", "slif-channel", "keep"]),
    help="slif: neurons with learnable tau and threshold, starting from the LIF's (default with --method). "
    "slif-channel: one of each per channel. keep: the model's own (default without).",
)
@click.option(
    "--tau-levels",
    type=click.IntRange(1, 16),
    metavar="K",
    help="At most K distinct tau per neuron layer, and what that changes; NIR gets one branch for each.",
)
@data_option
@click.option(
    "-n", "--samples", type=click.IntRange(min=1), help="Samples to measure on (default 16; all of --data)."
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
    method: str | None,
    sparsity: float | None,
    output: Path,
    neuron: Literal["slif", "slif-channel", "keep"] | None,
    tau_levels: int | None,
    data: Path | None,
    samples: int | None,
    rounding: Literal["up", "down"],
    scope: Literal["head", "all"],
    mode: Literal["mask", "remove"],
    talk: Talk,
) -> None:
    """Prune MODEL with L1P or DSP, give it sLIF neurons, or bring each layer's tau to a few levels."""
    from stdeploy.cli.console import size_text
    from stdeploy.workflow import refuse_overwriting, require_folder

    check_options(method, sparsity, neuron, tau_levels, data, samples)
    refuse_overwriting(model_file, output)
    require_folder(output)

    def inputs(graph: Graph) -> Inputs:
        from stdeploy.cli.export import inputs_for
        from stdeploy.quantise import Inputs

        return Inputs(*inputs_for(talk, graph, data, samples, "measuring"), real=data is not None)

    document: dict[str, Any] = {"schema_version": 1, "path": str(output)}
    tau: TauRecord | None = None
    effect: Effect | None = None
    if model_file.suffix == ".stg":
        if method is not None or neuron is not None or tau_levels is None:
            raise click.UsageError("a .stg graph takes --tau-levels only: prune its checkpoint")
        from stdeploy.quantise import quantise_file

        tau, effect = quantise_file(model_file, output, tau_levels, inputs)
    else:
        from stdeploy.compress import compress_checkpoint

        done = compress_checkpoint(
            model_file,
            method,
            sparsity,
            output,
            neuron=neuron,
            rounding=rounding,
            scope=scope,
            mode=mode,
            tau_levels=tau_levels,
            data=inputs,
        )
        document |= show_pruning(talk, model_file, done, method, sparsity)
        tau, effect = done.tau, done.effect
    if tau is not None and effect is not None:
        document |= show_tau(talk, tau, effect)
    size = output.stat().st_size
    talk.phase("write", f"{output}  {size_text(size)}")
    talk.document({**document, "size_bytes": size})


def check_options(
    method: str | None,
    sparsity: float | None,
    neuron: str | None,
    tau_levels: int | None,
    data: Path | None,
    samples: int | None,
) -> None:
    """UsageError where options do not go together."""
    if method is None and tau_levels is None and neuron in (None, "keep"):
        raise click.UsageError("there is nothing to do: give --method, --tau-levels or --neuron")
    if (method is None) != (sparsity is None):
        raise click.UsageError("--method and --sparsity go together")
    if tau_levels is None and (data is not None or samples is not None):
        raise click.UsageError("--data and --samples go with --tau-levels: only its effect is measured here")


def show_pruning(
    talk: Talk, model_file: Path, done: Compressed, method: str | None, sparsity: float | None
) -> dict[str, Any]:
    """What was pruned and replaced; the same for the JSON form."""
    if done.earlier and done.record is not None:
        what = " ".join(str(done.earlier[k]) for k in ("method", "sparsity") if k in done.earlier)
        talk.log(
            f"warning: {model_file} is compressed already ({what}): the counts are of this pruning alone"
        )
    if done.record is not None:
        text = f"{method} {sparsity:g}: {done.before.total:,} parameters, {done.after.total:,} left "
        text += f"(block weights {done.before.blocks:,}, {done.after.blocks:,} left)\n"
    else:
        text = ""
    if done.record is not None or done.neurons_replaced:
        talk.phase("compress", f"{text}{done.neurons_replaced} neuron layers became sLIF")
    return {
        "method": method,
        "sparsity": sparsity,
        "params_before": done.before.total,
        "params_after": done.after.total,
        "block_weights_before": done.before.blocks,
        "block_weights_after": done.after.blocks,
        "neuron_layers_replaced": done.neurons_replaced,
    }


def show_tau(talk: Talk, record: TauRecord, effect: Effect) -> dict[str, Any]:
    """The quantisation, layer by layer, and its effect; the same for the JSON form."""
    if not record.layers:
        talk.log("warning: no neuron layer has a tau per channel: there was nothing to quantise")
    else:
        levels = "weighted by the data" if record.weighted else "channels weigh the same"
        talk.phase(
            "tau",
            f"{len(record.changed)} of {len(record.layers)} layers with tau per channel had more than "
            f"{record.levels} distinct tau ({levels})",
        )
        talk.result(tau_table(record, effect))
    talk.phase("measure", effect.summary())
    return {"tau_levels": record.to_dict(), "effect": effect.to_dict()}


def tau_table(record: TauRecord, effect: Effect) -> Table:
    """A row per neuron layer with tau per channel."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("neuron layer")
    titles = ("tau", "levels", "moved by at most", "rms", "spikes changed", "by itself", "rate", "after")
    for title in titles:
        table.add_column(title, justify="right")
    for name, layer in record.layers.items():
        row = [name, f"{layer.distinct}", f"{len(layer.levels)}", f"{layer.largest_change:.2g}"]
        row.append(f"{layer.rms_change:.2g}")
        found = effect.layers.get(name)
        if found is not None:
            row += [f"{found.changed / found.spikes:.3%}", f"{found.changed_alone / found.spikes:.3%}"]
            row += [f"{found.rate_before:.3f}", f"{found.rate_after:.3f}"]
        table.add_row(*row)
    return table
