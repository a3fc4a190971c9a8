"""Sessions of the event engine: whole batches, or a stream of frames with the state kept."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numba
import numpy as np

from stdeploy.errors import UserError
from stdeploy.exporters.event.container import Sev
from stdeploy.exporters.event.file import EventFile
from stdeploy.graph.execution import Execution, batch_size
from stdeploy.graph.ops import Output
from stdeploy.graph.weight import Array
from stdeploy.runtime.event.bit_arrays import packed, unpacked
from stdeploy.runtime.event.machine import Machine


class EventSession:
    """An opened `.sev` file. `run` takes batches, `step` one frame at a time; neither disturbs the other.

    `threads`: those that share a sample (None: every core this process may use). `counting`: count the synaptic
    operations done; `synops` then holds those of the last call.
    """

    def __init__(self, file: Path | str | Sev, threads: int | None = None, *, counting: bool = False) -> None:
        if threads is not None and threads < 1:
            raise UserError(f"{threads} threads cannot run anything", hint="give 1 or more")
        self.file = EventFile(file)
        self.header: Mapping[str, Any] = self.file.header
        self.threads = threads or len(os.sched_getaffinity(0))
        self.counting = counting
        self.name = (
            f"event engine, numba {numba.__version__}, {self.threads} thread{'s' * (self.threads > 1)}"
        )
        self.steps = int(self.header["steps"])
        self.synops: dict[str, Array] = {}
        """By node name, int64 [samples, steps]: done by the last call (steps is 1 where every step is the same)."""
        self._together = self._machine(self.steps, self.threads)
        self._apart: list[Machine] = []
        self._stream: Machine | None = None
        self._seen = 0

    def _machine(self, steps: int, threads: int, *, stateful: bool = False) -> Machine:
        return Machine(self.header, self.file.arrays, steps, threads, stateful=stateful)

    def run(
        self, inputs: Array, forced: Mapping[str, Array] | None = None, *, spikes: bool = True
    ) -> Execution:
        """Run a batch given in the input's layout, from reset membranes.

        Spikes are uint8 [T, B, *shape] by neuron name (empty without `spikes`). With `forced` the consumers of the
        named neurons and selections read what is given. UserError where a shape does not fit or a name is unknown.
        Samples go to threads of their own where there are as many; otherwise all threads share each.
        """
        forced = dict(forced or {})
        self._check_forced(forced)
        samples = self._samples(np.asarray(inputs))
        whole = 0 if self.threads == 1 else len(samples) // self.threads * self.threads
        parts: list[_Part] = []
        if whole:
            self._apart = self._apart or [self._machine(self.steps, 1) for _ in range(self.threads)]
            with ThreadPoolExecutor(self.threads) as pool:
                jobs = [
                    pool.submit(self._share, machine, samples, range(k, whole, self.threads), forced, spikes)
                    for k, machine in enumerate(self._apart)
                ]
                shares = [job.result() for job in jobs]
            parts = [shares[k % self.threads][k // self.threads] for k in range(whole)]
        parts += self._share(self._together, samples, range(whole, len(samples)), forced, spikes)
        return self._gathered(parts, spikes)

    def step(self, frame: Array | None = None, *, spikes: bool = False) -> Execution:
        """One step of a stream: a frame of the input's shape, without batch and time.

        Outputs over time are those of the steps since the last `reset`. None repeats a static input. UserError where
        the frame does not fit, or the model's parameters end (those that differ from step to step).
        """
        if self._stream is None:
            self._stream = self._machine(1, self.threads, stateful=True)
        machine, given = self._stream, self.header["input"]
        if self._seen >= self.steps and self.header["timed"]:
            raise UserError(
                f"the model has parameters for {self.steps} steps, this is one more",
                hint="call reset() first",
            )
        if frame is not None:
            array = np.asarray(frame, np.float32)
            if array.shape != tuple(given["shape"]):
                raise UserError(f"the frame has shape {array.shape}, the model takes {tuple(given['shape'])}")
            machine.array(given["buffer"])[:] = array.reshape(-1)
        elif given["layout"] != "B" or not self._seen:
            raise UserError("step() needs a frame", hint="only a static input can be repeated")
        machine.synops[:] = 0
        part = _Part()
        for first, last in self._segments(again=frame is None):
            self._observe(machine, first, last, {}, 0, spikes, part, self._seen)
        self._finish(machine, part)
        self._seen += 1
        return self._gathered([part], spikes)

    def reset(self) -> None:
        """Forget the stream: the next `step` begins at rest."""
        self._seen = 0

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

    def _samples(self, inputs: Array) -> list[Array]:
        """The batch, sample by sample, steps first."""
        given = self.header["input"]
        batch = batch_size(inputs, given["layout"], given["shape"], self.steps)
        array = np.asarray(inputs, np.float32)
        if given["layout"] == "TB":
            array = array.swapaxes(0, 1)
        return [array[k] for k in range(batch)]

    def _check_forced(self, forced: Mapping[str, Array]) -> None:
        neurons, kept = self.header["neurons"], self.header["selections"]
        unknown = sorted(set(forced) - set(neurons) - set(kept))
        if unknown:
            raise UserError(f"forced spikes name neurons that the file does not have: {', '.join(unknown)}")
        for name, array in forced.items():
            shape = np.shape(array)
            if name in neurons and (shape[0], *shape[2:]) != (self.steps, *neurons[name]["shape"]):
                raise UserError(
                    f"forced spikes of {name} have shape {shape}, the neuron {neurons[name]['shape']}"
                )
            if name in kept and (len(shape) != 3 or shape[2] != kept[name]["count"]):
                raise UserError(
                    f"forced positions of {name} have shape {shape}, it keeps {kept[name]['count']}"
                )

    def _share(
        self, machine: Machine, samples: list[Array], mine: range, forced: Mapping[str, Array], spikes: bool
    ) -> list[_Part]:
        parts = []
        for k in mine:
            machine.array(self.header["input"]["buffer"])[:] = samples[k].reshape(-1)
            machine.synops[:] = 0
            part = _Part()
            self._observe(machine, 0, machine.stages, forced, k, spikes, part, 0)
            self._finish(machine, part)
            parts.append(part)
        return parts

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
            if name in self.header["neurons"]:
                self._look(machine, name, forced, sample, part)
            else:
                self._look_at_tokens(machine, stop - 1, name, forced, sample, part)
        machine.run(at, last, step, counting=self.counting)

    def _stops(self, forced: Mapping[str, Array], spikes: bool) -> dict[int, str]:
        """Behind which stage which neuron's spikes, or selection, are to be looked at; in order."""
        stops = {}
        for number, stage in enumerate(self.header["stages"]):
            for name in stage["nodes"]:
                known = name in self.header["neurons"] or name in self.header["selections"]
                if known and (spikes or name in forced) and stage["op"] in _DECIDES:
                    stops[number + 1] = name
        return stops

    def _look(
        self, machine: Machine, name: str, forced: Mapping[str, Array], sample: int, part: _Part
    ) -> None:
        entry = self.header["neurons"][name]
        words = machine.array(entry["buffer"])
        part.spikes[name] = unpacked(words, entry["format"], machine.steps, tuple(entry["shape"]))
        if name in forced:
            given = np.asarray(forced[name])
            words[:] = packed(given[:, min(sample, given.shape[1] - 1)], entry["format"])

    def _look_at_tokens(
        self, machine: Machine, stage: int, name: str, forced: Mapping[str, Array], sample: int, part: _Part
    ) -> None:
        entry = self.header["selections"][name]
        chosen = machine.array(entry["buffer"])
        part.selections[name] = chosen.reshape(-1, entry["count"]).astype(np.int64)
        if name in forced:
            given = np.asarray(forced[name])
            chosen[:] = given[:, min(sample, given.shape[1] - 1)].reshape(-1)
            machine.keep_tokens(stage)

    def _finish(self, machine: Machine, part: _Part) -> None:
        for out in self.header["outputs"]:
            steps = machine.steps if out["stepped"] else 1
            part.outputs[out["label"]] = machine.array(out["buffer"]).reshape(steps, *out["shape"]).copy()
        if self.counting:
            counts = machine.synops.reshape(machine.stages, machine.steps)
            for stage, row in zip(self.header["stages"], counts, strict=True):
                if stage["op"] in _COUNTED:
                    part.synops[stage["nodes"][0]] = row.copy()

    def _gathered(self, parts: list[_Part], spikes: bool) -> Execution:
        outputs = {}
        for out in self.header["outputs"]:
            stacked = np.stack([part.outputs[out["label"]] for part in parts])
            stacked = {"B": lambda a: a[:, 0], "BT": lambda a: a, "TB": lambda a: a.swapaxes(0, 1)}[
                out["layout"]
            ](stacked)
            order = Output(layout=out["layout"], order=tuple(out["order"]))
            outputs[out["label"]] = order.returned(stacked)
        if self.counting:
            names = parts[0].synops if parts else {}
            self.synops = {name: np.stack([part.synops[name] for part in parts]) for name in names}
        if not spikes:
            return Execution(outputs)
        return Execution(
            outputs,
            {name: np.stack([p.spikes[name] for p in parts], axis=1) for name in self.header["neurons"]},
            selections={
                n: np.stack([p.selections[n] for p in parts], axis=1) for n in self.header["selections"]
            },
        )


class _Part:
    """What one sample yields."""

    def __init__(self) -> None:
        self.outputs: dict[str, Array] = {}
        self.spikes: dict[str, Array] = {}
        self.selections: dict[str, Array] = {}
        self.synops: dict[str, Array] = {}


_DECIDES = {"Rows", "Columns", "Pairs", "Fire", "FirePositions", "Select"}
"""Stages that fire or choose; conversions of their results name the same nodes."""
_COUNTED = {"Rows", "Columns", "Tokens", "Pairs", "Product"}
"""Stages that do synaptic operations; the first of their nodes is the product."""
