"""Sessions of the event engine: whole batches, or a stream of frames with the state kept."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numba
import numpy as np

from stdeploy.errors import UserError
from stdeploy.exporters.event.container import Sev
from stdeploy.exporters.event.file import EventFile
from stdeploy.graph.execution import Execution
from stdeploy.graph.ops import Output
from stdeploy.graph.weight import Array
from stdeploy.runtime.bench.machine import available_cores
from stdeploy.runtime.event.bit_arrays import packed, unpacked
from stdeploy.runtime.event.contract import forced_arrays, frame, samples
from stdeploy.runtime.event.machine import Machine
from stdeploy.runtime.event.threads import Threads


class EventSession:
    """An opened `.sev` file. `run` takes batches, `step` one frame at a time; neither disturbs the other.

    `threads`: those that share a sample (None: every core this process may use). `counting`: count the synaptic
    operations done; `synops` then holds those of the last call. Calls from several threads wait for each other;
    a session that was copied or pickled goes on where the first one stood. `close` (or `with`) ends its threads.
    """

    def __init__(self, file: Path | str | Sev, threads: int | None = None, *, counting: bool = False) -> None:
        if threads is not None and threads < 1:
            raise UserError(f"{threads} threads cannot run anything", hint="give 1 or more")
        if sys.byteorder != "little":
            raise UserError("the event engine runs on little-endian machines only")
        self.file = EventFile(file)
        self.header: Mapping[str, Any] = self.file.header
        self.threads = threads or available_cores()
        self.counting = counting
        self.name = (
            f"event engine, numba {numba.__version__}, {self.threads} thread{'s' * (self.threads > 1)}"
        )
        self.steps = int(self.header["steps"])
        self.synops: dict[str, Array] = {}
        """By node name, int64 [samples, steps]: done by the last call (steps is 1 where every step is the same)."""
        self._lock = threading.RLock()
        self._closed = False
        self._prepare()

    def _prepare(self) -> None:
        self._together: Machine | None = None
        self._apart: list[Machine] = []
        self._shares = Threads(self.threads)
        self._stream: Machine | None = None
        self._seen = 0
        self._whole = True

    def run(
        self, inputs: Array, forced: Mapping[str, Array] | None = None, *, spikes: bool = True
    ) -> Execution:
        """Run a batch given in the input's layout, from reset membranes.

        Spikes are uint8 [T, B, *shape] by neuron name (empty without `spikes`). With `forced` the consumers of the
        named neurons and selections read what is given. UserError where a shape does not fit or a name is unknown.
        Samples go to threads of their own where there are as many; otherwise all threads share each.
        """
        batch = samples(self.header, inputs)
        given = forced_arrays(self.header, forced or {}, len(batch))
        with self._lock:
            self._require_open()
            apart = 0 if self.threads == 1 else len(batch) // self.threads * self.threads
            parts = self._run_apart(batch[:apart], given, spikes) if apart else []
            if apart < len(batch):
                self._together = self._together or self._machine(self.steps, self.threads)
                parts += [
                    self._sample(self._together, batch[k], k, given, spikes) for k in range(apart, len(batch))
                ]
            return self._gathered(parts, spikes)

    def compile(self) -> None:
        """Have the kernels compiled (up to a minute), or found where an earlier process left them; else the first run does."""
        with self._lock:
            self._require_open()
            self._together = self._together or self._machine(self.steps, self.threads)
            self._together.compile()

    def step(self, values: Array | None = None, *, spikes: bool = False) -> Execution:
        """One step of a stream: a frame of the input's shape, without batch and time.

        Outputs over time are those of the steps since the last `reset`; what follows a readout is done anew for them.
        What is the same at every step is done when a frame is given. None repeats a static input. UserError where
        the frame does not fit, the model's parameters end (those that differ from step to step), or the step before
        was interrupted.
        """
        given = self.header["input"]
        array = None if values is None else frame(self.header, values)
        with self._lock:
            self._require_open()
            if not self._whole:
                raise UserError("the last step was interrupted", hint="call reset() first")
            if self._seen >= self.steps and self.header["timed"]:
                raise UserError(
                    f"the model has parameters for {self.steps} steps, this is one more",
                    hint="call reset() first",
                )
            if array is None and (given["layout"] != "B" or not self._seen):
                raise UserError("step() needs a frame", hint="only a static input can be repeated")
            self._stream = self._stream or self._machine(1, self.threads, stateful=True)
            machine, part = self._stream, _Part()
            self._whole = False
            if array is not None:
                machine.array(given["buffer"])[:] = array.reshape(-1)
            machine.synops[:] = 0
            for first, last in self._segments(again=array is None):
                self._observe(machine, first, last, {}, 0, spikes, part, self._seen)
            if spikes:
                for name in self.header["selections"]:  # what is not chosen anew still lies there
                    part.selections.setdefault(name, self._tokens(machine, name))
            self._finish(machine, part)
            self._seen += 1
            self._whole = True
            return self._gathered([part], spikes)

    def reset(self) -> None:
        """Forget the stream: the next `step` begins at rest."""
        with self._lock:
            self._seen, self._whole = 0, True

    def close(self) -> None:
        """End the session's threads and free its memory; a later call is a UserError."""
        with self._lock:
            for machine in (self._together, self._stream):
                if machine is not None:
                    machine.close()
            self._shares.close()
            self._prepare()
            self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = {k: v for k, v in vars(self).items() if k not in _OWN}
            stream = None if self._stream is None else self._stream.bytes.copy()
            return {**state, "stream": stream}

    def __setstate__(self, state: dict[str, Any]) -> None:
        stream = state.pop("stream")
        self._lock = threading.RLock()
        self.threads = state["threads"]
        self._prepare()
        vars(self).update(state)
        if stream is not None:
            self._stream = self._machine(1, self.threads, stateful=True)
            self._stream.bytes[:] = stream

    def _require_open(self) -> None:
        if self._closed:
            raise UserError("the session is closed", hint="open the file again")

    def _machine(self, steps: int, threads: int, *, stateful: bool = False) -> Machine:
        try:
            return Machine(self.header, self.file.arrays, steps, threads, stateful=stateful)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{self.file.path} holds a program that this stdeploy does not run ({error!r})",
                hint="export it again, with this version",
            ) from error

    def _segments(self, again: bool) -> Iterator[tuple[int, int]]:
        """Runs of stages to do: all, or (`again`) those that are not the same at every step."""
        stages = self.header["stages"]
        if not again:
            yield 0, len(stages)
            return
        start = None
        for number, stage in enumerate([*stages, {"once": True}]):
            if stage["once"]:
                if start is not None:
                    yield start, number
                start = None
            elif start is None:
                start = number

    def _run_apart(self, batch: list[Array], forced: Mapping[str, Array], spikes: bool) -> list[_Part]:
        """As many samples at a time as there are threads, each with a machine of its own."""
        if not self._apart:
            self._apart = [self._machine(self.steps, 1) for _ in range(self.threads)]
        parts: list[_Part | None] = [None] * len(batch)
        stop = threading.Event()

        def share(first: int) -> None:
            for k in range(first, len(batch), self.threads):
                if stop.is_set():
                    return
                parts[k] = self._sample(self._apart[first], batch[k], k, forced, spikes)

        try:
            for job in [self._shares.submit(share, first) for first in range(self.threads)]:
                job.result()
        except BaseException:
            stop.set()
            self._shares.close()  # waits for all, also for what was queued when a thread could not be started
            raise
        return [part for part in parts if part is not None]

    def _sample(
        self, machine: Machine, values: Array, place: int, forced: Mapping[str, Array], spikes: bool
    ) -> _Part:
        machine.array(self.header["input"]["buffer"])[:] = values.reshape(-1)
        machine.synops[:] = 0
        part = _Part()
        self._observe(machine, 0, machine.stages, forced, place, spikes, part, 0)
        self._finish(machine, part)
        return part

    def _observe(
        self,
        machine: Machine,
        first: int,
        last: int,
        forced: Mapping[str, Array],
        sample: int,
        spikes: bool,
        part: _Part,
        step: int,
    ) -> None:
        """Run stages, stopping behind those whose spikes or tokens are wanted or given."""
        stops = self._stops(forced, spikes)
        at = first
        for stop in [n for n in stops if first < n <= last]:
            machine.run(at, stop, step, counting=self.counting)
            at = stop
            name = stops[stop]
            given = forced[name][:, sample] if name in forced else None
            if name in self.header["neurons"]:
                self._look(machine, name, given, part)
            else:
                self._look_at_tokens(machine, stop - 1, name, given, part)
        machine.run(at, last, step, counting=self.counting)

    def _stops(self, forced: Mapping[str, Array], spikes: bool) -> dict[int, str]:
        """Behind which stage which neuron's spikes, or selection, are to be looked at; in order."""
        stops: dict[int, str] = {}
        if not (spikes or forced):
            return stops
        for number, stage in enumerate(self.header["stages"]):
            for name in stage["nodes"]:
                known = name in self.header["neurons"] or name in self.header["selections"]
                if known and (spikes or name in forced) and stage["op"] in _DECIDES:
                    stops[number + 1] = name
        return stops

    def _look(self, machine: Machine, name: str, given: Array | None, part: _Part) -> None:
        entry = self.header["neurons"][name]
        words = machine.array(entry["buffer"])
        part.spikes[name] = unpacked(words, entry["format"], machine.steps, tuple(entry["shape"]))
        if given is not None:
            words[:] = packed(given, entry["format"])

    def _look_at_tokens(
        self, machine: Machine, stage: int, name: str, given: Array | None, part: _Part
    ) -> None:
        part.selections[name] = self._tokens(machine, name)
        if given is not None:
            machine.array(self.header["selections"][name]["buffer"])[:] = given.reshape(-1)
            machine.keep_tokens(stage)

    def _tokens(self, machine: Machine, name: str) -> Array:
        entry = self.header["selections"][name]
        return machine.array(entry["buffer"]).reshape(-1, entry["count"]).astype(np.int64)

    def _finish(self, machine: Machine, part: _Part) -> None:
        for out in self.header["outputs"]:
            steps = machine.steps if out["stepped"] else 1
            part.outputs[out["label"]] = machine.array(out["buffer"]).reshape(steps, *out["shape"]).copy()
        if self.counting:
            counts = machine.synops.reshape(machine.stages, machine.steps)
            for stage, row in zip(self.header["stages"], counts, strict=True):
                if stage["counted"]:
                    steps = machine.steps if stage["counted"] == "step" else 1
                    part.synops[stage["nodes"][0]] = row[:steps].copy()

    def _gathered(self, parts: list[_Part], spikes: bool) -> Execution:
        outputs = {}
        for out in self.header["outputs"]:
            shape = (self.steps if out["stepped"] else 1, *out["shape"])
            array = _stacked([part.outputs[out["label"]] for part in parts], shape, np.float32)
            array = {"B": lambda a: a[:, 0], "BT": lambda a: a, "TB": lambda a: a.swapaxes(0, 1)}[
                out["layout"]
            ](array)
            order = Output(layout=out["layout"], order=tuple(out["order"]))
            outputs[out["label"]] = order.returned(array)
        if self.counting:
            self.synops = {
                stage["nodes"][0]: _stacked(
                    [part.synops[stage["nodes"][0]] for part in parts],
                    (self.steps if stage["counted"] == "step" else 1,),
                    np.int64,
                )
                for stage in self.header["stages"]
                if stage["counted"]
            }
        if not spikes:
            return Execution(outputs)
        neurons, kept = self.header["neurons"], self.header["selections"]
        return Execution(
            outputs,
            {
                name: _stacked([p.spikes[name] for p in parts], (self.steps, *n["shape"]), np.uint8, 1)
                for name, n in neurons.items()
            },
            selections={
                name: _stacked(
                    [p.selections[name] for p in parts],
                    (self.steps if s["stepped"] else 1, s["count"]),
                    np.int64,
                    1,
                )
                for name, s in kept.items()
            },
        )


@dataclass
class _Part:
    """What one sample yields."""

    outputs: dict[str, Array] = field(default_factory=dict)
    spikes: dict[str, Array] = field(default_factory=dict)
    selections: dict[str, Array] = field(default_factory=dict)
    synops: dict[str, Array] = field(default_factory=dict)


def _stacked(arrays: list[Array], shape: tuple[int, ...], kind: Any, axis: int = 0) -> Array:
    """Samples side by side; `shape` is one's, where there is none."""
    return np.stack(arrays, axis) if arrays else np.empty((*shape[:axis], 0, *shape[axis:]), kind)


_DECIDES = {"Rows", "Columns", "Pairs", "Fire", "FirePositions", "Select"}
"""Stages that fire or choose; conversions of their results name the same nodes."""
_OWN = {"_together", "_apart", "_shares", "_stream", "_lock"}
"""What a copy makes for itself."""
