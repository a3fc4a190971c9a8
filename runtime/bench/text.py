"""A benchmark's report as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from stdeploy.runtime.bench.report import BenchReport, Row

_COLUMNS = (
    "",
    "p50",
    "p90",
    "p99",
    "IQR",
    "calls",
    "samples/s",
    "first",
    "peak",
    "ratio of medians [95 %]",
    "outputs",
)


def render(report: BenchReport) -> list[str]:
    """Header, a table for each point, ratios to the baseline; warnings are the caller's to print."""
    plan = report.plan
    lines = [*report.machine.lines(), f"inputs: {report.inputs}"]
    for group, rates in report.rates.items():
        if rates:
            mean = sum(rates.values()) / len(rates)
            lines.append(
                f"firing rate of {group}: mean {mean:.3f} over {len(rates)} layers "
                f"(lowest {min(rates.values()):.3f}, highest {max(rates.values()):.3f})"
            )
    lines.append(
        f"ratios are of {plan.reference}; candidates take turns in processes of their own, seed {plan.seed}"
    )
    for point in report.points:
        lines += ["", f"batch {point.batch}, {point.threads} thread{'s' if point.threads > 1 else ''}"]
        lines += _aligned([_COLUMNS, *(_cells(row) for row in point.rows)])
        lines += [f"  {row.name}: {row.reason}" for row in point.rows if row.status != "ok"]
    software = {row.name: row.software for point in report.points for row in point.rows if row.software}
    lines += ["", *_aligned(list(software.items()))]
    if report.gains:
        lines += ["", "compressed / baseline, ratio of medians [95 %]"]
        lines += _aligned(
            [(g.candidate, f"batch {g.batch}", f"{g.threads} threads", str(g.ratio)) for g in report.gains]
        )
    return lines + [f"note: {note}" for note in report.notes]


def _cells(row: Row) -> tuple[str, ...]:
    s = row.summary
    if s is None:
        return (row.name, row.status, *[""] * (len(_COLUMNS) - 2))
    return (
        row.name,
        _time(s.p50),
        _time(s.p90),
        _time(s.p99),
        _time(s.iqr),
        f"{s.n} in {s.rounds}",
        f"{row.samples_per_s:.3g}",
        _time(row.first_s),
        "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f} MB",
        str(row.ratio or ""),
        str(row.agreement or "the measure"),
    )


def _time(seconds: float | None) -> str:
    """Seconds as a person reads them; - where too few calls were made to say."""
    if seconds is None:
        return "-"
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.0f} µs"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
