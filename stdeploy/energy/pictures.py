"""Pictures of a count as SVG text: energy per layer by part, firing rates per layer and step, series of points.

Text and lines take the colour of the page they stand on (`currentColor`), so one picture serves light and dark.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from stdeploy.energy.ledger import Ledger
from stdeploy.energy.prices import COMPUTED, MEMORY, PARTS, Part, Priced
from stdeploy.errors import UserError

COLOURS: dict[Part, str] = {
    "binary": "#0072b2",
    "count": "#56b4e9",
    "real": "#e69f00",
    "attention": "#cc79a7",
    "neurons": "#009e73",
    "other": "#8f8f8f",
    "weights": "#d55e00",
    "state": "#c9b400",
}
"""Okabe and Ito's colours, which colour-blind readers tell apart; yellow darkened for white pages."""
LABELS: dict[Part, str] = {
    "binary": "synapses, binary events",
    "count": "synapses, graded events",
    "real": "synapses, real input",
    "attention": "attention",
    "neurons": "neuron updates",
    "other": "pools, sums, biases",
    "weights": "weight reads",
    "state": "membrane reads, writes",
}
ROWS, SMALLEST = 60, 0.002
"""Modules drawn one by one, and the share from which one is; the others share a bar."""
CELLS = 10_000
"""Cells of a heat map drawn as vectors; more become one embedded bitmap."""
_BEHIND = "baseline, total"
_INK = "#010203"
"""Stands for the page's text colour until the SVG is written."""
_STYLE = "<style>svg{color:#1b1b1b}@media(prefers-color-scheme:dark){svg{color:#e6e6e6}}</style>"


def require_matplotlib() -> ModuleType:
    """matplotlib, or a UserError that says how to get it."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(
            "matplotlib is not installed; pictures need it",
            hint='pip install "stdeploy[plots]", or leave out --html',
        ) from error
    return matplotlib


@contextlib.contextmanager
def _drawing(name: str) -> Iterator[None]:
    """Settings under which the SVG of a picture is the same at every run and takes the page's colours."""
    inked = (
        "text.color",
        "axes.labelcolor",
        "axes.edgecolor",
        "axes.titlecolor",
        "xtick.color",
        "ytick.color",
    )
    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(inked, _INK),
    }
    with require_matplotlib().rc_context(settings):
        yield


