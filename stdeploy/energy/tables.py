"""One table, written as terminal text, Markdown, CSV, LaTeX or HTML."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Cell = str | int | float | None


@dataclass(frozen=True)
class Column:
    """A title, the factor from the cells' unit to the title's, and how a number is written for people."""

    title: str
    text: Callable[[Any], str] = str
    left: bool = False
    factor: float = 1


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; None is an empty cell. `note` is a line below."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def texts(self) -> list[list[str]]:
        """The rows as people read them."""
        return [
            [
                "" if cell is None else cell if isinstance(cell, str) else column.text(cell * column.factor)
                for column, cell in zip(self.columns, row, strict=True)
            ]
            for row in self.rows
        ]

    def markdown(self) -> str:
        head = [column.title for column in self.columns]
        rule = ["---" if column.left else "--:" for column in self.columns]
        lines = [_pipes(head), "|" + "|".join(rule) + "|", *map(_pipes, self.texts())]
        return "\n".join([f"**{self.title}**", "", *lines, *(["", self.note] if self.note else [])]) + "\n"

    def latex(self) -> str:
        spec = "".join("l" if column.left else "r" for column in self.columns)
        head = _ampersands([column.title for column in self.columns])
        body = [_ampersands(row) for row in self.texts()]
        note = [f"% {self.note}"] if self.note else []
        lines = [f"% {self.title}", *note, rf"\begin{{tabular}}{{{spec}}}", r"\hline", head, r"\hline", *body]
        return "\n".join([*lines, r"\hline", r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([column.title for column in self.columns])
        for row in self.rows:
            cells = zip(self.columns, row, strict=True)
            writer.writerow(
                ["" if x is None else x if isinstance(x, str) else x * column.factor for column, x in cells]
            )
        return stream.getvalue()

    def html(self) -> str:
        head = "".join(f"<th>{html.escape(column.title)}</th>" for column in self.columns)
        body = "".join(
            "<tr>" + "".join(_cell(c, t) for c, t in zip(self.columns, row, strict=True)) + "</tr>\n"
            for row in self.texts()
        )
        note = f"<p class='note'>{html.escape(self.note)}</p>\n" if self.note else ""
        title = html.escape(self.title)
        return (
            f"<figure><figcaption>{title}</figcaption>\n<div class='wide'><table>\n<thead><tr>{head}</tr></thead>\n"
            f"<tbody>\n{body}</tbody></table></div>\n{note}</figure>\n"
        )

    def render(self) -> str:
        """Plain text with aligned columns."""
        rows = [[column.title for column in self.columns], *self.texts()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.columns))]
        lines = [
            "  ".join(
                text.ljust(width) if column.left else text.rjust(width)
                for column, text, width in zip(self.columns, row, widths, strict=True)
            ).rstrip()
            for row in rows
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(
            [self.title, *("  " + line for line in lines), *([f"  {self.note}"] if self.note else [])]
        )


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "µ": r"$\mu$",
    "≥": r"$\geq$",
    "ᵀ": r"$^T$",
    "·": r"$\cdot$",
}


def _ampersands(cells: Sequence[str]) -> str:
    return " & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in cells) + r" \\"


def _cell(column: Column, text: str) -> str:
    kind = " class='left'" if column.left else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def grouped(value: float) -> str:
    """An integer with thousands apart; a mean that is none with one digit behind the point."""
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:,.1f}"


def significant(value: float, digits: int = 4) -> str:
    """`digits` significant digits without an exponent where that is readable."""
    if value == 0:
        return "0"
    return f"{value:.{digits}g}" if 1e-4 <= abs(value) < 10**digits else f"{value:.{digits - 1}e}"


def percent(value: float) -> str:
    return f"{100 * value:.2f}%"
