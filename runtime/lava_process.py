"""Running an exported Lava folder in Lava, which has a Python of its own.

Lava forks a process for each of its own and cannot share an interpreter with what has started threads or chosen
another start method; so its program (run.py of the folder) runs as a subprocess, in a process group that is gone when
this returns.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np

from stdeploy.errors import UserError
from stdeploy.exporters.lava.layout import PROGRAM
from stdeploy.graph.execution import Execution, batch_size
from stdeploy.graph.weight import Array
from stdeploy.runtime.lava_folder import LavaFolder
from stdeploy.runtime.lava_reference import LavaReference

PYTHON_VARIABLE, TIMEOUT_VARIABLE = "STDEPLOY_LAVA_PYTHON", "STDEPLOY_LAVA_TIMEOUT"
FOLDER = ".venv-lava"
TIMEOUT_S = 900.0
_QUOTED_LINES = 3
_GRACE_S, _PATIENCE, _PAUSE_S = 5.0, 100, 0.02
_WAY_OUT = "`make lava` sets one up; or set STDEPLOY_LAVA_PYTHON to a Python that has lava-nc"


def lava_python() -> Path:
    """The Python that has Lava: $STDEPLOY_LAVA_PYTHON, or .venv-lava here or beside this environment.

    UserError where there is none.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        if not os.access(named, os.X_OK) or Path(named).is_dir():
            raise UserError(f"{PYTHON_VARIABLE} is {named}, which is no program", hint=_WAY_OUT)
        return Path(named)
    for folder in (Path.cwd(), Path(sys.prefix).parent):
        python = folder / FOLDER / "bin" / "python"
        if python.exists():
            return python
    raise UserError(f"Lava needs a Python of its own, and there is no {FOLDER} here", hint=_WAY_OUT)


def lava_version(python: Path) -> str:
    """Version of lava-nc in `python`; UserError where it has none."""
    code = "import importlib.metadata as m; print(m.version('lava-nc'))"
    try:
        done = subprocess.run(
            [python, "-c", code],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{python} does not run: {error}", hint=_WAY_OUT) from error
    if done.returncode:
        raise UserError(f"{python} has no lava-nc", hint=_WAY_OUT)
    return done.stdout.strip()


class LavaExecutor:
    """Runs a folder in Lava's simulation; `spikes` False reports them for forced runs only (fewer sinks).

    A fixed-point folder has a `reference`, which Lava has to match bit for bit.
    """

    def __init__(self, path: Path | str, *, spikes: bool = True, timeout: float | None = None) -> None:
        self.file = LavaFolder(path)
        self.spikes = spikes or self.file.fixed
        self.python = lava_python()
        self.timeout = _timeout() if timeout is None else timeout

    @cached_property
    def reference(self) -> LavaReference | None:
        """What defines a fixed-point folder's bits; None in floating point."""
        return LavaReference(self.file) if self.file.fixed else None

    @cached_property
    def name(self) -> str:
        """Lava's version."""
        return f"lava {lava_version(self.python)} simulation"

    def run(self, inputs: Array, forced: Mapping[str, Array] | None = None) -> Execution:
        """Stream a batch through Lava; UserError where it fails, hangs, or the input does not fit."""
        file = self.file
        count = batch_size(np.asarray(inputs), file.layout, file.input_shape, file.steps)
        spikes = self.spikes or forced is not None
        with tempfile.TemporaryDirectory(prefix="stdeploy-lava-") as folder:
            given, result = Path(folder, "inputs.npz"), Path(folder, "result.npz")
            np.savez(given, inputs=np.asarray(inputs))
            arguments = [str(given), str(result), *(["--spikes"] if spikes else [])]
            if forced:
                self.file.populations(forced, count)  # refuses what does not fit
                np.savez(Path(folder, "forced.npz"), **forced)  # type: ignore[arg-type]
                arguments += ["--forced", str(Path(folder, "forced.npz"))]
            self._call(arguments)
            try:
                with np.load(result) as stored:
                    arrays = {name: stored[name] for name in stored.files}
            except (OSError, ValueError) as error:
                raise UserError(f"Lava left no result: {error}") from error
        layers = {n.removeprefix("spikes:"): a for n, a in arrays.items() if n.startswith("spikes:")}
        return Execution({file.label: arrays["output"]}, layers)

    def _call(self, arguments: list[str]) -> None:
        """Run the folder's program; every process that it started is ended."""
        command = [str(self.python), str(self.file.path.absolute() / PROGRAM), *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("PYTHONPATH", None)  # this interpreter's packages are not Lava's
        with tempfile.TemporaryFile() as errors:
            try:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=errors,
                    stderr=errors,
                    start_new_session=True,
                    env=environment,
                )
            except OSError as error:
                raise UserError(f"{self.python} does not run: {error}", hint=_WAY_OUT) from error
            try:
                status: int | None = child.wait(self.timeout)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                _end_group(child)
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip().splitlines()
        last = " | ".join(line.strip() for line in said[-_QUOTED_LINES:])
        if status is None:
            raise UserError(
                f"Lava did not finish {self.file.path} in {self.timeout:g} s{': ' + last if last else ''}",
                hint=f"fewer samples (-n), or more time in {TIMEOUT_VARIABLE} (seconds)",
            )
        if status:
            hint = (
                _WAY_OUT
                if any("No module named" in line for line in said)
                else "the same command, by hand: " + " ".join(command[:2])
            )
            raise UserError(f"Lava failed on {self.file.path}: {last or f'exit status {status}'}", hint=hint)


def _end_group(child: subprocess.Popen[bytes]) -> None:
    """End a child and what is left of its group, and wait until it is gone.

    Asked first, killed then: Lava's shared memory is freed by the processes themselves.
    """
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
        try:
            child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        for number in (0, signal.SIGKILL):
            for _ in range(_PATIENCE):
                os.killpg(child.pid, number)
                time.sleep(_PAUSE_S)


def _timeout() -> float:
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text) if text else TIMEOUT_S
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise UserError(f"{TIMEOUT_VARIABLE} is {text!r}, not a number of seconds")
    return seconds
