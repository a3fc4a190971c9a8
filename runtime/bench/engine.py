"""The benchmark itself: workers started, outputs compared, then turns taken, at each point of threads and batch."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stdeploy.graph.weight import Array
from stdeploy.runtime.bench.agreement import Agreement, compare_outputs
from stdeploy.runtime.bench.process import Spec, WorkerProcess
from stdeploy.runtime.bench.report import Plan, Point, Row
from stdeploy.runtime.bench.statistics import FEWEST_ROUNDS, ratio_of_medians, summarise
from stdeploy.runtime.bench.turns import PlayerError, Timeline, take_turns

_WARM_CALLS, _WARM_SECONDS = 3, 0.5
_MOST_CALLS = 50
"""Calls in one turn at most: turns have to be short beside the changes of the machine."""


@dataclass(frozen=True)
class Batches:
    """Inputs by batch size, in the model's layout: `axis` is the batch's. Too few samples are repeated."""

    images: Array
    axis: int = 0

    def take(self, batch: int, start: int = 0) -> Array:
        """`batch` samples from number `start` on, going round."""
        places = [(start + i) % self.images.shape[self.axis] for i in range(batch)]
        return np.ascontiguousarray(self.images.take(places, self.axis))


def measure(
    specs: Sequence[Spec],
    inputs: Batches,
    plan: Plan,
    *,
    log: Callable[[str], None] = lambda _: None,
) -> list[Point]:
    """Measure every candidate at every point of the plan; a candidate that fails is reported and the rest goes on.

    No process outlives the call, however it ends. ValueError where two candidates share a name.
    """
    if len({spec.name for spec in specs}) != len(specs):
        raise ValueError("two candidates have the same name")
    points = []
    for threads in plan.threads:
        with _workers(specs, threads, plan, log) as (workers, loaded):
            for batch in plan.batches:
                here = replace(plan, batches=(batch,), threads=(threads,))
                points.append(_point(workers, loaded, inputs, here, log))
    return points


@contextlib.contextmanager
def _workers(
    specs: Sequence[Spec], threads: int, plan: Plan, log: Callable[[str], None]
) -> Iterator[tuple[dict[str, WorkerProcess], dict[str, Row]]]:
    """A loaded worker for each candidate, and the row of each so far."""
    workers: dict[str, WorkerProcess] = {}
    rows: dict[str, Row] = {}
    try:
        for spec in specs:
            log(f"loading {spec.name}")
            workers[spec.name] = worker = WorkerProcess(spec, threads, plan.timeout)
            try:
                loaded = worker.load()
                rows[spec.name] = Row(
                    spec.name, spec.group, "ok", software=loaded["name"], load_s=loaded["seconds"]
                )
            except PlayerError as error:
                rows[spec.name] = Row(spec.name, spec.group, "failed", str(error))
        yield workers, rows
    finally:
        for worker in workers.values():
            worker.kill()  # all of them at once, before any is waited for
        for worker in workers.values():
            worker.close()


def _point(
    workers: dict[str, WorkerProcess],
    loaded: dict[str, Row],
    inputs: Batches,
    plan: Plan,
    log: Callable[[str], None],
) -> Point:
    """Compare, warm up and time the candidates that loaded."""
    batch, threads = plan.batches[0], plan.threads[0]
    rows = _compared(workers, loaded, inputs, plan, log)
    players = {name: workers[name] for name, row in rows.items() if row.status == "ok"}
    costs: dict[str, float] = {}
    for name, worker in list(players.items()):
        try:
            costs[name] = _warm(worker)
            worker.between.clear()
        except PlayerError as error:
            rows[name] = replace(rows[name], status="failed", reason=str(error))
            del players[name]
    if not players:
        return Point(threads, batch, tuple(rows.values()))
    rounds, calls = schedule(costs, plan)
    log(f"timing {len(players)} candidates: {rounds} rounds, batch {batch}, {threads} threads")
    line = take_turns(players, rounds, calls, seed=plan.seed)
    for name in players:
        rows[name] = _timed(rows[name], workers[name], line, calls[name], batch)
    _ratios(rows, plan)
    return Point(threads, batch, tuple(rows.values()), tuple(line.order()), len(line.overlaps()))


def _compared(
    workers: dict[str, WorkerProcess],
    loaded: dict[str, Row],
    inputs: Batches,
    plan: Plan,
    log: Callable[[str], None],
) -> dict[str, Row]:
    """Outputs of every candidate on the check samples, against the first of its group; the timed batch is bound last."""
    batch = plan.batches[0]
    rows = dict(loaded)
    first: dict[str, list[Array]] = {}
    with tempfile.TemporaryDirectory() as folder:
        starts = list(range(0, max(plan.check, batch), batch))
        paths = [Path(folder) / f"{start}.npy" for start in starts]
        for start, path in zip(starts, paths, strict=True):
            np.save(path, inputs.take(batch, start))
        for name, row in loaded.items():
            if row.status != "ok":
                continue
            log(f"comparing {name} at batch {batch}")
            try:
                outputs, seconds = _outputs(workers[name], paths)
            except PlayerError as error:
                rows[name] = replace(row, status="failed", reason=str(error))
                continue
            agreement = compare_outputs(first.setdefault(row.group, outputs), outputs)
            rows[name] = _judged(replace(row, first_s=seconds), agreement, first[row.group] is outputs)
    return rows


def _outputs(worker: WorkerProcess, paths: Sequence[Path]) -> tuple[list[Array], float]:
    """Outputs over all chunks, score vectors in order, and the seconds of the very first call."""
    results = [worker.outputs(path) for path in [*paths[1:], paths[0]]]
    joined = [
        np.concatenate([_vectors(a) for a in parts])
        for parts in zip(*(arrays for arrays, _ in results), strict=True)
    ]
    return joined, results[0][1]


def _vectors(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(-1, 1)


def _judged(row: Row, agreement: Agreement, measure: bool) -> Row:
    """`measure`: whether these are the outputs that the group's others are compared with."""
    if agreement.problem is not None:
        return replace(row, status="mismatch", reason=agreement.problem, agreement=agreement)
    return row if measure else replace(row, agreement=agreement)


