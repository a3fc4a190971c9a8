"""Differential parity of two executors of one network: spike for spike, each difference explained.

The reference runs freely; its spikes are forced on the candidate's consumers and on a float64
evaluation of the graph (teacher forcing), so every neuron layer is judged on the reference's own input.
Each executor's membranes are then recomputed in float64 along its own spikes, with a bound on what
float32 rounding can do to them (stdeploy.graph.rounding). A spike that disagrees with its own exact membrane by
more than the bound is a bug, whoever fired it; everything else is rounding at the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stdeploy.errors import ParityError, UserError
from stdeploy.graph.execution import Execution, Executor, answers
from stdeploy.graph.graph import Graph
from stdeploy.graph.ops import Input, Neuron, Output, Select
from stdeploy.graph.rounding import Bounded, Drives, drives, membrane
from stdeploy.graph.selection import shared
from stdeploy.graph.weight import Array
from stdeploy.pairing import Pair, neuron_of, pairs, select, take, threshold_of
from stdeploy.parity import KINDS, LayerReport, Mismatch, OutputReport, Report
from stdeploy.selection_parity import selection_totals

MEMORY_BYTES = 1 << 30
"""Working set that `compare` chooses its batch for."""

LISTED_PER_LAYER = 1000
"""Mismatches of one neuron layer that a report lists one by one; it counts all of them."""

_REPORT = "this is a bug in stdeploy or in the runtime: please report it with the file"

_ARRAYS_PER_SPIKE = 12
"""float64 arrays of a neuron layer's size that one comparison holds at a time."""


