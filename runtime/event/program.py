"""The program: every thread runs every stage's share, and waits for the others between two stages."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from stdeploy.exporters.event import stages
from stdeploy.exporters.event.stages import NUMBER, WIDTH
from stdeploy.runtime.event.attention import pairs, product, tokens
from stdeploy.runtime.event.bits import add_counts, copy_rows, gate, pack, turn, unfold, union, unpack
from stdeploy.runtime.event.cache import compiled
from stdeploy.runtime.event.columns import columns
from stdeploy.runtime.event.frames import (
    affine,
    constant,
    elementwise,
    fire,
    fire_by_position,
    flip,
    gather,
    readout,
    segments,
    select,
)
from stdeploy.runtime.event.jit import Memory, jit
from stdeploy.runtime.event.rows import rows
from stdeploy.runtime.event.scalars import atomic_load, fetch_add, give_way, pointer

PLAIN = {
    "__init__.py",
    "bit_arrays.py",
    "cache.py",
    "contract.py",
    "machine.py",
    "memory.py",
    "session.py",
    "threads.py",
}
"""Files that nothing is compiled from."""
SPINS = 2000
"""Looks at the barrier before a waiting thread offers its core to others."""
OPEN = 1 << 40
"""More arrivals at a barrier than it ever waits for: threads that find as many stop behind their stage."""

_ROWS, _COLUMNS, _TURN, _FLIP = NUMBER["Rows"], NUMBER["Columns"], NUMBER["Turn"], NUMBER["Flip"]
_UNPACK, _PACK, _UNFOLD, _UNION = NUMBER["Unpack"], NUMBER["Pack"], NUMBER["Unfold"], NUMBER["Union"]
_ADD, _COPY, _TOKENS, _PAIRS = NUMBER["AddCounts"], NUMBER["CopyRows"], NUMBER["Tokens"], NUMBER["Pairs"]
_FIRE, _FIRE_P, _ELEMENT = NUMBER["Fire"], NUMBER["FirePositions"], NUMBER["Elementwise"]
_AFFINE, _GATHER, _SEGMENTS = NUMBER["Affine"], NUMBER["Gather"], NUMBER["Segments"]
_PRODUCT, _SELECT, _READOUT = NUMBER["Product"], NUMBER["Select"], NUMBER["Readout"]
_GATE = NUMBER["Gate"]


@jit
def _share(m: Memory, row: Any, stage: int) -> None:
    kind = row[0]
    if kind == _ROWS:
        rows(m, row, stage)
    elif kind == _COLUMNS:
        columns(m, row, stage)
    elif kind == _TURN:
        turn(m, row, stage)
    elif kind == _FLIP:
        flip(m, row, stage)
    elif kind == _UNPACK:
        unpack(m, row, stage)
    elif kind == _PACK:
        pack(m, row, stage)
    elif kind == _UNFOLD:
        unfold(m, row, stage)
    elif kind == _UNION:
        union(m, row, stage)
    elif kind == _ADD:
        add_counts(m, row, stage)
    elif kind == _GATE:
        gate(m, row, stage)
    elif kind == _COPY:
        copy_rows(m, row, stage)
    elif kind == _TOKENS:
        tokens(m, row, stage)
    elif kind == _PAIRS:
        pairs(m, row, stage)
    elif kind == _FIRE:
        fire(m, row, stage)
    elif kind == _FIRE_P:
        fire_by_position(m, row, stage)
    elif kind == _ELEMENT:
        elementwise(m, row, stage)
    elif kind == _AFFINE:
        affine(m, row, stage)
    elif kind == _GATHER:
        gather(m, row, stage)
    elif kind == _SEGMENTS:
        segments(m, row, stage)
    elif kind == _PRODUCT:
        product(m, row, stage)
    elif kind == _SELECT:
        select(m, row, stage)
    elif kind == _READOUT:
        readout(m, row, stage)
    else:
        constant(m, row, stage)


@jit
def _wait(control: Any, threads: int, round_: int) -> bool:
    """Return when all threads have come here for the `round_`-th time; false where they are to stop instead."""
    fetch_add(control, 0, 1)
    looks = 0
    arrived = atomic_load(control, 0)
    while arrived < threads * round_:
        looks += 1
        if looks > SPINS:
            give_way()
        arrived = atomic_load(control, 0)
    return bool(arrived < OPEN)


def sources() -> list[Path]:
    """Files of all that is compiled in."""
    own = (path for path in Path(__file__).parent.glob("*.py") if path.name not in PLAIN)
    return [*sorted(Path(stages.__file__).parent.glob("*stages.py")), *sorted(own)]


def _digest() -> str:
    """Of the sources: numba's cache looks only at the file of the function that it caches."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources())).hexdigest()


def _compiled(digest: str) -> Any:
    """The program, compiled when it is first called; numba's cache tells programs of other digests apart."""

    def run(m: Memory, table: Any, first: int, last: int, threads: int) -> int:
        at = Memory(
            pointer(m.floats, 0),
            pointer(m.ints, 0),
            pointer(m.words, 0),
            pointer(m.halves, 0),
            pointer(m.weights, 0),
            pointer(m.indices, 0),
            pointer(m.control, 0),
            pointer(m.synops, 0),
            m.scratch,
            m.steps,
            m.step,
            m.counting,
        )
        for stage in range(first, last):
            _share(at, pointer(table, stage * WIDTH), stage)
            if threads > 1 and not _wait(at.control, threads, stage - first + 1):
                break
        return len(digest)

    return compiled(run, nogil=True, error_model="numpy")


run = _compiled(_digest())
"""Run stages first..last of a table as one of `threads` threads; `control` is zero before, for all of them."""