def _figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, list[Any]]:
    """A figure of so many inches with its axes, row by row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _svg(figure: Any, page: bool) -> str:
    """The picture; with `page` it brings the colours that a file shown alone needs."""
    stream = io.StringIO()
    metadata = {"Date": None, "Creator": None, "Type": None, "Format": None}
    figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    end = text.index(">") + 1
    return text[:end] + (_STYLE if page else "") + text[end:]


def unit_of(largest: float) -> tuple[float, str]:
    """Factor and name of the energy unit in which `largest` joules read well."""
    units = ((1.0, "J"), (1e3, "mJ"), (1e6, "µJ"), (1e9, "nJ"))
    return next(((f, name) for f, name in units if largest * f >= 1), (1e12, "pJ"))


@dataclass(frozen=True)
class _Row:
    label: str
    parts: Mapping[Part, float]

    def sum(self, chosen: Sequence[Part] = PARTS) -> float:
        return sum(self.parts.get(part, 0.0) for part in chosen)


def _rows(ledger: Ledger, priced: Priced) -> list[_Row]:
    """A row per module, in network order."""
    merged: dict[str, dict[Part, float]] = {}
    for layer in ledger.layers:
        if layer.name in priced.layers:
            parts = merged.setdefault(layer.source or layer.name, {})
            for part, estimate in priced.layers[layer.name].parts.items():
                parts[part] = parts.get(part, 0.0) + estimate.mean
    return [_Row(label, parts) for label, parts in merged.items()]


def _drawn(rows: Sequence[_Row], before: Mapping[str, _Row]) -> list[_Row]:
    """The rows that matter to computation or to the whole, or did before; the others together in the last."""

    def weight(row: _Row) -> float:
        pairs = [(row, rows), *([(before[row.label], before.values())] if row.label in before else [])]
        shares = [r.sum(c) / (sum(x.sum(c) for x in of) or 1.0) for r, of in pairs for c in (COMPUTED, PARTS)]
        return max(shares)

    ranked = sorted((row for row in rows if weight(row) >= SMALLEST), key=weight, reverse=True)
    kept = {row.label for row in ranked[:ROWS]}
    rest = [row for row in rows if row.label not in kept and row.sum() > 0]
    together: dict[Part, float] = {part: sum(row.parts.get(part, 0.0) for row in rest) for part in PARTS}
    named = [row for row in rows if row.label in kept]
    return [*named, _Row(f"{len(rest)} smaller", together)] if rest else named


@_drawing("layers")
def layer_bars(
    ledger: Ledger, priced: Priced, baseline: tuple[Ledger, Priced] | None = None, *, page: bool = False
) -> str:
    """Energy of every module, stacked by part: its computation and, where memory is priced, all of it.

    A baseline's totals stand behind as outlines.
    """
    rows = _rows(ledger, priced)
    before = {row.label: row for row in (_rows(*baseline) if baseline else [])}
    rows = _drawn(rows, before)
    panels = [("computation", COMPUTED)]
    if any(row.sum(MEMORY) for row in rows):
        panels.append(("with memory", PARTS))
    figure, axes = _figure(9.4, 1.4 + 0.2 * len(rows), len(panels))
    handles: dict[str, Any] = {}
    for axis, (title, parts) in zip(axes, panels, strict=True):
        found = _bars(axis, rows, before, parts)
        last = {_BEHIND: outline} if (outline := handles.pop(_BEHIND, found.pop(_BEHIND, None))) else {}
        handles |= found | last
        axis.set_title(title, fontsize=9.5)
    for axis in axes:
        axis.set_yticks(range(len(rows)), [row.label for row in rows] if axis is axes[0] else [])
        axis.set_ylim(len(rows) - 0.4, -0.6)
    figure.supxlabel(f"per sample, {priced.profile.title}", fontsize=9)
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=3, frameon=False)
    return _svg(figure, page)


def _bars(
    axis: Any, rows: Sequence[_Row], before: Mapping[str, _Row], parts: Sequence[Part]
) -> dict[str, Any]:
    """One panel of stacked bars; what its legend needs."""
    behind = [(i, before[row.label].sum(parts)) for i, row in enumerate(rows) if row.label in before]
    factor, unit = unit_of(
        max([row.sum(parts) for row in rows] + [width for _, width in behind], default=0.0)
    )
    left, handles = [0.0] * len(rows), {}
    for part in parts:
        widths = [row.parts.get(part, 0.0) * factor for row in rows]
        if any(widths):
            handles[LABELS[part]] = axis.barh(range(len(rows)), widths, 0.72, left=left, color=COLOURS[part])
            left = [a + b for a, b in zip(left, widths, strict=True)]
    if behind:
        outline = {"facecolor": "none", "edgecolor": _INK, "linewidth": 0.8}
        places, widths = [i for i, _ in behind], [width * factor for _, width in behind]
        handles[_BEHIND] = axis.barh(places, widths, 0.9, **outline)
    axis.set_xlabel(unit)
    axis.margins(x=0.02)
    return handles


@_drawing("rates")
def rate_map(ledger: Ledger, *, page: bool = False) -> str:
    """Firing rate of every neuron layer at every step."""
    neurons = ledger.of("neuron")
    rates = [[layer.rate(t) for t in range(layer.rows)] for layer in neurons]
    steps = ledger.steps
    figure, (axis,) = _figure(min(8.6, 3.6 + 0.6 * steps), 1.2 + 0.24 * len(neurons))
    top = max((rate for row in rates for rate in row), default=0.0) or 1.0
    columns, places = [t - 0.5 for t in range(steps + 1)], [i - 0.5 for i in range(len(neurons) + 1)]
    many = len(neurons) * steps > CELLS
    image = axis.pcolormesh(columns, places, rates, cmap="viridis", vmin=0.0, vmax=top, rasterized=many)
    axis.invert_yaxis()
    if steps <= 10:
        for i, row in enumerate(rates):
            for t, rate in enumerate(row):
                colour = "#111111" if rate > 0.55 * top else "#f5f5f5"
                axis.text(t, i, f"{100 * rate:.1f}", ha="center", va="center", color=colour, fontsize=7.5)
    axis.set_yticks(range(len(neurons)), [layer.source or layer.name for layer in neurons])
    marks = range(0, steps, max(1, steps // 10))
    axis.set_xticks(list(marks), [str(t + 1) for t in marks])
    axis.set_xlabel("time step")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axis, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.solids.set_rasterized(False)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
    bar.set_label("neurons that fire")
    return _svg(figure, page)


@dataclass(frozen=True)
class Series:
    """Points of one curve of a panel; `style` is what matplotlib's `plot` takes."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: Mapping[str, Any]


@dataclass(frozen=True)
class Panel:
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    x_ticks: Sequence[tuple[float, str]]
    line: float | None = None
    """A height to mark, as that of the baseline."""
    from_zero: bool = False


@_drawing("curves")
def curves(panels: Sequence[Panel], columns: int = 2, *, page: bool = False) -> str:
    """Panels of curves under one legend, so many a row."""
    rows = -(-len(panels) // columns)
    figure, axes = _figure(4.3 * columns, 0.5 + 2.9 * rows, columns, rows)
    for axis, panel in zip(axes, panels, strict=False):
        if panel.line is not None:
            axis.axhline(panel.line, color=_INK, linewidth=0.8, linestyle=":")
        for series in panel.series:
            axis.plot(series.x, series.y, label=series.label, **series.style)
        axis.set_title(panel.title, fontsize=9.5)
        axis.set_xlabel(panel.x_label)
        axis.set_ylabel(panel.y_label)
        axis.set_xticks([x for x, _ in panel.x_ticks], [text for _, text in panel.x_ticks])
        axis.grid(axis="y", color=_INK, alpha=0.15, linewidth=0.6)
        if panel.from_zero:
            axis.set_ylim(bottom=0)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return _svg(figure, page)
