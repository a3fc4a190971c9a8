"""Artefacts that do not claim the model's spikes (fewer bits): what they change, measured, never silent.

Such a file says `approximate` in its metadata. Where an executor has a `reference`, software of ours that defines what
the file computes, the two have to agree in every bit; the effect is then the reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stdeploy.errors import ParityError
from stdeploy.graph.execution import Execution, Executor
from stdeploy.graph.graph import Graph
from stdeploy.graph.interpreter import Interpreter
from stdeploy.graph.weight import Array
from stdeploy.quantise import Effect, batches, measure

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Approximation:
    """What one executor of an approximate artefact computes, against the exact graph.

    `reference`: what it equals bit for bit, `spikes_equal` spikes of them; None where nothing defines its bits.
    """

    executor: str
    how: str
    reference: str | None
    spikes_equal: int
    effect: Effect

    def summary(self) -> str:
        """What the command line prints: what agrees with what, and the effect."""
        agree = f"{self.executor} = {self.reference}: {self.spikes_equal:,} spikes equal bit for bit\n"
        return f"{agree if self.reference else ''}approximate ({self.how}): {self.effect.summary()}"

    def render(self) -> RenderableType:
        """A row per neuron layer: spikes that change in a free run, and given the exact network's own input."""
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("neuron layer")
        for title in ("spikes", "change", "change on exact input", "rate before", "after"):
            table.add_column(title, justify="right")
        for name, layer in self.effect.layers.items():
            counts = (f"{n:,}" for n in (layer.spikes, layer.changed, layer.changed_alone))
            table.add_row(name, *counts, f"{layer.rate_before:.3f}", f"{layer.rate_after:.3f}")
        return table

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "effect": self.effect.to_dict()}


def approximation_of(candidate: Executor) -> str | None:
    """How an executor's artefact approximates its model, as its metadata say; None where it claims to be exact."""
    file: Any = getattr(candidate, "file", None)
    stated = None if file is None else file.metadata.get("approximate")
    return None if stated is None else str(stated)


def measure_all(
    exported: Graph,
    candidates: Sequence[Executor],
    inputs: Array,
    labels: Array | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Approximation]:
    """Measure every executor of an approximate artefact of `exported`; ParityError where one is not its reference."""
    exact = Interpreter(exported, np.float32)
    out = []
    for candidate in candidates:
        reference: Executor | None = getattr(candidate, "reference", None)
        equal = 0 if reference is None else _require_equal(candidate, reference, batches(exported, inputs))
        effect = measure(exact, reference or candidate, exported, inputs, labels, progress)
        name = None if reference is None else reference.name
        out.append(Approximation(candidate.name, approximation_of(candidate) or "", name, equal, effect))
    return out


def _require_equal(candidate: Executor, reference: Executor, parts: Sequence[Array]) -> int:
    """Spikes compared; ParityError that names the layers and outputs in which the two differ."""
    compared = 0
    differ: dict[str, int] = {}
    for part in parts:
        got, wanted = candidate.run(part), reference.run(part)
        compared += sum(spikes.size for spikes in wanted.spikes.values())
        for name, count in _differences(got, wanted):
            differ[name] = differ.get(name, 0) + count
    if differ:
        listed = ", ".join(f"{name} ({count:,})" for name, count in list(differ.items())[:3])
        rest = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise ParityError(
            f"{candidate.name} and {reference.name} differ in {listed}{rest}",
            hint="this is a bug in stdeploy or in the runtime: please report it with the file",
        )
    return compared


def _differences(got: Execution, wanted: Execution) -> list[tuple[str, int]]:
    pairs = {name: (got.spikes.get(name), spikes) for name, spikes in wanted.spikes.items()}
    pairs |= {label: (got.outputs.get(label), value) for label, value in wanted.outputs.items()}
    found = []
    for name, (a, b) in pairs.items():
        count = b.size if a is None or a.shape != b.shape else int((a != b).sum())
        if count:
            found.append((name, count))
    return found
