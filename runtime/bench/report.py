"""What a benchmark found: rows of candidates at points of threads and batch, with warnings, as JSON and as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from stdeploy.runtime.bench.agreement import Agreement
from stdeploy.runtime.bench.machine import Machine
from stdeploy.runtime.bench.statistics import Ratio, Summary, ratio_of_medians

SCHEMA_VERSION = 1

DRIFT = 0.05
"""Change of the median from the first half of the rounds to the second that is worth a warning."""

BASELINE = "baseline:"
"""Prefix of the candidates that run the uncompressed network."""

MEDDLING = 0.05
"""Share of a core that a candidate may take while others are timed."""

Status = Literal["ok", "failed", "mismatch"]


@dataclass(frozen=True)
class Plan:
    """What to measure and how long.

    `seconds`: timed seconds for each candidate at each point, spent in `rounds` turns; slow candidates get
    fewer rounds, at least five. `reference`: the candidate that ratios are of. `check`: samples on which
    outputs are compared first. `timeout`: seconds that one step of one candidate may take.
    """

    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (1,)
    reference: str | None = None
    rounds: int = 20
    seconds: float = 4.0
    timeout: float = 600.0
    check: int = 16
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One candidate at one point. Seconds, bytes; what could not be measured is None, and `reason` says why.

    `peak_bytes`: largest resident set of the candidate's own process so far, libraries included.
    `meddling`: CPU seconds per second that it took while others had their turn.
    """

    name: str
    group: str
    status: Status
    reason: str | None = None
    software: str | None = None
    load_s: float | None = None
    first_s: float | None = None
    calls_per_turn: int | None = None
    summary: Summary | None = None
    samples_per_s: float | None = None
    ratio: Ratio | None = None
    agreement: Agreement | None = None
    peak_bytes: int | None = None
    meddling: float | None = None
    rounds: tuple[tuple[float, ...], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON form; latencies in milliseconds, all timed calls by round under `latency_ms_by_round`."""
        s = self.summary
        keys = {"p50": "p50", "p90": "p90", "p99": "p99", "mean": "mean", "sd": "sd", "iqr": "iqr"}
        keys |= {"min": "minimum", "max": "maximum"}
        times = {key: None if s is None else getattr(s, name) for key, name in keys.items()}
        latency = {f"latency_ms_{key}": None if t is None else 1e3 * t for key, t in times.items()}
        return {
            "candidate": self.name,
            "group": self.group,
            "status": self.status,
            "reason": self.reason,
            "software": self.software,
            **latency,
            "calls": s and s.n,
            "rounds": s and s.rounds,
            "calls_per_turn": self.calls_per_turn,
            "drift": s and s.drift,
            "outliers": s and s.outliers,
            "samples_per_s": self.samples_per_s,
            "ratio": self.ratio and self.ratio.to_dict(),
            "agreement": self.agreement and self.agreement.to_dict(),
            "load_s": self.load_s,
            "first_call_s": self.first_s,
            "peak_bytes": self.peak_bytes,
            "cpu_outside_turns": self.meddling,
            "latency_ms_by_round": [[round(1e3 * t, 4) for t in r] for r in self.rounds],
        }


@dataclass(frozen=True)
class Point:
    """All candidates at one number of threads and one batch size; `order`: who had which turn."""

    threads: int
    batch: int
    rows: tuple[Row, ...]
    order: tuple[str, ...] = ()
    overlaps: int = 0

    def row(self, name: str) -> Row:
        """The row of a candidate (KeyError)."""
        return {row.name: row for row in self.rows}[name]


@dataclass(frozen=True)
class Gain:
    """The compressed network's median over its baseline's, both in the same software."""

    candidate: str
    threads: int
    batch: int
    ratio: Ratio

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class BenchReport:
    """Everything measured. `rates`: mean firing rate of each neuron layer by group; `notes` go with the numbers."""

    machine: Machine
    plan: Plan
    points: tuple[Point, ...]
    inputs: str = ""
    rates: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def problems(self) -> list[str]:
        """Candidates that failed or computed something else."""
        found: dict[str, None] = {}
        for point in self.points:
            for row in point.rows:
                if row.status in ("failed", "mismatch"):
                    found[f"{row.name}: {row.reason}"] = None
        return list(found)

    @property
    def warnings(self) -> list[str]:
        """Reasons to doubt the numbers."""
        out = []
        if self.machine.busy:
            out.append(
                f"load average {self.machine.load} on {self.machine.cores} cores before the first turn: other "
                "work was running; trust the ratios more than the times"
            )
        for group, rates in self.rates.items():
            silent = [name for name, rate in rates.items() if rate == 0]
            if silent:
                named = ", ".join(silent[:3]) + (" and others" if len(silent) > 3 else "")
                out.append(
                    f"{group}: {len(silent)} of {len(rates)} neuron layers never fire on these inputs ({named}); "
                    "the speed of a silent network means little"
                )
        for point in self.points:
            at = f"batch {point.batch}, {point.threads} threads"
            if point.overlaps:
                out.append(f"{at}: {point.overlaps} turns overlapped; these numbers are void")
            for row in point.rows:
                s = row.summary
                if s is not None and s.drift is not None and abs(s.drift) > DRIFT:
                    out.append(
                        f"{row.name}, {at}: the median drifted by {s.drift:+.0%} between the halves of the run"
                    )
                if row.meddling is not None and row.meddling > MEDDLING:
                    out.append(
                        f"{row.name}, {at}: took {row.meddling:.0%} of a core while others had their turn"
                    )
        return out

    @property
    def gains(self) -> list[Gain]:
        """The network against its baseline (figure 6 of the papers: runtime), in each software that ran both."""
        out = []
        for point in self.points:
            rows = {row.name: row for row in point.rows if row.summary is not None}
            for name, row in rows.items():
                if (before := rows.get(BASELINE + name)) is not None:
                    ratio = ratio_of_medians(row.rounds, before.rounds, seed=self.plan.seed)
                    out.append(Gain(name, point.threads, point.batch, ratio))
        return out

    def to_dict(self) -> dict[str, Any]:
        """JSON form, stable under `schema_version`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "machine": self.machine.to_dict(),
            "plan": asdict(self.plan),
            "inputs": self.inputs,
            "firing_rates": {
                group: {"mean": _mean(rates), "layers": dict(rates)} for group, rates in self.rates.items()
            },
            "points": [
                {
                    "threads": point.threads,
                    "batch": point.batch,
                    "candidates": [row.to_dict() for row in point.rows],
                    "order": list(point.order),
                    "overlapping_turns": point.overlaps,
                }
                for point in self.points
            ],
            "against_baseline": [gain.to_dict() for gain in self.gains],
            "notes": list(self.notes),
            "warnings": self.warnings,
            "problems": self.problems,
        }


def _mean(rates: Mapping[str, float]) -> float | None:
    return sum(rates.values()) / len(rates) if rates else None
