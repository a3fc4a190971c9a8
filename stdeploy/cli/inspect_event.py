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

    from stdeploy.exporters.event.lower import KERNELS

    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("layer", "kernel", "chosen by"):
        table.add_column(title)
    for title in (
        "inputs not zero",
        "bits set",
        "weights not zero",
        "products",
        "rows µs",
        "columns µs",
    ):
        table.add_column(title, justify="right")
    for layer, row in summary.plan.get("layers", {}).items():
        shares = (row.get(name) for name in ("input_rate", "input_bits", "weight_density"))
        costs = (row.get("seconds", {}).get(kernel) for kernel in KERNELS)
        table.add_row(
            layer,
            row.get("kernel"),
            row.get("by"),
            *("" if share is None else f"{share:.1%}" for share in shares),
            f"{row.get('products', 0):,}",
            *("" if cost is None else f"{cost * _MICRO:.1f}" for cost in costs),
        )
    return table
