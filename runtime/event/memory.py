"""One allocation for a session: where every buffer, every neuron's state and every thread's scratch lies in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stdeploy.errors import UserError
from stdeploy.exporters.event.stages import (
    LANES,
    MOST_VECTORS,
    NUMBER,
    POSITIONS_TOGETHER,
    STAGES,
    STEPS_TOGETHER,
    WIDTH,
)
from stdeploy.graph.weight import Array

ALIGNED = 64
"""Bytes: a cache line."""
SCRATCH = POSITIONS_TOGETHER * (STEPS_TOGETHER + 1) * MOST_VECTORS * LANES
"""Floats of scratch of a thread: Rows hold sums and membranes of some positions and steps; others need less."""
OVERREAD = 4 * 64
"""Bytes behind everything: kernels read 64 positions of a row of floats also where it has fewer."""


@dataclass(frozen=True, eq=False)
class Arena:
    """Byte offsets of the buffers, the program's table, and the arena's size for so many threads.

    Behind the buffers lies the state of neurons and readouts; `scratch` is where the first thread's scratch begins, of
    which each has `room` bytes.
    """

    table: Array
    places: dict[str, int]
    scratch: int
    room: int
    size: int


def _bytes(buffer: Mapping[str, Any], steps: int) -> int:
    width = 8 if buffer["kind"] == "bits" else 4
    raw = width * int(buffer["count"]) * repeated(buffer, steps)
    return max(ALIGNED, -(-raw // ALIGNED) * ALIGNED)


def repeated(buffer: Mapping[str, Any], steps: int) -> int:
    """How often a buffer's elements lie there: once, or for every step."""
    return steps if buffer["stepped"] else 1


def _lifetimes(stages: Sequence[Mapping[str, Any]], kept: set[str]) -> dict[str, tuple[int, int]]:
    """First and last stage that touch each buffer; `kept` ones, and those of stages done once, live from first to last."""
    spans: dict[str, tuple[int, int]] = {}
    for number, stage in enumerate(stages):
        for name in stage["places"].values():
            spans[name] = (spans.get(name, (number, number))[0], number)
    kept = kept.union(*(stage["places"].values() for stage in stages if stage["once"]))
    return {name: (0, len(stages)) if name in kept else span for name, span in spans.items()}


def _assign(sizes: Mapping[str, int], spans: Mapping[str, tuple[int, int]]) -> tuple[dict[str, int], int]:
    """Offsets of buffers that may share memory where their lives do not meet: largest first, lowest fit."""
    placed: list[tuple[int, int, tuple[int, int]]] = []
    places, end = {}, 0
    for name in sorted(sizes, key=lambda n: (-sizes[n], n)):
        first, last = spans[name]
        at = 0
        for start, stop, (other_first, other_last) in sorted(placed):
            if other_first <= last and first <= other_last and at < stop and start < at + sizes[name]:
                at = stop
        placed.append((at, at + sizes[name], spans[name]))
        places[name] = at
        end = max(end, at + sizes[name])
    return places, end


def plan(header: Mapping[str, Any], steps: int, threads: int, *, stateful: bool) -> Arena:
    """Lay out a program for `steps` steps at a time; `stateful`: neurons go on from call to call."""
    stages, buffers = header["stages"], header["buffers"]
    kept = {header["input"]["buffer"], *(out["buffer"] for out in header["outputs"])}
    spans = _lifetimes(stages, kept)
    for name in kept:
        spans.setdefault(name, (0, len(stages)))
    places, end = _assign({name: _bytes(buffers[name], steps) for name in spans}, spans)
    table = np.full((len(stages), WIDTH), -1, np.int64)
    for number, stage in enumerate(stages):
        columns = STAGES[NUMBER[stage["op"]]]()._asdict()  # type: ignore[attr-defined]
        row = table[number]
        row[0] = NUMBER[stage["op"]]
        for field, value in stage["fields"].items():
            row[columns[field]] = value
        for field, stepped in stage["steps"].items():
            row[columns[field]] = steps if stepped else 1
        for field, name in stage["places"].items():
            row[columns[field]] = places[name] // (8 if buffers[name]["kind"] == "bits" else 4)
        if stateful and stage["state"]:
            row[columns["state"]] = end // 4
            end += -(-4 * stage["state"] // ALIGNED) * ALIGNED
    room = -(-4 * SCRATCH // ALIGNED) * ALIGNED
    return Arena(table, places, end, room, end + room * threads + OVERREAD)


def aligned(size: int) -> Array:
    """`size` zero bytes that begin at a cache line; UserError where there is no such room."""
    try:
        raw = np.zeros(size + ALIGNED, np.uint8)
    except MemoryError as error:
        raise UserError(
            f"the program needs {size / 2**30:.1f} GiB of memory for a sample",
            hint="stream it: step() holds one step at a time",
        ) from error
    start = -raw.ctypes.data % ALIGNED
    return raw[start : start + size]
