"""`stdeploy bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stdeploy.cli.options import Counts, common_options, data_option, model_options

if TYPE_CHECKING:
    from stdeploy.cli.console import Talk
    from stdeploy.workflow import SourceOptions

EPILOG = """\b
Examples:
  stdeploy bench pruned.pt --data images.npz
  stdeploy bench pruned.pt --baseline baseline.pt --batch 1,8 --threads 1,2 --plot latency.svg
  stdeploy bench pruned.pt other.onnx --candidate torch --candidate onnx --json bench.json
  stdeploy bench pruned.pt pruned.sev --candidate torch --reference torch --threads 1,2
  stdeploy bench model.onnx --device cuda --cuda-graph
\b
Every candidate runs in a process of its own; they take turns, one computing at a time, in an order shuffled each
round. Their outputs are compared before anything is timed. Exit code 1 where a candidate failed or computed
something else; the others are reported all the same.
"""

_PATH = click.Path(path_type=Path)


@click.command(epilog=EPILOG, short_help="Measure latency in everything that runs the model here.")
@click.argument("model_file", metavar="MODEL", type=_PATH)
@click.argument("files", metavar="[FILES]...", nargs=-1, type=_PATH)
@click.option("--baseline", type=_PATH, help="The network before compression, measured in the same runs.")
@click.option(
    "--candidate",
    "candidates",
    multiple=True,
    help="What to run, repeatable: torch, compile, dynamo, onnx, openvino, event, all (default: all but compile).",
)
@click.option("--reference", help="Candidate that ratios are of (default: the first).")
@click.option("--batch", "batches", type=Counts(), default="1", help="Batch sizes: 1,8.", show_default=True)
@click.option("--threads", type=Counts(), help="Threads within an operator: 1,2 (default: the cores here).")
@click.option("--device", default="cpu", help="cpu, cuda or tensorrt; never a fallback.", show_default=True)
@click.option("--cuda-graph", is_flag=True, help="Capture the kernels once and replay them (onnxruntime).")
@click.option("--io-binding/--no-io-binding", default=None, help="Keep inputs and outputs on the device.")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=20, help="Turns of each candidate.", show_default=True
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=4.0,
    help="Timed seconds for each candidate and setting.",
    show_default=True,
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    help="Seconds that one step of a candidate may take.",
    show_default=True,
)
@click.option("--check", type=click.IntRange(min=1), default=16, help="Samples compared.", show_default=True)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, help="Of inputs, order and intervals.", show_default=True
)
@click.option("--plot", type=_PATH, help="Latency against batch size as .svg or .png.")
@data_option
@model_options
@common_options
def command(
    model_file: Path,
    files: tuple[Path, ...],
    baseline: Path | None,
    candidates: tuple[str, ...],
    reference: str | None,
    batches: tuple[int, ...],
    threads: tuple[int, ...] | None,
    device: str,
    cuda_graph: bool,
    io_binding: bool | None,
    rounds: int,
    seconds: float,
    timeout: float,
    check: int,
    seed: int,
    plot: Path | None,
    data: Path | None,
    talk: Talk,
    source_options: SourceOptions,
) -> int:
    """Measure the latency of MODEL (a checkpoint, or a .stg, .onnx or .sev file) in everything that runs it.

    FILES are further .onnx files of the same network, from any exporter, or .sev files.
    """
    import tempfile

    from stdeploy import benchmark
    from stdeploy.runtime.bench.machine import available_cores
    from stdeploy.runtime.bench.plot import plot_latency, require_plotting
    from stdeploy.runtime.bench.report import Plan
    from stdeploy.runtime.bench.text import render
    from stdeploy.runtime.sessions import SessionOptions

    if plot is not None:
        require_plotting(plot)
    session = SessionOptions(device, io_binding=io_binding, cuda_graph=cuda_graph)
    chosen = benchmark.BenchOptions(candidates, session, data)
    plan = Plan(batches, threads or (available_cores(),), reference, rounds, seconds, timeout, check, seed)
    with tempfile.TemporaryDirectory(prefix="stdeploy-bench-") as folder:
        report = benchmark.bench(
            model_file,
            files,
            baseline,
            plan,
            chosen,
            source_options,
            folder=Path(folder),
            log=talk.log,
        )
    for line in render(report):
        talk.result(line)
    if plot is not None:
        talk.log(f"wrote {plot_latency(report, plot)}")
    for warning in report.warnings:
        talk.log(f"warning: {warning}")
    for problem in report.problems:
        talk.log(f"problem: {problem}")
    talk.document(report.to_dict())
    return 1 if report.problems else 0
