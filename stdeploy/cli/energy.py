"""`stdeploy energy`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stdeploy.cli.options import Output, common_options, data_option, model_options
from stdeploy.errors import UserError

if TYPE_CHECKING:
    from stdeploy.accounting import Which
    from stdeploy.cli.console import Talk
    from stdeploy.energy.ledger import Class, Ledger
    from stdeploy.energy.prices import Graded, Memory, Static
    from stdeploy.energy.profile import Profile
    from stdeploy.energy.report import EnergyReport
    from stdeploy.workflow import SourceOptions

EPILOG = """\b
Examples:
  stdeploy energy pruned.pt --data images.npz
  stdeploy energy pruned.pt --data images.npz --baseline baseline.pt --html report.html
  stdeploy energy pruned.pt --artefact pruned.onnx --data images.npz
  stdeploy energy pruned.pt --artefact pruned.sev --data images.npz
  stdeploy energy pruned.pt --data images.npz --profile 45nm-int8 --profile loihi2 --synop-pj 1.2
  stdeploy energy pruned.pt --data images.npz --as spikingjelly --as neurobench
  stdeploy energy pruned.pt --data images.npz --shard 1/4 --counts part1.json
  stdeploy energy --merge part1.json --merge part2.json --merge part3.json --merge part4.json
  stdeploy energy --profiles
  stdeploy energy --self-check
\b
A synaptic operation is one nonzero event that meets one nonzero weight. Counts are exact integers; prices are
data with a source (--profiles). docs/energy.md has the definitions.
"""

DEFAULT_PROFILES = ("45nm-fp32", "45nm-int8", "loihi1")
DEFAULT_BOUNDS = ("h100-fp16", "orin-int8")
"""Put beside the user's profiles too, unless they name a bound."""


class Shard(click.ParamType[tuple[int, int]]):
    """`2/8` as (2, 8)."""

    name = "i/n"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        index, slash, parts = str(value).partition("/")
        if not (slash and index.isdecimal() and parts.isdecimal() and 1 <= int(index) <= int(parts)):
            self.fail(f"{value!r} is not a shard; 2/8 is the second of eight", param, ctx)
        return int(index), int(parts)


_FILE = click.Path(path_type=Path)