def compare(
    reference: Executor,
    candidate: Executor,
    graph: Graph,
    inputs: Array,
    *,
    exported: Graph | None = None,
    labels: Array | None = None,
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Compare `candidate` with `reference` on `inputs`; see compare_all."""
    (report,) = compare_all(
        reference,
        [candidate],
        graph,
        inputs,
        exported=exported,
        labels=labels,
        batch=batch,
        progress=progress,
    )
    return report


def compare_all(
    reference: Executor,
    candidates: Sequence[Executor],
    graph: Graph,
    inputs: Array,
    *,
    exported: Graph | None = None,
    labels: Array | None = None,
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Report]:
    """Compare each candidate with `reference`, which runs once, on `inputs` (the Input's layout, float32).

    `graph` is the reference's network with all its neurons; `exported` the one the candidates were made
    from, where passes removed neurons or channels (`Neuron.kept`). `labels` `[n]` adds accuracies. `progress`
    is told the number of samples done. Raises UserError where the inputs do not fit.
    """
    comparisons = [_Comparison(graph, exported or graph, reference.name, c.name) for c in candidates]
    axis = batch_axis(graph)
    samples = inputs.shape[axis] if inputs.ndim > axis else 0
    if samples == 0:
        raise UserError("there is nothing to compare: the input holds no sample")
    if labels is not None and len(labels) != samples:
        raise UserError(f"there are {len(labels)} labels for {samples} samples")
    size = batch or batch_for(graph)
    for start in range(0, samples, size):
        part = np.take(inputs, range(start, min(start + size, samples)), axis=axis).astype(np.float32)
        wanted = reference.run(part)
        exact = drives(graph, part, wanted.spikes, wanted.selections)
        for comparison, candidate in zip(comparisons, candidates, strict=True):
            comparison.add(wanted, exact, candidate, part, start)
        if progress is not None:
            progress(min(start + size, samples))
    return [comparison.report(labels) for comparison in comparisons]


def require(*reports: Report, hint: str = _REPORT) -> None:
    """ParityError where any report found a difference that rounding does not explain; `hint` says what to do."""
    failed = [report for report in reports if not report.ok]
    if failed:
        raise ParityError("; ".join(p for report in failed for p in report.problems), failed[0], hint=hint)


def batch_axis(graph: Graph) -> int:
    """Axis of the batch in the graph's input layout."""
    op = graph.inputs[0].op
    return 1 if isinstance(op, Input) and op.layout == "TB" else 0


def batch_for(graph: Graph, memory: int = MEMORY_BYTES) -> int:
    """Samples that one comparison step may take within `memory` bytes, at most 64."""
    spikes = sum(math.prod(n.value.shape) for n in graph.neurons) * graph.steps
    return max(1, min(64, memory // max(1, 8 * _ARRAYS_PER_SPIKE * spikes)))


@dataclass
class _Layer:
    """Running totals of one neuron layer."""

    compared: int = 0
    fired: int = 0
    emitted: int = 0
    by_step: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    explained: int = 0
    after_flip: int = 0
    unexplained: int = 0
    reference_unexplained: int = 0
    largest_distance: float = 0.0
    largest_share: float = 0.0
    listed: int = 0


class _Comparison:
    """Totals over the batches."""

    def __init__(self, graph: Graph, exported: Graph, reference: str, candidate: str) -> None:
        self.graph, self.exported = graph, exported
        self.names = (reference, candidate)
        self.pairs = list(pairs(graph, exported))
        self.layers = {
            p.source.name: _Layer(by_step=np.zeros(graph.steps, dtype=np.int64)) for p in self.pairs
        }
        self.mismatches: list[Mismatch] = []
        self.outputs: dict[str, _OutputTotals] = {}
        self.selections = selection_totals(graph)
        self.same = shared(graph)
        self.unobserved: set[str] = set()
        self.samples = 0

    def add(self, wanted: Execution, exact: Drives, candidate: Executor, inputs: Array, start: int) -> None:
        """Run the candidate on one batch and add where it differs from `wanted`, the reference's run."""
        forced = {
            p.exported.name: take(wanted.spikes[p.source.name], p.channels)
            for p in self.pairs
            if p.exported is not None and p.source.name in wanted.spikes
        }
        kept = {n.name for n in self.exported.of(Select)}
        forced |= {n: p for n, p in wanted.selections.items() if n in kept}
        taught = candidate.run(inputs, forced)
        free = candidate.run(inputs)
        flipped = np.zeros(inputs.shape[batch_axis(self.graph)], dtype=bool)
        self._selections(wanted, exact, taught, kept, start, flipped)
        for pair in self.pairs:
            flipped |= self._layer(
                pair, wanted.spikes[pair.source.name], taught, exact.neurons[pair.source.name], start
            )
        for node in self.graph.outputs:
            if isinstance(node.op, Output):
                totals = self.outputs.setdefault(node.op.label, _OutputTotals(node.op.layout))
                totals.add(node.op.label, wanted, taught, free, exact.outputs[node.op.label], flipped)
        self.samples += len(flipped)

    def _selections(
        self, wanted: Execution, exact: Drives, taught: Execution, kept: set[str], start: int, flipped: Array
    ) -> None:
        """Compare which tokens are kept on one batch; marks the samples that differ in `flipped`."""
        for name, totals in self.selections.items():
            left = [n for n, first in self.same.items() if first == name and n in kept]
            if not left:
                continue  # passes found that nothing reads it
            if left[0] not in taught.selections or name not in wanted.selections:
                self.unobserved.add(name)
                continue
            flipped |= totals.add(
                exact.scores[name], wanted.selections[name], taught.selections[left[0]], start
            )

    def _layer(self, pair: Pair, spikes: Array, taught: Execution, drive: Bounded, start: int) -> Array:
        """Compare one neuron layer on one batch; returns which samples differ in it."""
        totals = self.layers[pair.source.name]
        op = neuron_of(pair.source)
        totals.fired += _count(spikes)
        totals.emitted += spikes.size
        _, _, wrong = _judge(op, drive, spikes)
        totals.reference_unexplained += _count(wrong)
        if pair.exported is None:
            return np.zeros(spikes.shape[1], dtype=bool)
        if pair.exported.name not in taught.spikes:
            self.unobserved.add(pair.source.name)
            return np.zeros(spikes.shape[1], dtype=bool)
        r = take(spikes, pair.channels)
        c = taught.spikes[pair.exported.name]
        if c.shape != r.shape:
            raise UserError(
                f"{self.names[1]} gives spikes {list(c.shape)} for {pair.source.name}, "
                f"{self.names[0]} {list(r.shape)}",
                hint="was the artefact exported from this model, by this version?",
            )
        totals.compared += r.size
        return self._differences(pair, r, c, take(wrong, pair.channels), drive, start)

    def _differences(self, pair: Pair, r: Array, c: Array, wrong: Array, drive: Bounded, start: int) -> Array:
        """Judge the candidate's spikes `c`; record where they differ from `r`, of which `wrong` are no rounding."""
        totals = self.layers[pair.source.name]
        differ = (c != 0) != (r != 0)
        if not differ.any():  # the same spikes have the same membranes
            totals.unexplained += _count(wrong)
            return np.zeros(c.shape[1], dtype=bool)
        op = select(neuron_of(pair.source), pair.channels)
        drive = Bounded(take(drive.value, pair.channels), take(drive.error, pair.channels))
        distance, bound, own_wrong = _judge(op, drive, c)
        totals.unexplained += _count(own_wrong)
        earlier = np.cumsum(differ, axis=0) - differ > 0
        kinds = np.where(own_wrong | wrong, 2, np.where(earlier, 1, 0))
        totals.by_step += np.count_nonzero(differ.reshape(differ.shape[0], -1), axis=1)
        totals.after_flip += _count(differ & (kinds == 1))
        first = differ & (kinds == 0)
        totals.explained += _count(first)
        if first.any():
            far = np.abs(distance[first])
            totals.largest_distance = max(totals.largest_distance, float(far.max()))
            totals.largest_share = max(totals.largest_share, float((far / bound[first]).max()))
        for place in np.argwhere(differ)[: max(0, LISTED_PER_LAYER - totals.listed)]:
            t, b, *unit = (int(i) for i in place)
            where = (t, b, *unit)
            if pair.channels is not None:
                unit[0] = int(pair.channels[unit[0]])
            totals.listed += 1
            self.mismatches.append(
                Mismatch(
                    pair.source.name,
                    t,
                    start + b,
                    tuple(unit),
                    int(r[where] != 0),
                    int(c[where] != 0),
                    float(distance[where]),
                    float(bound[where]),
                    KINDS[int(kinds[where])],
                )
            )
        samples: Array = differ.any(axis=(0, *range(2, differ.ndim)))
        return samples

    def report(self, labels: Array | None) -> Report:
        """The finished report."""
        kept = {p.source.name: p for p in self.pairs}
        layers = []
        for name, totals in self.layers.items():
            node = kept[name].source
            layers.append(
                LayerReport(
                    name=name,
                    shape=node.value.shape,
                    present=kept[name].exported is not None,
                    firing_rate=totals.fired / max(1, totals.emitted),
                    spikes_compared=totals.compared,
                    mismatches_by_step=tuple(int(n) for n in totals.by_step),
                    explained=totals.explained,
                    after_flip=totals.after_flip,
                    unexplained=totals.unexplained,
                    reference_unexplained=totals.reference_unexplained,
                    largest_distance=totals.largest_distance,
                    largest_share_of_bound=totals.largest_share,
                )
            )
        return Report(
            reference=self.names[0],
            candidate=self.names[1],
            samples=self.samples,
            steps=self.graph.steps,
            layers=tuple(layers),
            outputs=tuple(t.report(label, labels) for label, t in self.outputs.items()),
            mismatches=tuple(self.mismatches),
            unobserved=tuple(sorted(self.unobserved)),
            selections=tuple(t.report() for t in self.selections.values() if t.compared),
            selection_mismatches=tuple(m for t in self.selections.values() for m in t.mismatches),
        )


@dataclass
class _OutputTotals:
    """Running totals of one output."""

    layout: str
    largest: float = 0.0
    total: float = 0.0
    count: int = 0
    beyond: int = 0
    taught_beyond: int = 0
    reference_beyond: int = 0
    flipped: int = 0
    answers: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))

    def add(
        self,
        label: str,
        wanted: Execution,
        taught: Execution,
        free: Execution,
        exact: Bounded,
        flipped: Array,
    ) -> None:
        """Add one batch: `wanted` by the reference, `taught` and `free` by the candidate."""
        axis = 1 if self.layout == "TB" else 0
        over = tuple(i for i in range(exact.value.ndim) if i != axis)
        r, c, f = (np.asarray(e.outputs[label], dtype=np.float64) for e in (wanted, taught, free))
        if f.shape != r.shape:
            raise UserError(f"output {label} has shape {list(f.shape)}, the reference's {list(r.shape)}")
        # Written as "not within", so that a NaN counts as a difference.
        self.reference_beyond += _count(~(np.abs(r - exact.value) <= exact.error).all(axis=over))
        self.taught_beyond += _count(~(np.abs(c - exact.value) <= exact.error).all(axis=over))
        difference = np.where(np.isnan(f - r), np.inf, np.abs(f - r))
        apart = ~(difference <= 2 * exact.error).all(axis=over)
        self.beyond += _count(apart & (~flipped | np.isinf(difference).any(axis=over)))
        self.flipped += _count(flipped)
        self.largest = max(self.largest, float(difference.max()))
        self.total += float(difference.sum())
        self.count += difference.size
        for values, store in zip((r, f), self.answers, strict=True):
            store += answers(values, self.layout)

    def report(self, label: str, labels: Array | None) -> OutputReport:
        """The finished report of this output."""
        r, c = (np.asarray(a, dtype=np.int64) for a in self.answers)
        known = labels is not None and len(r) > 0
        return OutputReport(
            label=label,
            max_difference=self.largest,
            mean_difference=self.total / max(1, self.count),
            samples=len(r),
            argmax_agree=_count(r == c),
            reference_correct=_count(r == labels) if known else None,
            candidate_correct=_count(c == labels) if known else None,
            samples_with_flips=self.flipped,
            unexplained_samples=self.beyond,
            forced_unexplained_samples=self.taught_beyond,
            reference_unexplained_samples=self.reference_beyond,
        )


def _judge(op: Neuron, drive: Bounded, spikes: Array) -> tuple[Array, Array, Array]:
    """Exact membrane minus threshold along the spikes' own resets, its bound, and where `spikes` contradict it."""
    own = membrane(op, drive, spikes)
    distance = own.value - threshold_of(op, spikes.ndim)
    excused = (np.abs(distance) <= own.error) & (own.error > 0)
    return distance, own.error, ((spikes != 0) != (distance >= 0)) & ~excused


def _count(mask: Any) -> int:
    return int(np.count_nonzero(mask))
