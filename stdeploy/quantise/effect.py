"""What an approximation changes: two networks with the same neuron layers on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stdeploy.graph.execution import Executor, answers
from stdeploy.graph.graph import Graph
from stdeploy.graph.ops import Output
from stdeploy.graph.weight import Array
from stdeploy.verify import batch_axis, batch_for


@dataclass(frozen=True, eq=False)
class Inputs:
    """What to measure on: inputs in the model's layout, labels [n] where known; `real`: the user's, not random."""

    inputs: Array
    labels: Array | None
    real: bool


@dataclass(frozen=True)
class LayerEffect:
    """Spikes of one neuron layer: `changed` of `spikes` (slots) differ; `changed_alone`: on the original's own input.

    `rate_before`, `rate_after`: spikes per neuron and step.
    """

    spikes: int
    changed: int
    changed_alone: int
    rate_before: float
    rate_after: float


@dataclass(frozen=True)
class OutputEffect:
    """One output. `answers`: how many argmax there are to compare (0: it is no vector of scores)."""

    largest_change: float
    rms_change: float
    answers: int
    agree: int
    correct_before: int | None
    correct_after: int | None


@dataclass(frozen=True)
class Effect:
    """Everything `measure` found, by neuron layer and by output label."""

    samples: int
    layers: dict[str, LayerEffect]
    outputs: dict[str, OutputEffect]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        """One line: spikes, outputs, agreement, accuracy."""
        changed, slots = (sum(getattr(la, f) for la in self.layers.values()) for f in ("changed", "spikes"))
        parts = [
            f"{self.samples} inputs",
            f"{changed:,} of {slots:,} spikes change ({changed / max(1, slots):.2%})",
        ]
        for output in self.outputs.values():
            parts.append(f"output moves by {output.largest_change:.2g}, rms {output.rms_change:.2g}")
            if output.answers:
                parts.append(f"argmax {output.agree}/{output.answers} the same")
            if output.correct_before is not None and output.correct_after is not None:
                shares = (100 * n / output.answers for n in (output.correct_before, output.correct_after))
                parts.append("accuracy {:.2f} % before, {:.2f} % after".format(*shares))
        return "  ".join(parts)


def batches(graph: Graph, inputs: Array) -> list[Array]:
    """`inputs` (the Input's layout) in batches that fit into memory."""
    axis, size = batch_axis(graph), batch_for(graph)
    starts = range(0, inputs.shape[axis], size)
    return [inputs.take(range(i, min(i + size, inputs.shape[axis])), axis=axis) for i in starts]


def measure(
    before: Executor,
    after: Executor,
    graph: Graph,
    inputs: Array,
    labels: Array | None = None,
    progress: Callable[[int], None] | None = None,
) -> Effect:
    """Run both on `inputs` (the Input's layout, float32); `graph` names the neuron layers of both.

    `labels` [n] adds how often each is right; `progress` is told the number of samples done.
    """
    layers = {node.name: np.zeros(5, dtype=np.int64) for node in graph.neurons}
    outputs = {n.op.label: _Output(n.op.layout) for n in graph.outputs if isinstance(n.op, Output)}
    samples = 0
    for batch in batches(graph, inputs):
        old, new = before.run(batch), after.run(batch)
        alone = after.run(batch, {**old.spikes, **old.selections})
        for name, count in layers.items():
            s, n, a = (run.spikes[name] != 0 for run in (old, new, alone))
            count += [s.size, (s != n).sum(), (s != a).sum(), s.sum(), n.sum()]
        for label, total in outputs.items():
            total.add(old.outputs[label], new.outputs[label])
        samples += batch.shape[batch_axis(graph)]
        if progress is not None:
            progress(samples)
    found = {
        name: LayerEffect(int(c[0]), int(c[1]), int(c[2]), c[3] / c[0], c[4] / c[0])
        for name, c in layers.items()
    }
    return Effect(samples, found, {label: total.result(labels) for label, total in outputs.items()})


class _Output:
    """Running totals of one output."""

    def __init__(self, layout: str) -> None:
        self.layout = layout
        self.largest = self.square = 0.0
        self.count = 0
        self.answers: tuple[list[int], list[int]] = ([], [])

    def add(self, old: Array, new: Array) -> None:
        moved = np.abs(new.astype(np.float64) - old)
        self.largest = max(self.largest, float(moved.max()))
        self.square += float((moved**2).sum())
        self.count += moved.size
        for values, store in zip((old, new), self.answers, strict=True):
            store += answers(values, self.layout)

    def result(self, labels: Array | None) -> OutputEffect:
        old, new = (np.asarray(a, dtype=np.int64) for a in self.answers)
        right = [None if labels is None or not len(a) else int((a == labels).sum()) for a in (old, new)]
        rms = float(np.sqrt(self.square / self.count))
        return OutputEffect(self.largest, rms, len(old), int((old == new).sum()), right[0], right[1])