@click.command(epilog=EPILOG, short_help="Count synaptic operations on data, and price them.")
@click.argument("model_file", metavar="[MODEL]", type=_FILE, required=False)
@data_option
@click.option(
    "-n", "--samples", "--limit", type=click.IntRange(min=1), help="Samples to count (default: all)."
)
@click.option(
    "--artefact", type=_FILE, help="Count what this export of MODEL (.onnx, .nir, .sev) runs, on its spikes."
)
@click.option("--reader", "readers", multiple=True, help="Software that runs the artefact, as for verify.")
@click.option(
    "--graph",
    "which",
    type=click.Choice(["deployed", "source"]),
    default="deployed",
    help="The network after the exact passes (default), or as the model is written.",
)
@click.option(
    "--input-class",
    type=click.Choice(["real", "count", "binary"]),
    default="real",
    help="What the input holds: real values (default), or event counts or spikes, which cost no multiplication.",
)
@click.option(
    "--baseline",
    type=_FILE,
    help="Another checkpoint or graph to compare with, on the same data, or its --counts.",
)
@click.option(
    "--profile",
    "profile_names",
    multiple=True,
    help="Prices: a name of --profiles or a .toml file; repeatable.",
)
@click.option(
    "--synop-pj", type=float, help="Your price for a chip without a published one (--profile loihi2)."
)
@click.option(
    "--graded",
    type=click.Choice(["ac", "unary", "mac"]),
    default="ac",
    help="An event of k units: one accumulate (default), k of them, or a multiply-accumulate.",
)
@click.option(
    "--first-layer",
    "static",
    type=click.Choice(["once", "every-step"]),
    default="once",
    help="What reads a still image runs once and is kept (default), or at every step, as papers charge it.",
)
@click.option(
    "--memory",
    type=click.Choice(["sram_8k", "sram_32k", "sram_1m", "dram"]),
    help="Where weights and membranes lie (default: the smallest that holds them all).",
)
@click.option(
    "--as",
    "tools",
    multiple=True,
    metavar="TOOL",
    help="Also what this tool would print: spikformer, spikingformer, sdt, neurobench, spikingjelly, syops, sinabs, "
    "norse or kerasspiking; repeatable.",
)
@click.option(
    "--batch", type=click.IntRange(min=1), help="Samples run at a time (default: by memory, at most 64)."
)
@click.option("--shard", type=Shard(), help="Count only this part of the samples: 2/8.")
@click.option("--counts", type=Output(".json"), help="Write the counts, to be merged or priced again.")
@click.option("--merge", "shards", type=_FILE, multiple=True, help="Price counts written before; repeatable.")
@click.option("--csv", "csv_file", type=Output(".csv"), help="A row per layer.")
@click.option("--markdown", "markdown_file", type=Output(".md"), help="All tables.")
@click.option("--latex", "latex_file", type=Output(".tex"), help="All tables.")
@click.option("--html", "html_file", type=Output(".html", ".htm"), help="Pictures and tables in one file.")
@click.option(
    "--profiles", "list_profiles", is_flag=True, help="List the prices with their sources, and stop."
)
@click.option("--self-check", is_flag=True, help="Re-derive published energies from their counts, and stop.")
@model_options
@common_options
def command(
    model_file: Path | None,
    talk: Talk,
    list_profiles: bool,
    self_check: bool,
    profile_names: tuple[str, ...],
    synop_pj: float | None,
    graded: Graded,
    static: Static,
    memory: Memory | None,
    tools: tuple[str, ...],
    baseline: Path | None,
    shards: tuple[Path, ...],
    counts: Path | None,
    csv_file: Path | None,
    markdown_file: Path | None,
    latex_file: Path | None,
    html_file: Path | None,
    **options: Any,
) -> None:
    """Count MODEL's synaptic operations exactly on data, and price them."""
    from stdeploy.energy.ledger import load_ledger, save_ledger
    from stdeploy.energy.pictures import require_matplotlib
    from stdeploy.energy.prices import Choices
    from stdeploy.energy.report import EnergyReport
    from stdeploy.energy.views import require_views

    if (list_profiles or self_check) and model_file is not None:
        raise click.UsageError("--profiles and --self-check count nothing; leave out MODEL")
    if list_profiles:
        return _show_profiles(talk, markdown_file)
    if self_check:
        return _show_self_check(talk)
    profiles = _profiles(profile_names, synop_pj)
    require_views(tools)
    if html_file is not None:
        require_matplotlib()
    _require_folders(counts, csv_file, markdown_file, latex_file, html_file)
    earlier = load_ledger(baseline) if baseline is not None and baseline.suffix == ".json" else None
    ledger = _merged(model_file, shards, options) if shards else _counted(talk, model_file, **options)
    if counts is not None:
        save_ledger(ledger, counts)
        talk.phase("write", str(counts))
    choices = Choices(graded, static, memory)
    before = None
    if baseline is not None:
        other = earlier or _counted(
            talk, baseline, **{**options, "artefact": None, "readers": (), "batch": None}
        )
        before = EnergyReport.of(other, profiles, choices)
    report = EnergyReport.of(ledger, profiles, choices, before)
    _show(talk, report, tools)
    talk.document({"schema_version": 1, **report.to_dict()})
    title = f"Energy of {model_file.name if model_file else ledger.graph.get('source', 'a network')}"
    _write(talk, report, title, csv_file, markdown_file, latex_file, html_file)
    return None


def _profiles(names: tuple[str, ...], synop_pj: float | None) -> list[Profile]:
    """The prices asked for, or the usual ones; bounds stand beside them in any case."""
    from stdeploy.energy.prices import require_prices
    from stdeploy.energy.profile import load_profiles

    profiles = load_profiles(names or DEFAULT_PROFILES, synop_pj)
    require_prices(profiles)
    if not any(p.kind == "bound" for p in profiles):
        profiles += load_profiles(DEFAULT_BOUNDS)
    return profiles


def _require_folders(*files: Path | None) -> None:
    """UserError, before anything is counted, where a file to write has no folder."""
    for path in files:
        if path is not None and not path.absolute().parent.is_dir():
            raise UserError(f"cannot write {path}: its folder does not exist", hint="choose a writable path")


def _merged(model_file: Path | None, shards: tuple[Path, ...], options: dict[str, Any]) -> Ledger:
    """The shards together; UsageError where something else than --baseline is to be counted too."""
    from stdeploy.energy.ledger import load_ledger, merge

    if model_file is not None or options["artefact"] is not None or options["shard"] is not None:
        raise click.UsageError(
            "--merge prices counts that are there already; leave out MODEL and what it runs"
        )
    ledgers = [load_ledger(path) for path in shards]
    for i, ledger in enumerate(ledgers):
        if ledger in ledgers[:i]:
            raise UserError(f"{shards[i]} is merged twice", hint="every sample is to be counted once")
    return merge(ledgers)


