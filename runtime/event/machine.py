"""A program laid out in memory, and the threads that run it together."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, wait
from typing import Any

import numpy as np

from stdeploy.exporters.event.float_stages import Select
from stdeploy.graph.weight import Array
from stdeploy.runtime.event.jit import Memory
from stdeploy.runtime.event.memory import ALIGNED, Arena, aligned, plan, repeated
from stdeploy.runtime.event.program import OPEN
from stdeploy.runtime.event.program import run as run_stages
from stdeploy.runtime.event.threads import Threads

_KINDS: dict[str, tuple[Any, int]] = {
    "bits": (np.uint64, 8),
    "floats": (np.float32, 4),
    "ints": (np.int32, 4),
}


class Machine:
    """A program for `steps` steps at a time: one arena, used by `threads` threads.

    `stateful`: neurons go on where the last call left them. The arrays are the file's and are never written.
    """

    def __init__(
        self,
        header: Mapping[str, Any],
        arrays: Mapping[str, Array],
        steps: int,
        threads: int,
        *,
        stateful: bool,
    ) -> None:
        self.header, self.steps, self.threads = header, steps, threads
        self.arena: Arena = plan(header, steps, threads, stateful=stateful)
        self.bytes = aligned(self.arena.size)
        self.table = self.arena.table
        self.stages = len(self.table)
        self.synops = np.zeros(self.stages * steps, np.int64)
        self._control = np.zeros(self.stages + 1, np.int64)
        self._weights, self._indices = _read_only(arrays["weights"]), _read_only(arrays["indices"])
        self._pool = Threads(threads, pinned=True)

    def array(self, buffer: str) -> Array:
        """A buffer's elements, flat: uint64, float32 or int32."""
        entry = self.header["buffers"][buffer]
        kind, width = _KINDS[entry["kind"]]
        start, count = self.arena.places[buffer], entry["count"] * repeated(entry, self.steps)
        return self.bytes[start : start + width * count].view(kind)

    def run(self, first: int, last: int, step: int = 0, *, counting: bool = False) -> None:
        """Run stages first..last on all threads; `step`: how many steps the state has seen.

        Where it is interrupted the threads are waited for, and the buffers hold nothing of use.
        """
        if first == last:
            return
        if self._control[0] >= OPEN:
            self.close()
        self._control[:] = 0
        if self.threads == 1:
            run_stages(self._memory(0, step, counting), self.table, first, last, 1)
            return
        try:
            shares = [
                self._pool.submit(
                    run_stages, self._memory(k, step, counting), self.table, first, last, self.threads
                )
                for k in range(self.threads)
            ]
            wait(shares, return_when=FIRST_EXCEPTION)
            for share in (s for s in shares if s.done()):
                share.result()
        except BaseException:
            self._control[0] = OPEN  # no stage begins before the one in front of it is whole
            self.close()
            raise

    def compile(self) -> None:
        """Have the kernels compiled, or found where an earlier process left them, without running any."""
        run_stages(self._memory(0, 0, False), self.table, 0, 0, 1)

    def keep_tokens(self, stage: int) -> None:
        """Run a Select again with the positions that lie in its buffer instead of its own."""
        self.table[stage, Select().forced] = 1
        try:
            self.run(stage, stage + 1)
        finally:
            self.table[stage, Select().forced] = 0

    def close(self) -> None:
        """End the threads; a later run starts new ones."""
        self._pool.close()

    def _memory(self, thread: int, step: int, counting: bool) -> Memory:
        return Memory(
            floats=self.bytes.view(np.float32),
            ints=self.bytes.view(np.int32),
            words=self.bytes.view(np.uint64),
            halves=self.bytes.view(np.uint16),
            weights=self._weights,
            indices=self._indices,
            control=self._control,
            synops=self.synops,
            scratch=(self.arena.scratch + thread * self.arena.room) // 4,
            steps=self.steps,
            step=step,
            counting=counting,
        )


def _read_only(array: Array) -> Array:
    """A plain view that cannot be written, at a cache line: numba compiles for one type of array, mapped or not."""
    view = np.asarray(array).view(np.ndarray)
    if view.ctypes.data % ALIGNED:
        copy = aligned(view.nbytes).view(view.dtype)
        copy[:] = view
        view = copy
    view.setflags(write=False)
    return view
