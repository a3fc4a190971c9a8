"""Threads that wait for work: started when they are first needed, and anew in a process that was forked."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

_groups = itertools.count()


class Threads:
    """`count` threads at most. The threads of a process are not in its forked children: those start their own.

    `pinned`: each keeps to a CPU of its own, where there are enough. Threads that wait for each other many times in some
    milliseconds are lost when they share one: Linux woke both on the same CPU in about half of all sessions.
    """

    def __init__(self, count: int, *, pinned: bool = False) -> None:
        self._count, self._pinned = count, pinned
        self._pool: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have a thread call the function."""
        if self._pool is None or self._process != os.getpid():
            begin = _pinner(self._count) if self._pinned else None
            self._pool, self._process = ThreadPoolExecutor(self._count, initializer=begin), os.getpid()
        return self._pool.submit(function, *arguments)

    def close(self) -> None:
        """Wait for what was submitted and end the threads; later work starts new ones."""
        if self._pool is not None and self._process == os.getpid():
            self._pool.shutdown(wait=True)
        self._pool = None


def _pinner(count: int) -> Callable[[], None] | None:
    """What binds each of `count` threads that calls it to the next CPU; None where the CPUs are too few or cannot be set.

    Where threads begin differs from process to process: workers of one server would all take the first CPUs.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    try:
        cpus = sorted(os.sched_getaffinity(0), key=lambda cpu: (_rank(cpu), cpu))
    except OSError:
        return None
    if count > len(cpus):
        return None
    order = itertools.count((os.getpid() + next(_groups)) * count)

    def pin() -> None:
        with contextlib.suppress(OSError):  # forbidden here, or the CPU was taken away: slower, not wrong
            os.sched_setaffinity(0, {cpus[next(order) % len(cpus)]})

    return pin


def _rank(cpu: int) -> int:
    """0 for the first hardware thread of a core, 1 for the second; 0 where the system does not tell."""
    siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        first, _, last = siblings.read_text().replace("-", ",").strip().partition(",")
        return int(bool(last) and int(first) != cpu)
    except (OSError, ValueError):
        return 0
