"""The report of a comparison: what was compared, what differed, and what explains it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA_VERSION = 1
_LISTED = 20
"""Mismatches printed one by one on a terminal; the JSON form lists many more."""

KINDS = ("rounding", "after a flip", "unexplained")
SELECTION_KINDS = ("rounding", "tie", "unexplained")


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One spike that differs under teacher forcing.

    `unit`: channel (of the model's layer) and position. `distance`: the candidate's exact membrane minus the
    threshold, in the model's membrane units; `bound`: how far float32 may move it.
    """

    layer: str
    step: int
    sample: int
    unit: tuple[int, ...]
    reference: int
    candidate: int
    distance: float
    bound: float
    kind: str


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One neuron layer. `present` is False where passes proved it removable or merged it with its equal."""

    name: str
    shape: tuple[int, ...]
    present: bool
    firing_rate: float
    spikes_compared: int
    mismatches_by_step: tuple[int, ...]
    explained: int
    after_flip: int
    unexplained: int
    reference_unexplained: int
    largest_distance: float
    largest_share_of_bound: float

    @property
    def mismatches(self) -> int:
        return sum(self.mismatches_by_step)


@dataclass(frozen=True, slots=True)
class OutputReport:
    """One output. Differences are of the free runs; `unexplained` counts samples beyond the rounding bound.

    Of a free run only samples without any flipped spike are held to the bound; under forcing all are.
    """

    label: str
    max_difference: float
    mean_difference: float
    samples: int
    argmax_agree: int
    reference_correct: int | None
    candidate_correct: int | None
    samples_with_flips: int
    unexplained_samples: int
    forced_unexplained_samples: int
    reference_unexplained_samples: int


@dataclass(frozen=True, slots=True)
class SelectionMismatch:
    """One step of one sample for which other tokens are kept (or the same in another order) on the same input.

    `lost` are kept by the reference alone, `gained` by the candidate alone. `margin`: how far apart the exact
    scores are of what takes each other's place; `bound`: how far float32 may move a score.
    """

    layer: str
    step: int
    sample: int
    lost: tuple[int, ...]
    gained: tuple[int, ...]
    margin: float
    bound: float
    kind: str


@dataclass(frozen=True, slots=True)
class SelectionReport:
    """One selection of tokens; `compared` counts steps times samples.

    `tied`: how often equal scores leave it to the tie rule (the lower index). `explained`, `ties` and
    `unexplained`: how often the candidate keeps other tokens because of rounding, of a tie, of neither.
    `reference_ties`: how often the reference breaks a tie otherwise than by the rule.
    """

    name: str
    kept: int
    tokens: int
    compared: int
    tied: int
    explained: int
    ties: int
    unexplained: int
    reference_ties: int
    reference_unexplained: int
    largest_margin: float

    @property
    def mismatches(self) -> int:
        return self.explained + self.ties + self.unexplained


@dataclass(frozen=True)
class Report:
    """Everything `compare` found; `ok` is False where rounding does not explain a difference."""

    reference: str
    candidate: str
    samples: int
    steps: int
    layers: tuple[LayerReport, ...]
    outputs: tuple[OutputReport, ...]
    mismatches: tuple[Mismatch, ...]
    unobserved: tuple[str, ...] = ()
    selections: tuple[SelectionReport, ...] = ()
    selection_mismatches: tuple[SelectionMismatch, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def spikes_compared(self) -> int:
        return sum(layer.spikes_compared for layer in self.layers)

    @property
    def spike_mismatches(self) -> int:
        return sum(layer.mismatches for layer in self.layers)

    @property
    def first_divergence(self) -> tuple[str, int] | None:
        """The first layer (in network order) and step whose spikes differ."""
        for layer in self.layers:
            for step, count in enumerate(layer.mismatches_by_step):
                if count:
                    return layer.name, step
        return None

    @property
    def problems(self) -> list[str]:
        """One sentence for each kind of difference that rounding does not explain."""
        out = []
        for layer in self.layers:
            if layer.unexplained:
                out.append(f"{layer.name}: {layer.unexplained} spikes of {self.candidate} are wrong")
            if layer.reference_unexplained:
                out.append(
                    f"{layer.name}: {layer.reference_unexplained} spikes of {self.reference} contradict the graph"
                )
        for kept in self.selections:
            for count, who in (
                (kept.unexplained, f"selections of {self.candidate} are wrong"),
                (kept.reference_unexplained, f"selections of {self.reference} contradict the graph"),
            ):
                if count:
                    out.append(f"{kept.name}: {count} {who}")
        for output in self.outputs:
            for count, who in (
                (output.reference_unexplained_samples, f"{self.reference} contradicts the graph"),
                (output.forced_unexplained_samples, f"{self.candidate}, given the same spikes, differs"),
                (output.unexplained_samples, f"{self.candidate} differs though no spike does"),
            ):
                if count:
                    out.append(f"{output.label}: {who} beyond rounding in {count} samples")
        if self.unobserved:
            out.append(f"{self.candidate} shows no spikes or selections of {', '.join(self.unobserved)}")
        return out

    @property
    def warnings(self) -> list[str]:
        """What makes the comparison weaker than it looks."""
        found = [
            f"{layer.name} {'never fires' if layer.firing_rate == 0 else 'fires at every step'} on these inputs"
            for layer in self.layers
            if layer.firing_rate in (0.0, 1.0)
        ]
        for kept in self.selections:
            if kept.ties or kept.reference_ties:
                found.append(f"{kept.name}: ties were broken otherwise than by the lower index")
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON form; membranes and bounds in the model's membrane units, rates in spikes per neuron and step."""
        return {
            "schema_version": SCHEMA_VERSION,
            "ok": self.ok,
            "spikes_compared": self.spikes_compared,
            "spike_mismatches": self.spike_mismatches,
            "problems": self.problems,
            "warnings": self.warnings,
            **asdict(self),
        }

    def summary(self) -> str:
        """One line: candidate, samples, mismatches, largest output difference, agreement."""
        parts = [f"{self.candidate}, {self.samples} inputs"]
        parts.append(f"{self.spike_mismatches:,} of {self.spikes_compared:,} spikes differ")
        if self.selections:
            differ, total = (
                sum(n) for n in zip(*((s.mismatches, s.compared) for s in self.selections), strict=True)
            )
            parts.append(f"{differ:,} of {total:,} selections differ")
        for output in self.outputs:
            parts.append(f"max|d| {output.max_difference:.1e}")
            if output.samples:
                parts.append(f"argmax {output.argmax_agree}/{output.samples}")
            if output.reference_correct is not None and output.candidate_correct is not None:
                shares = (
                    100 * n / output.samples for n in (output.candidate_correct, output.reference_correct)
                )
                parts.append("accuracy {:.2f} % (reference {:.2f} %)".format(*shares))
        return "  ".join(parts) + ("  ok" if self.ok else "  FAILED")

    def render(self, *, limit: int = _LISTED) -> RenderableType:
        """The report for a terminal: a row per neuron layer, the outputs, and the mismatches one by one."""
        from rich.console import Group
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("neuron layer")
        for title in (
            "rate",
            "compared",
            "differ",
            "rounding",
            "after a flip",
            "wrong",
            "|h-θ| max",
            "of bound",
        ):
            table.add_column(title, justify="right")
        for layer in self.layers:
            if not layer.present:
                table.add_row(layer.name, f"{layer.firing_rate:.3f}", "removed or merged by a pass")
                continue
            wrong = layer.unexplained + layer.reference_unexplained
            table.add_row(
                layer.name,
                f"{layer.firing_rate:.3f}",
                f"{layer.spikes_compared:,}",
                f"{layer.mismatches:,}",
                f"{layer.explained:,}",
                f"{layer.after_flip:,}",
                f"{wrong:,}",
                f"{layer.largest_distance:.1e}" if layer.explained else "",
                f"{layer.largest_share_of_bound:.1%}" if layer.explained else "",
            )
        lines = [f"reference {self.reference} | candidate {self.candidate}"]
        return Group("\n".join(lines), table, "\n".join(self._text(limit)))

    def _text(self, limit: int) -> list[str]:
        lines = []
        first = self.first_divergence
        if first is not None:
            lines.append(f"first difference at {first[0]} t={first[1]}")
        for m in self.mismatches[:limit]:
            unit = ",".join(str(i) for i in m.unit)
            lines.append(
                f"  {m.layer}({unit}) t={m.step} sample {m.sample}: {m.reference} became {m.candidate}, "
                f"h-θ = {m.distance:+.2e}, bound {m.bound:.1e}: {m.kind}"
            )
        for kept in self.selections:
            lines.append(
                f"{kept.name} keeps {kept.kept} of {kept.tokens} tokens: {kept.compared:,} compared, "
                f"{kept.mismatches:,} differ ({kept.explained:,} rounding, {kept.ties:,} ties, "
                f"{kept.unexplained + kept.reference_unexplained:,} wrong); {kept.tied:,} left to the tie rule"
            )
        for s in self.selection_mismatches[:limit]:
            lost, gained = (",".join(str(i) for i in tokens) or "none" for tokens in (s.lost, s.gained))
            swapped = f"tokens {lost} became {gained}" if s.lost else "the order of the tokens changed"
            lines.append(
                f"  {s.layer} t={s.step} sample {s.sample}: {swapped}, "
                f"scores {s.margin:.2e} apart, bound {s.bound:.1e}: {s.kind}"
            )
        if self.spike_mismatches > limit:
            lines.append(f"  ... {self.spike_mismatches - limit} more (--json lists up to 1000 a layer)")
        lines += [f"problem: {text}" for text in self.problems]
        lines.append(self.summary())
        return lines
