"""Latency against batch size as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stdeploy.errors import UserError
from stdeploy.files import atomic_write
from stdeploy.runtime.bench.report import BenchReport

SUFFIXES = (".svg", ".png")


def require_plotting(path: Path) -> None:
    """UserError where the picture could not be written: an unknown suffix, a missing folder, no matplotlib."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"--plot {path}: its suffix is none of {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--plot {path}: its folder does not exist")
    _matplotlib()


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("--plot needs matplotlib", hint='pip install "stdeploy[plots]"') from error
    matplotlib.use("Agg")  # no display is needed to write a file
    return matplotlib


def plot_latency(report: BenchReport, path: Path) -> Path:
    """Median latency of each candidate against the batch size, a panel for each number of threads.

    Bars reach from the quartile below to the one above by half the quartiles' distance each. The file
    appears whole or not at all; UserError as `require_plotting`.
    """
    require_plotting(path)
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure

    threads = sorted({point.threads for point in report.points})
    figure = Figure(figsize=(1.2 + 4.4 * len(threads), 3.8), layout="constrained")
    axes = figure.subplots(1, len(threads), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(row.name for point in report.points for row in point.rows))
    for axis, count in zip(axes, threads, strict=True):
        for i, name in enumerate(names):
            found = sorted(
                (point.batch, row.summary.p50, row.summary.iqr / 2)
                for point in report.points
                for row in point.rows
                if point.threads == count and row.name == name and row.summary is not None
            )
            if found:
                x, y, bar = (list(part) for part in zip(*found, strict=True))
                axis.errorbar(
                    x,
                    [1e3 * v for v in y],
                    [1e3 * v for v in bar],
                    label=name,
                    color=f"C{i}",
                    marker="o",
                    markersize=4,
                    capsize=3,
                )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        batches = sorted({point.batch for point in report.points})
        axis.set_xticks(batches, [str(b) for b in batches])
        axis.set_title(f"{count} thread{'s' if count > 1 else ''}", fontsize=10)
        axis.set_xlabel("batch size")
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("latency, ms (median, half the IQR)")
    axes[0].legend(fontsize=8)
    figure.suptitle(report.machine.lines()[0], fontsize=8)
    with matplotlib.rc_context({"svg.hashsalt": "stdeploy"}), atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150)
    return path
