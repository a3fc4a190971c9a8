"""Re-derive published energies from published counts, and say where published tables contradict themselves.

The literature's formula (Yao et al., TPAMI 2023): `E = 4.6 pJ * MACs(first layer) + 0.9 pJ * SOPs(rest)`.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict, dataclass
from decimal import Decimal
from importlib import resources
from typing import Any

from stdeploy.energy.tables import Cell, Column, Table

MAC_PJ, AC_PJ = 4.6, 0.9


@dataclass(frozen=True)
class Rederived:
    """Sums of a published per-layer log beside the totals that the log prints; G operations and mJ."""

    title: str
    source: str
    layers: int
    conv_gac: float
    attention_gac: float
    gmac: float
    mj: float
    printed_gac: float
    printed_gmac: float
    printed_mj: float

    @property
    def gac(self) -> float:
        return self.conv_gac + self.attention_gac

    @property
    def ok(self) -> bool:
        """Whether all three totals agree to 1e-9 relative: the rounding of summing floats."""
        pairs = (
            (self.gac, self.printed_gac),
            (self.gmac, self.printed_gmac),
            (self.mj, self.printed_mj),
        )
        return all(abs(ours - printed) <= 1e-9 * printed for ours, printed in pairs)


@dataclass(frozen=True)
class Row:
    """A printed row: what is left of its energy once its synaptic operations are priced, and what that is.

    `charged`: how often the row charges its first layer, as far as the printed digits tell (None: not a whole
    number of times); `borrowed`: a model of the same table whose first layer, times T, explains the rest.
    """

    table: str
    model: str
    steps: int
    gops: str
    mj: str
    checked: str
    rest_mj: float
    rounding_mj: float
    first_mj: float
    charged: int | None
    borrowed: str | None

    @property
    def expected_mj(self) -> float:
        """What the row would print with its own first layer charged at every step, or once where that is nearer."""
        counts = (self.steps, 1)
        nearest = min(counts, key=lambda n: abs(self.rest_mj - n * self.first_mj))
        return float(self.mj) - self.rest_mj + nearest * self.first_mj

    def verdict(self) -> str:
        if self.charged == self.steps:
            return "consistent: first layer x T"
        if self.charged == 1:
            return f"first layer charged once, not x T = {self.steps}"
        off = float(self.mj) - self.expected_mj
        text = f"INCONSISTENT: {abs(off):.3f} mJ too {'high' if off > 0 else 'low'}"
        return f"{text}; the rest fits {self.borrowed}" if self.borrowed else text


@dataclass(frozen=True)
class SelfCheck:
    log: Rederived
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        return self.log.ok

    def tables(self) -> list[Table]:
        """The re-derived log, and the rows with what their digits say."""
        log = self.log
        rows: list[list[Cell]] = [
            ["layers, G accumulates", log.conv_gac, None],
            ["attention, G accumulates", log.attention_gac, None],
            ["all, G accumulates", log.gac, log.printed_gac],
            ["first layer and head, G MACs", log.gmac, log.printed_gmac],
            ["energy, mJ", log.mj, log.printed_mj],
        ]
        columns = [Column("", left=True), Column("summed here", _nine), Column("printed", _nine)]
        first = Table(log.title, columns, rows, f"From {log.source}")
        titles = ("G SOPs", "mJ", "rest, mJ", "own first layer x T, mJ")
        columns = [Column("model", left=True), *map(Column, titles), Column("verdict", left=True)]
        table = ""
        rows = []
        for row in self.rows:
            if row.table != table:
                table = row.table
                rows.append([f"[{table}]", *[""] * 5])
            rest, own = f"{row.rest_mj:.3f}", f"{row.steps * row.first_mj:.3f}"
            rows.append([row.model, row.gops, row.mj, rest, own, row.verdict()])
        note = "rest = printed mJ - 0.9 pJ x printed SOPs: what is left for the first layer, at 4.6 pJ a MAC."
        return [first, Table("Published rows against their own digits", columns, rows, note)]

    def to_dict(self) -> dict[str, Any]:
        log = {**asdict(self.log), "gac": self.log.gac, "ok": self.log.ok}
        rows = [{**asdict(r), "expected_mj": r.expected_mj, "verdict": r.verdict()} for r in self.rows]
        return {"log": log, "rows": rows, "ok": self.ok}


def self_check() -> SelfCheck:
    """Both checks on the shipped published data."""
    folder = resources.files("stdeploy.energy") / "published"
    log = json.loads((folder / "spikingformer_8_512.json").read_text())
    tables = tomllib.loads((folder / "tables.toml").read_text())
    return SelfCheck(rederive(log), check_rows(tables["rows"]))


def rederive(log: dict[str, Any]) -> Rederived:
    """Totals of a per-layer log of Spikingformer's script: layers, and `T H N dh^2 (min(rK, rV) + rQ)` a block."""
    sums = {
        kind: sum(layer["ops"] for layer in log["layers"] if layer["kind"] == kind) for kind in ("ac", "mac")
    }
    shape = log["attention"]
    head = shape["dim"] // shape["heads"]
    dense = shape["steps"] * shape["heads"] * shape["tokens"] * head**2
    attention = sum(dense * (min(k, v) + q) for q, k, v in log["qkv_rates"])
    price = log["constants_pj"]
    energy = (sums["ac"] + attention) * price["ac"] + sums["mac"] * price["mac"]
    return Rederived(
        title=log["title"],
        source=f"{log['repository']}/{log['path']} at {log['commit'][:10]}; {log['paper']}",
        layers=len(log["layers"]),
        conv_gac=sums["ac"] * 1e-9,
        attention_gac=attention * 1e-9,
        gmac=sums["mac"] * 1e-9,
        mj=energy * 1e-9,
        printed_gac=log["printed"]["gac"],
        printed_gmac=log["printed"]["gmac"],
        printed_mj=log["printed"]["mj"],
    )


def check_rows(rows: list[dict[str, Any]]) -> tuple[Row, ...]:
    """Every printed row against its own first layer, and where that fails against the others' of its table."""
    return tuple(_check(row, rows) for row in rows)


def _check(row: dict[str, Any], rows: list[dict[str, Any]]) -> Row:
    rest = float(row["mj"]) - AC_PJ * float(row["gops"])
    rounding = _half_digit(row["mj"]) + AC_PJ * _half_digit(row["gops"])
    own = _first_mj(row)
    charged = next((n for n in (row["steps"], 1) if abs(rest - n * own) <= rounding), None)
    borrowed = None
    if charged is None:
        others = (r for r in rows if r["table"] == row["table"] and _first_mj(r) != own)
        borrowed = next(
            (r["model"] for r in others if abs(rest - r["steps"] * _first_mj(r)) <= rounding), None
        )
    texts = {key: row[key] for key in ("table", "model", "steps", "gops", "mj", "checked")}
    return Row(**texts, rest_mj=rest, rounding_mj=rounding, first_mj=own, charged=charged, borrowed=borrowed)


def _first_mj(row: dict[str, Any]) -> float:
    kernel, inputs, outputs, height, width = row["first"]
    return float(kernel**2 * inputs * outputs * height * width * MAC_PJ * 1e-9)


def _half_digit(text: str) -> float:
    exponent = Decimal(text).as_tuple().exponent
    return 0.5 * 10.0 ** int(exponent)


def _nine(value: float) -> str:
    return f"{value:.9f}"
