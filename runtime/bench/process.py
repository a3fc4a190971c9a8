"""The benchmark's side of a worker process: start it, ask it, and end it whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stdeploy.graph.weight import Array
from stdeploy.runtime.bench.turns import PlayerError, Turn

_PATIENCE = 2.0
"""Seconds that a worker gets to end by itself."""

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Spec:
    """One candidate: `factory` (package.module:function) makes it of `arguments` and `threads` in a worker process.

    Outputs are compared with those of the first candidate of the same `group`.
    """

    name: str
    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    group: str = "model"


class WorkerProcess:
    """A candidate in a process of its own; PlayerError where it dies, hangs for `timeout` seconds or fails."""

    def __init__(self, spec: Spec, threads: int, timeout: float) -> None:
        self.spec, self.threads, self.timeout = spec, threads, timeout
        self.between: list[tuple[float, float]] = []
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
        environment.update(dict.fromkeys(_THREADS, str(threads)))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "stdeploy.runtime.bench.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the benchmark alone, which then ends its workers
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the worker was started without pipes")
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._rest = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def load(self) -> dict[str, Any]:
        """Make the candidate; its `name` and the `seconds` it took."""
        arguments = {**self.spec.arguments, "threads": self.threads}
        return self.ask(do="load", factory=self.spec.factory, arguments=arguments)

    def outputs(self, inputs: Path) -> tuple[list[Array], float]:
        """Outputs on a batch, in the model's order, and the seconds of the first call."""
        seconds = float(self.ask(do="bind", inputs=str(inputs))["seconds"])
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/outputs.npz"
            names = self.ask(do="outputs", path=path)["names"]
            with np.load(path, allow_pickle=False) as archive:
                return [archive[f"arr_{i}"] for i in range(len(names))], seconds

    def turn(self, calls: int) -> Turn:
        """See `turns.Player`."""
        answer = self.ask(do="turn", calls=calls)
        if answer["between"] is not None:
            cpu, wall = answer["between"]
            self.between.append((float(cpu), float(wall)))
        return Turn(tuple(answer["seconds"]), answer["start"], answer["end"])

    def peak_bytes(self) -> int:
        """Largest resident set of the worker so far."""
        return int(self.ask(do="memory")["peak_bytes"])

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps(request).encode() + b"\n")
            pipe.flush()
            answer: dict[str, Any] = json.loads(self._line(request["do"]))
        except (BrokenPipeError, EOFError):
            raise PlayerError(self._obituary(request["do"])) from None
        if "error" in answer:
            raise PlayerError(answer["error"])
        return answer

    def _line(self, what: str) -> bytes:
        until = time.monotonic() + self.timeout
        while b"\n" not in self._rest:
            left = until - time.monotonic()
            if left <= 0 or not self._selector.select(left):
                self.kill()
                raise PlayerError(f"no answer to {what} within {self.timeout:g} s; it was ended")
            block = os.read(self._stdout.fileno(), 1 << 16)
            if not block:
                raise EOFError
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _obituary(self, what: str) -> str:
        """How the process ended, and the last thing that it said."""
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"its process closed its pipe during {what} without ending"
        how = f"exit code {code}"
        if code < 0:
            name = signal.Signals(-code).name
            how = f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"its process died during {what}: {how}" + (f"; {said[-1]}" if said else "")

    def kill(self) -> None:
        """End the process and what it started, now."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End the process, in peace where it is idle."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()
            self._selector.close()
            self._stdout.close()
            self._errors.close()
