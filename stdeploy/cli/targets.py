"""`stdeploy targets`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stdeploy.cli.options import common_options, model_options

if TYPE_CHECKING:
    from rich.table import Table

    from stdeploy.chips import Budget, Chip
    from stdeploy.cli.console import Talk
    from stdeploy.placement import Placement
    from stdeploy.workflow import SourceOptions

EPILOG = """\b
Examples:
  stdeploy targets
  stdeploy targets --dialects
  stdeploy targets --chip loihi2
  stdeploy targets --chip speck2 pruned.pt
  stdeploy targets --chip mychip.toml model.nir --json budget.json
\b
With a model, exit code 1: a known limit is exceeded. Limits are taken one at a time and as lower bounds: a network
within all of them may still not fit.
"""


@click.command(epilog=EPILOG, short_help="List the targets; hold a model against a chip's limits.")
@click.argument("model_file", metavar="[MODEL]", type=click.Path(path_type=Path), required=False)
@click.option("--chip", metavar="NAME|TOML", help="A chip's published limits; with MODEL, what exceeds them.")
@click.option("--dialects", is_flag=True, help="List the dialects of NIR: rules, reasons and readers.")
@model_options
@common_options
def command(
    model_file: Path | None,
    chip: str | None,
    dialects: bool,
    talk: Talk,
    source_options: SourceOptions,
) -> None:
    """List export's targets, plug-ins included; or hold MODEL against a chip's limits."""
    from stdeploy.workflow import SourceOptions

    if chip is None:
        if model_file is not None or source_options != SourceOptions():
            raise click.UsageError("MODEL and its options go with --chip")
        show = show_dialects if dialects else show_targets
        show(talk)
        return
    if dialects:
        raise click.UsageError("--dialects goes without --chip")
    from stdeploy.chips import load_chip

    profile = load_chip(chip)
    if model_file is None:
        show_chip(talk, profile)
        return
    from stdeploy.placement import place

    placement = place(model_file, profile, source_options)
    show_placement(talk, profile, placement)
    if not placement.budget.fits:
        raise click.exceptions.Exit(1)


def show_dialects(talk: Talk) -> None:
    """Each dialect of NIR with its rules, their reasons, and its readers."""
    from stdeploy.exporters.nir.dialect import load_dialect, names

    known = [load_dialect(name) for name in names()]
    talk.result("\n\n".join(dialect.text() for dialect in known))
    talk.document({"schema_version": 1, "dialects": [dialect.to_dict() for dialect in known]})


def show_targets(talk: Talk) -> None:
    """A line per target, and the chips by name."""
    from stdeploy.chips import shipped
    from stdeploy.environment import target_states
    from stdeploy.exporters import GRAPH
    from stdeploy.graph.file import SUFFIX

    states = target_states()
    for state in states:
        talk.result(f"{state.name:<8} {state.suffix:<7} {state.module:<28} {state.problem or 'ok'}")
    talk.result(f"{GRAPH:<8} {SUFFIX:<7} {'the traced graph: a MODEL':<28} ok")
    talk.result(f"chips (--chip NAME): {', '.join(shipped())}")
    targets = [state.to_dict() for state in states]
    talk.document({"schema_version": 1, "targets": targets, "chips": list(shipped())})


def show_chip(talk: Talk, chip: Chip) -> None:
    """Every limit with its source."""
    from rich.table import Table

    talk.result(f"{chip.title} ({chip.maker}): {chip.about}. Sources read {chip.checked}.")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("limit", "value", "what it is", "source", "as printed"):
        table.add_column(title, overflow="fold")
    for name, limit in chip.limits.items():
        if limit is None:
            table.add_row(name, "unknown")
            continue
        value = ", ".join(f"{v:,}" if isinstance(v, int) else str(v) for v in _several(limit.value))
        remark = f" ({limit.precision})" if limit.precision else ""
        table.add_row(name, value, limit.means, limit.source, f'"{limit.quote}"{remark}')
    talk.result(table)
    for name, source in chip.sources.items():
        talk.result(f"{name}: {source['citation']}, {source['url']}")
    for rule in chip.not_checked:
        talk.result(f"not checked: {rule}")
    talk.document({"schema_version": 1, **chip.to_dict()})


def _several(value: Any) -> tuple[Any, ...]:
    """One entry where all are the same."""
    found = value if isinstance(value, tuple) else (value,)
    return found[:1] if len(set(found)) == 1 else found


def show_placement(talk: Talk, chip: Chip, placement: Placement) -> None:
    """What the network needs, what exceeds the chip, and what could not be judged."""
    budget, model = placement.budget, placement.model
    if model is not None:
        talk.phase(
            "model",
            f"{model.neurons:,} neurons in {model.neuron_layers} layers, {model.synapses:,} synapses of "
            f"{len(model.layers)} Linear and Conv",
        )
        for name, layer in model.layers.items() if talk.verbose else ():
            talk.result(
                "          {}: {synapses:,} synapses, {weights:,} nonzero weights".format(name, **layer)
            )
    talk.phase(
        "placed",
        "as NIR: {neurons:,} neurons in {populations} populations, {synapses:,} synapses, "
        "{weights:,} nonzero weights".format(**budget.totals),
    )
    talk.result(population_table(budget))
    for resource in budget.totals:
        counts = (("core", budget.cores.get(resource)), ("chip", budget.chips.get(resource)))
        least = [f"{n:,} {what}{'s' if n > 1 else ''}" for what, n in counts if n is not None]
        if least:
            talk.phase("least", f"{', '.join(least)} of {chip.title} for its {resource}")
    for text in verdicts(budget):
        talk.phase("exceeds", text)
    if budget.fits:
        talk.phase("within", "every limit that is known; that does not prove that it can be placed")
    if budget.unknown:
        talk.phase("unknown", f"not judged, no public figure: {', '.join(budget.unknown)}")
    for rule in budget.not_checked:
        talk.phase("", f"not checked: {rule}")
    talk.document(placement.to_dict())


def verdicts(budget: Budget) -> list[str]:
    """One line per exceeded limit: where it is worst, and in how many populations."""
    out = []
    for name in dict.fromkeys(f.limit for f in budget.findings):
        found = [f for f in budget.findings if f.limit == name]
        worst = max(found, key=lambda f: f.times or 0.0)
        where = f" in {worst.where}" if worst.where else ""
        times = f", {worst.times:.3g} times" if worst.times is not None else ""
        rest = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        out.append(f"{name}: needs {worst.need}, has {worst.has}{times}{where}{rest}")
    return out


def population_table(budget: Budget) -> Table:
    """A row per population with the limits that it exceeds by itself."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("population")
    table.add_column("role")
    for title in ("neurons", "synapses", "fan-in", "fan-out", "read by", "weights", "values", "bits"):
        table.add_column(title, justify="right")
    table.add_column("exceeds")
    for p in budget.populations:
        numbers = (p.neurons, p.synapses, p.fan_in, p.fan_out, p.destinations, p.weights, p.values, p.bits)
        exceeded = ", ".join(f.limit for f in budget.findings if f.where == p.name)
        table.add_row(p.name, p.role, *(f"{n:,}" for n in numbers), exceeded)
    return table
