"""Files as candidates: what a worker process makes of a file's path and a session's description."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stdeploy.errors import UserError
from stdeploy.graph.weight import Array
from stdeploy.runtime.sessions import OpenVinoSession, OrtSession, Prepared, SessionOptions

_KINDS: dict[str, type[OrtSession | OpenVinoSession]] = {
    "onnxruntime": OrtSession,
    "openvino": OpenVinoSession,
}


class OnnxCandidate:
    """A file, or one file for each batch size, in a runtime; opened when the batch size is known."""

    def __init__(self, runtime: str, path: Path | Mapping[str, str], options: SessionOptions) -> None:
        self._open, self._path, self._options = _KINDS[runtime], path, options
        self._sessions: dict[Path, OrtSession | OpenVinoSession] = {}
        first = path if isinstance(path, Path) else Path(next(iter(path.values())))
        self.name = self._session(first).name

    def _session(self, path: Path) -> OrtSession | OpenVinoSession:
        if path not in self._sessions:
            self._sessions.clear()  # a rival that needs a file for each batch size holds one at a time
            self._sessions[path] = self._open(path, self._options)
        return self._sessions[path]

    def prepare(self, inputs: Array) -> Prepared:
        """The session with a batch; a file for each batch size is chosen by the first dimension."""
        path = self._path
        if not isinstance(path, Path):
            if str(inputs.shape[0]) not in path:
                raise UserError(f"there is no file for batch {inputs.shape[0]}")
            path = Path(path[str(inputs.shape[0])])
        session = self._session(path)
        if len(session.input_names) != 1:
            raise UserError(f"{path} has {len(session.input_names)} inputs: {', '.join(session.input_names)}")
        return session.prepare({session.input_names[0]: inputs})


def onnx_file(
    runtime: str, path: str | None = None, by_batch: Mapping[str, str] | None = None, **options: Any
) -> OnnxCandidate:
    """A candidate from an ONNX file (`path`) or one for each batch size; `options` as SessionOptions."""
    chosen = Path(path) if path is not None else dict(by_batch or {})
    return OnnxCandidate(runtime, chosen, SessionOptions(**options))


class EventCandidate:
    """A .sev file in the event-driven engine; `name` states what compiled its kernels."""

    def __init__(self, path: str, threads: int) -> None:
        from stdeploy.runtime.event.session import EventSession

        self._session = EventSession(Path(path), threads=threads)
        self.name = self._session.name

    def prepare(self, inputs: Array) -> Prepared:
        """The session with a batch."""
        return _EventRun(self._session, inputs)


class _EventRun:
    """Each call takes a numpy array and gives numpy arrays, as most callers do."""

    def __init__(self, session: Any, inputs: Array) -> None:
        self._session, self._inputs = session, inputs
        self._last: dict[str, Array] = {}

    def call(self) -> None:
        self._last = self._session.run(self._inputs, spikes=False).outputs

    def outputs(self) -> dict[str, Array]:
        return self._last


def refused(reason: str, threads: int) -> OnnxCandidate:
    """A candidate that could not even be made; UserError with the reason, so that the report has it."""
    raise UserError(reason)
