"""A count beside what others make of the same run: the literature's formula, other tools, and what lies between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from stdeploy.energy.ledger import Ledger
from stdeploy.energy.profile import Profile
from stdeploy.energy.reconcile import TERMS, reconcile
from stdeploy.energy.tables import Cell, Column, Table, grouped
from stdeploy.energy.views import VIEWS, view


@dataclass(frozen=True)
class Literature:
    """Operations that the literature's formula gives: rate x T x dense, the first layer as MAC at every step."""

    macs: float
    acs: float

    def joules(self, profile: Profile) -> float:
        return self.macs * profile.mac + self.acs * profile.ac


def literature(ledger: Ledger) -> Literature:
    """The operations of the literature's formula, as the view `spikformer` has them."""
    total = view(ledger, "spikformer").total
    return Literature(float(total["MACs"]), float(total["SOPs"]))


def view_table(ledger: Ledger, tools: Sequence[str]) -> Table:
    """What other tools would print for this run, and what each leaves out; UserError for an unknown tool."""
    columns = [
        Column("tool", left=True),
        Column("its number", left=True),
        Column("per sample", grouped),
        Column("which is", left=True),
    ]
    rows: list[list[Cell]] = []
    for tool in tools:
        found = view(ledger, tool)
        numbers: list[tuple[Cell, Cell]] = [(name, float(value)) for name, value in found.total.items()]
        texts = [found.source, f"without {', '.join(found.ignores)}"]
        for i in range(max(len(numbers), len(texts))):
            name, value = numbers[i] if i < len(numbers) else ("", None)
            rows.append(["" if i else tool, name, value, texts[i] if i < len(texts) else ""])
    exact = sum(m.mean for name, m in ledger.network.each.items() if "synops." in name)
    rows.append(["stdeploy", "synops", exact, "exact, attention apart; what reads a still image once"])
    return Table("The same run as other tools count it", columns, rows)


def views_dict(ledger: Ledger) -> dict[str, Any]:
    """Every tool's numbers per sample."""
    return {
        tool: {column: float(value) for column, value in view(ledger, tool).total.items()} for tool in VIEWS
    }


def reconciliation_table(ledger: Ledger) -> Table:
    """What lies between the literature's operations and the exact ones, layer by layer; nothing remains."""
    titles = ("literature", "exact", *TERMS, "remainder")
    columns = [Column("layer", left=True), *(Column(title, grouped) for title in titles)]
    numbers = {r.layer: (r.literature, r.exact, *r.terms.values(), r.remainder) for r in reconcile(ledger)}
    rows: list[list[Cell]] = [
        [ledger.layer(name).source or name, *map(float, values)] for name, values in numbers.items()
    ]
    sums = [float(sum(column, Fraction(0))) for column in zip(*numbers.values(), strict=True)]
    note = "literature = exact + the terms between; operations per sample."
    whole: list[Cell] = ["total", *(sums or [0.0] * len(titles))]
    return Table("From the literature's formula to the count", columns, [*rows, whole], note)


def reconciliation_dict(ledger: Ledger) -> list[dict[str, Any]]:
    """The same per layer, for JSON."""
    return [
        {
            "layer": r.layer,
            "literature": float(r.literature),
            "exact": float(r.exact),
            **{term: float(value) for term, value in r.terms.items()},
            "remainder": float(r.remainder),
        }
        for r in reconcile(ledger)
    ]