def _counted(
    talk: Talk,
    model_file: Path | None,
    *,
    data: Path | None,
    samples: int | None,
    artefact: Path | None,
    readers: tuple[str, ...],
    which: Which,
    input_class: Class,
    batch: int | None,
    shard: tuple[int, int] | None,
    source_options: SourceOptions,
) -> Ledger:
    from stdeploy import accounting, running, workflow
    from stdeploy.cli.export import COMPILING, describe
    from stdeploy.data import load_data
    from stdeploy.verify import batch_axis, batch_for

    if model_file is None:
        raise click.UsageError("name a MODEL, or counts to --merge")
    if data is None:
        raise click.UsageError("--data is needed: how much a spiking network computes depends on its input")
    if model_file.suffix in workflow.PROGRAMS:
        raise UserError(
            f"{model_file} is a program, from which no network is read back",
            hint=f"stdeploy energy MODEL --artefact {model_file}, with the model that it was made from",
        )
    if readers and artefact is None:
        raise click.UsageError("--reader runs an --artefact")
    if artefact is not None:
        workflow.target_of(artefact)  # a wrong file is refused before the model is traced
    source = workflow.open_source(model_file, source_options)
    describe(talk, source)
    subject = accounting.subject(source, artefact, readers, which)
    with talk.patience(COMPILING):
        running.compile_first([subject.executor])
    inputs, _ = load_data(data, source.graph, samples)
    if shard is not None:
        inputs = accounting.shard(inputs, source.graph, shard)
    start = time.perf_counter()
    total = inputs.shape[batch_axis(source.graph)]
    with talk.progress(f"counting {model_file}", total) as progress:
        size = batch or batch_for(source.graph)
        ledger = accounting.count(subject, inputs, batch=size, input_class=input_class, progress=progress)
    talk.phase("count", f"{subject.by}; {total:,} samples", time.perf_counter() - start)
    own = accounting.require_own_count(subject, ledger)
    if own is not None:
        talk.phase("engine", own)
    return ledger


def _show(talk: Talk, report: EnergyReport, tools: tuple[str, ...]) -> None:
    from stdeploy.energy.comparison import view_table

    shown = report.tables() if talk.verbose else report.summary()
    if tools and not talk.verbose:
        shown.append(view_table(report.ledger, tools))
    for table in shown:
        talk.result("")
        talk.result(table.render())
    if not talk.verbose:
        talk.log("\n-v shows layers, firing rates and the sources of the prices; --html the pictures")


def _write(
    talk: Talk,
    report: EnergyReport,
    title: str,
    csv: Path | None,
    markdown: Path | None,
    latex: Path | None,
    html: Path | None,
) -> None:
    """The report's files, each whole or not at all."""
    from stdeploy.energy.page import page
    from stdeploy.files import atomic_write

    texts: list[tuple[Path | None, Callable[[], str]]] = [
        (csv, lambda: report.flat().csv()),
        (markdown, lambda: "\n".join(table.markdown() for table in report.tables())),
        (latex, lambda: "\n".join(table.latex() for table in report.tables())),
        (html, lambda: page(report, title)),
    ]
    for path, text in texts:
        if path is not None:
            content = text()
            with atomic_write(path) as temporary:
                temporary.write_text(content, encoding="utf-8")
            talk.phase("write", str(path))


def _show_profiles(talk: Talk, markdown: Path | None) -> None:
    """All shipped prices, and the chips that have none."""
    from stdeploy.energy.profile import load_profiles, profile_table, profile_text, refused, shipped
    from stdeploy.files import atomic_write

    profiles = load_profiles(list(shipped()))
    for profile in profiles:
        talk.text(profile_text(profile) + "\n")
    talk.result("Not priced without a value of yours (--synop-pj, or a profile file):")
    for name, entry in refused().items():
        talk.result(f"  {name:<8} {entry['reason']}")
    if markdown is not None:
        with atomic_write(markdown) as temporary:
            temporary.write_text(profile_table(profiles).markdown(), encoding="utf-8")
    documents = [profile.to_dict() for profile in profiles]
    talk.document({"schema_version": 1, "profiles": documents, "refused": refused()})


def _show_self_check(talk: Talk) -> None:
    """The published log, the published rows; exit 1 where our sums do not give the log's totals."""
    from stdeploy.energy.selfcheck import self_check
    from stdeploy.errors import ParityError

    check = self_check()
    for table in check.tables():
        talk.result(table.render() + "\n")
    talk.document({"schema_version": 1, **check.to_dict()})
    if not check.ok:
        raise ParityError("the published energy was not re-derived", hint="please report this")
