"""`stdeploy inspect` of a .sev file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from stdeploy.cli.console import Talk
    from stdeploy.event_summary import EventSummary

_MICRO = 1e6


def inspect_event(talk: Talk, path: Path) -> None:
    """Facts about a file, then the kernel of every layer with what it was chosen from."""
    from stdeploy.event_summary import summarise_event

    summary = summarise_event(path)
    for name, fact in summary.facts():
        talk.result(f"{name:<9} {fact}")
    talk.result(kernel_table(summary))
    talk.document(summary.to_dict())


def kernel_table(summary: EventSummary) -> Table:
    """A row per Linear and Conv; seconds are the cost model's, of one thread, per step and sample."""
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("layer", "kernel", "chosen by"):
        table.add_column(title)
    for title in ("inputs not zero", "weights not zero", "products", "rows µs", "columns µs"):
        table.add_column(title, justify="right")
    for row in summary.kernels:
        costs = (row.seconds.get(kernel) for kernel in ("rows", "columns"))
        table.add_row(
            row.layer,
            row.kernel,
            row.by,
            f"{row.input_rate:.1%}",
            f"{row.weight_density:.1%}",
            f"{row.products:,}",
            *("" if cost is None else f"{cost * _MICRO:.1f}" for cost in costs),
        )
    return table