def _warm(worker: WorkerProcess) -> float:
    """Run until caches and clocks have settled; median seconds of a call."""
    seconds: list[float] = []
    until = time.monotonic() + _WARM_SECONDS
    while len(seconds) < _WARM_CALLS or time.monotonic() < until:
        seconds += worker.turn(1).seconds
    return float(np.median(seconds))


def schedule(costs: dict[str, float], plan: Plan) -> tuple[int, dict[str, int]]:
    """Rounds, and calls in a turn for each candidate, from the seconds that a call takes.

    Each turn starts with one call that is not timed; both have to fit into the plan's seconds, unless that
    left fewer than five rounds.
    """
    slowest = max(costs.values())
    rounds = min(plan.rounds, max(FEWEST_ROUNDS, int(plan.seconds / (2 * slowest))))
    turn = plan.seconds / rounds
    return rounds, {name: min(_MOST_CALLS, max(1, round(turn / cost) - 1)) for name, cost in costs.items()}


def _timed(row: Row, worker: WorkerProcess, line: Timeline, calls: int, batch: int) -> Row:
    rounds = tuple(tuple(r) for r in line.rounds(row.name))
    if row.name in line.failed:
        return replace(row, status="failed", reason=line.failed[row.name], rounds=rounds)
    try:
        peak = worker.peak_bytes()
    except PlayerError as error:
        return replace(row, status="failed", reason=str(error), rounds=rounds)
    seconds = list(itertools.chain.from_iterable(rounds))
    idle = sum(wall for _, wall in worker.between)
    return replace(
        row,
        calls_per_turn=calls,
        summary=summarise(rounds),
        samples_per_s=batch * len(seconds) / sum(seconds),
        peak_bytes=peak,
        meddling=sum(cpu for cpu, _ in worker.between) / idle if idle else None,
        rounds=rounds,
    )


def _ratios(rows: dict[str, Row], plan: Plan) -> None:
    """Ratio of each row's median to the reference's."""
    reference = rows.get(plan.reference or "") or next((r for r in rows.values() if r.summary), None)
    if reference is None or reference.summary is None:
        return
    for name, row in rows.items():
        if row.summary is not None:
            ratio = ratio_of_medians(row.rounds, reference.rounds, seed=plan.seed)
            rows[name] = replace(row, ratio=ratio)
