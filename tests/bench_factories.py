"""Candidates for the tests of the benchmark; worker processes make them by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from stdeploy.errors import UserError
from stdeploy.graph.weight import Array


class Doubler:
    """Outputs are the inputs times `factor`; `trouble` names what goes wrong, `when` at which call."""

    def __init__(
        self, threads: int, factor: float = 2.0, trouble: str = "", when: int = 1, log: str = ""
    ) -> None:
        self.name = f"doubler x{factor:g}, {threads} threads"
        self.factor, self.trouble, self.when, self.log = factor, trouble, when, log
        self.calls = 0
        self.inputs = np.zeros(0)

    def prepare(self, inputs: Array) -> Doubler:
        self.inputs = inputs
        return self

    def call(self) -> None:
        self.calls += 1
        if self.log:
            with Path(self.log).open("a") as stream:
                stream.write(f"{self.name} {time.perf_counter()}\n")
        if self.trouble and self.calls >= self.when:
            trouble(self.trouble)

    def outputs(self) -> dict[str, Array]:
        factor = np.nan if self.trouble == "nan" else self.factor
        return {"out": (factor * self.inputs).reshape(len(self.inputs), -1)}


def trouble(kind: str) -> None:
    if kind == "die":
        print("the last words", file=sys.stderr, flush=True)
        os._exit(3)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "hang":
        time.sleep(600)
    if kind == "raise":
        raise MemoryError("too much\nsecond line")


def doubler(**arguments: object) -> Doubler:
    return Doubler(**arguments)  # type: ignore[arg-type]


def noisy(threads: int) -> Doubler:
    """Prints to stdout, from Python and from a process of its own, as libraries do."""
    print("a library that prints")
    subprocess.run([sys.executable, "-c", "print('and its child')"], check=True)
    return Doubler(threads)


def refusing(threads: int) -> Doubler:
    raise UserError("cannot be made here", hint="elsewhere")


def forking(threads: int, pids: str) -> Doubler:
    """Leaves a process of its own behind, as compilers' pools do."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(pids).write_text(f"{os.getpid()} {child.pid}")
    return Doubler(threads)
