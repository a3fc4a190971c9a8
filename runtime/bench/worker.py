"""A worker process: holds one candidate, and computes only while it is asked to.

`python -m stdeploy.runtime.bench.worker PARENT` reads one JSON request a line from stdin and answers with one a
line on the stdout that it was started with; whatever libraries print goes to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stdeploy.errors import StdeployError
from stdeploy.graph.weight import Array
from stdeploy.runtime.bench.turns import Timed
from stdeploy.runtime.sessions import Prepared

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Candidate(Protocol):
    """What a factory makes: `name` states the software, its version and what it runs on."""

    @property
    def name(self) -> str: ...

    def prepare(self, inputs: Array) -> Prepared:
        """The candidate with a batch of inputs, ready to be run."""
        ...


class Worker:
    """The requests that a worker answers, by name."""

    def __init__(self) -> None:
        self._candidate: Candidate | None = None
        self._prepared: Prepared | None = None
        self._rested: tuple[float, float] | None = None

    def load(self, factory: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Make the candidate: `factory` is package.module:function."""
        module, _, function = factory.partition(":")
        start = time.perf_counter()
        self._candidate = getattr(importlib.import_module(module), function)(**arguments)
        seconds = time.perf_counter() - start
        return {"name": self._candidate.name, "seconds": seconds}

    def bind(self, inputs: str) -> dict[str, Any]:
        """Take a batch (an .npy file) and run it once; seconds of that first call, preparation included."""
        if self._candidate is None:
            raise RuntimeError("bind before load")
        array = np.load(inputs, allow_pickle=False)
        start = time.perf_counter()
        self._prepared = self._candidate.prepare(array)
        self._prepared.call()
        return {"seconds": time.perf_counter() - start}

    def outputs(self, path: str) -> dict[str, Any]:
        """Write the last call's outputs, in the model's order, to an .npz file."""
        arrays = self._bound().outputs()
        np.savez(path, *arrays.values())
        return {"names": list(arrays)}

    def turn(self, calls: int) -> dict[str, Any]:
        """See `turns.Player`; with the CPU time that this process took since its last turn ended."""
        stolen = None
        if self._rested is not None:
            stolen = [time.process_time() - self._rested[0], time.perf_counter() - self._rested[1]]
        turn = Timed(self._bound().call).turn(calls)
        self._rested = time.process_time(), time.perf_counter()
        return {"seconds": turn.seconds, "start": turn.start, "end": turn.end, "between": stolen}

    def memory(self) -> dict[str, Any]:
        """Largest resident set of this process so far, in bytes."""
        return {"peak_bytes": peak_bytes()}

    def _bound(self) -> Prepared:
        if self._prepared is None:
            raise RuntimeError("no batch is bound")
        return self._prepared


def peak_bytes() -> int:
    """Largest resident set of this process.

    `ru_maxrss` would count the process that started this one: Linux keeps it across exec.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def serve(parent: int) -> None:
    """Answer requests until stdin ends."""
    _die_with(parent)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        request: dict[str, Any] = json.loads(line)
        handler: Callable[..., dict[str, Any]] = getattr(worker, request.pop("do"))
        try:
            answer = handler(**request)
        except StdeployError as error:
            answer = {"error": str(error)}
        except Exception as error:  # noqa: BLE001 - a candidate is others' software; its failure is a result
            traceback.print_exc()
            text = str(error).strip().splitlines()
            answer = {"error": f"{type(error).__name__}: {text[0] if text else 'no message'}"}
        answers.write(json.dumps(answer) + "\n")


def _die_with(parent: int) -> None:
    """End when the benchmark is killed, also in the midst of a call (Linux; elsewhere at the next request)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
