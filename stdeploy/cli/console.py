"""Streams: results on stdout, everything else on stderr; colour and progress only on a terminal."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from stdeploy.files import atomic_write

_PIPED_WIDTH = 200
"""Columns where stdout is no terminal, so that piped tables are not cut."""


class Talk:
    """What one command says, and where: nothing but JSON reaches stdout when JSON goes there."""

    def __init__(self, json_file: str | None = None, verbose: int = 0, quiet: bool = False) -> None:
        self.json_file, self.verbose, self.quiet = json_file, verbose, quiet
        self._result = _console(sys.stderr if json_file == "-" else sys.stdout)
        self._log = _console(sys.stderr)

    def result(self, item: RenderableType) -> None:
        """A part of the result."""
        if not self.quiet:
            self._result.print(Text(item) if isinstance(item, str) else item)

    def text(self, lines: str) -> None:
        """A part of the result that is text for other programs too: its lines are never wrapped."""
        if not self.quiet:
            self._result.print(Text(lines), soft_wrap=True)

    def phase(self, name: str, text: str, seconds: float | None = None) -> None:
        """One finished phase of an export: ` trace    58 nodes, T=4     0.8 s`."""
        lines = text.splitlines() or [""]
        took = "" if seconds is None else f"  {seconds:.1f} s"
        self.result("\n".join([f" {name:<8} {lines[0]}{took}", *(f"          {line}" for line in lines[1:])]))

    def log(self, text: str) -> None:
        """A remark that is not part of the result."""
        if not self.quiet:
            self._log.print(Text(text))

    @contextlib.contextmanager
    def patience(self, text: str, seconds: float = 2.0) -> Iterator[None]:
        """Log `text` where what is done meanwhile takes longer than `seconds`."""
        timer = threading.Timer(seconds, self.log, [text])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def document(self, content: dict[str, Any]) -> None:
        """The JSON form of the result, where --json asks for it."""
        if self.json_file is None:
            return
        text = json.dumps(_finite(content), indent=2, allow_nan=False)
        if self.json_file == "-":
            try:
                sys.stdout.write(text + "\n")
                sys.stdout.flush()
            except BrokenPipeError:
                _silence(sys.stdout)
            return
        with atomic_write(Path(self.json_file)) as temporary:
            temporary.write_text(text + "\n")

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar on a terminal's stderr that goes away when done; the callback takes the count so far."""
        if self.quiet or not self._log.is_terminal:
            yield lambda done: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._log, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)


class _PatientConsole(Console):
    """A reader that goes away (head) ends the output, not the work: a check still has to set the exit code."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _silence(self.file)


def _silence(stream: Any) -> None:
    """Let what is still buffered for a closed pipe go nowhere; Python would complain about it at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _console(stream: Any) -> Console:
    terminal = stream.isatty()
    return _PatientConsole(
        file=stream, highlight=False, markup=False, width=None if terminal else _PIPED_WIDTH
    )


def _finite(item: Any) -> Any:
    """`item` with null for numbers that JSON cannot say."""
    if isinstance(item, dict):
        return {key: _finite(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [_finite(value) for value in item]
    return None if isinstance(item, float) and not math.isfinite(item) else item


def size_text(size: int) -> str:
    """Bytes as a person reads them: 3.1 MB."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
