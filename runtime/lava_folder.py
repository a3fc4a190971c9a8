"""What an exported Lava folder says of itself: time, input, output, arrays, and where each neuron layer is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from stdeploy.errors import UserError
from stdeploy.exporters.lava.layout import FORMAT, NETWORK, PROGRAM, WEIGHTS
from stdeploy.graph.execution import read_out
from stdeploy.graph.weight import Array

_ENDS = {
    "input": ("layout", "shape"),
    "output": ("label", "layout", "shape", "over_steps", "processes", "offset", "unit"),
}
_COMMON = ("name", "kind", "size", "valid", "inputs")
_BY_KIND = {
    "synapses": ("weights", "positions", "exponent"),
    "delay": ("steps",),
    "population": ("leak", "threshold", "bias", "bias_exponent"),
    "attention": ("heads_q", "heads_v", "tokens"),
}


def _require_complete(document: Mapping[str, Any]) -> None:
    """KeyError or ValueError where a key is missing, or a process comes before what feeds it."""
    limits = ("unit", "limit") if document["precision"] == "fixed_pt" else ()
    wanted = [(document[end], keys) for end, keys in _ENDS.items()] + [(document["input"], limits)]
    known: set[str] = set()
    for process in document["processes"]:
        wanted.append((process, (*_COMMON, *_BY_KIND.get(process["kind"], ()))))
        feeding = {source for sources in process["inputs"].values() for source in sources}
        if feeding - known:
            raise ValueError(
                f"{process['name']} is fed by {min(feeding - known)}, which does not come before it"
            )
        known.add(process["name"])
    for layer in document["neurons"].values():
        wanted += [(part, ("process", "start", "stop", "channels")) for part in layer["parts"]]
    for part, keys in wanted:
        for key in keys:
            part[key]


class LavaFolder:
    """A folder that stdeploy wrote for Lava; UserError where it is damaged or of another version."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        for name in (NETWORK, WEIGHTS, PROGRAM):
            if not (self.path / name).is_file():
                raise UserError(f"{self.path} has no {name}", hint="export it again")
        try:
            self.metadata: dict[str, Any] = json.loads((self.path / NETWORK).read_text(encoding="utf-8"))
            self.format = self.metadata["format"]
            self.steps = int(self.metadata["steps"])
            self.fixed = self.metadata["precision"] == "fixed_pt"
            self.neurons: dict[str, dict[str, Any]] = dict(self.metadata["neurons"])
            self.shapes = {name: tuple(layer["shape"]) for name, layer in self.neurons.items()}
            self.processes: list[dict[str, Any]] = list(self.metadata["processes"])
            self.input: dict[str, Any] = self.metadata["input"]
            self.output: dict[str, Any] = self.metadata["output"]
            self.label, self.layout = str(self.output["label"]), str(self.input["layout"])
            self.input_shape = tuple(self.input["shape"])
            if self.format == FORMAT:
                _require_complete(self.metadata)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path / NETWORK} is damaged: {error!r}", hint="export it again") from error
        if self.format != FORMAT:
            raise UserError(
                f"{self.path} has format {self.format}, this version reads {FORMAT}", hint="export it again"
            )
        self.arrays = self._arrays()
        try:
            for process in self.processes:
                if process["kind"] == "synapses":
                    self.matrix(process)
                elif process.get("bias"):
                    np.broadcast_to(self.arrays[process["bias"]], (process["size"],))
            if self.output["offset"]:
                np.broadcast_to(self.arrays[self.output["offset"]], (int(np.prod(self.output["shape"])),))
        except KeyError as error:
            raise UserError(f"{self.path / WEIGHTS} lacks {error.args[0]}", hint="export it again") from error
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.path / WEIGHTS} is damaged: {error}", hint="export it again") from error

    def _arrays(self) -> dict[str, Array]:
        try:
            with np.load(self.path / WEIGHTS) as stored:
                return {name: stored[name] for name in stored.files}
        except Exception as error:  # numpy, zipfile and zlib each raise their own for a cut file
            raise UserError(
                f"{self.path / WEIGHTS} cannot be read: {error}", hint="export it again"
            ) from error

    def matrix(self, process: Mapping[str, Any]) -> sparse.csr_matrix:
        """Weights of a synapses process, at one position."""
        parts = tuple(self.arrays[f"{process['weights']}.{part}"] for part in ("data", "indices", "indptr"))
        return sparse.csr_matrix(parts, shape=tuple(self.arrays[f"{process['weights']}.shape"]))

    def bias(self, process: Mapping[str, Any]) -> Array:
        """Bias of a population, in the units of its membrane; `[1]` where there is none."""
        if not process["bias"]:
            return np.zeros(1, dtype=np.int64 if self.fixed else np.float64)
        stored = self.arrays[process["bias"]]
        return (
            stored.astype(np.int64) << process["bias_exponent"] if self.fixed else stored.astype(np.float64)
        )

    def frames(self, inputs: Array) -> Array:
        """`[T, entries, B]` of a batch; integers in units of the input's step where the folder is fixed-point."""
        if self.layout == "B":
            inputs = np.repeat(inputs[None], self.steps, axis=0)
        elif self.layout == "BT":
            inputs = np.swapaxes(inputs, 0, 1)
        flat = np.moveaxis(inputs.reshape(*inputs.shape[:2], -1), 1, 2).astype(np.float64)
        if not self.fixed:
            return flat
        limit = self.input["limit"]
        return np.asarray(np.clip(np.round(flat / self.input["unit"]), -limit, limit), np.int64)

    def populations(self, forced: Mapping[str, Array], count: int) -> dict[str, Array]:
        """Forced spikes `[T, B, *shape]` of neuron layers as `[T, entries, B]` of populations.

        UserError where a layer is unknown or its spikes have another shape.
        """
        sizes = {p["name"]: int(p["size"]) for p in self.processes}
        whole: dict[str, Array] = {}
        for name, spikes in forced.items():
            wanted = (self.steps, count, *self.shapes.get(name, ()))
            if name not in self.shapes:
                raise UserError(f"forced spikes name {name}, which the folder does not have")
            if spikes.shape != wanted:
                raise UserError(f"forced spikes of {name} have shape {spikes.shape}, the neuron {wanted}")
            channels = np.moveaxis(spikes.reshape(*spikes.shape[:3], -1), 1, 3)
            for part in self.neurons[name]["parts"]:
                rows = channels if part["channels"] is None else channels[:, part["channels"]]
                empty = np.zeros((self.steps, sizes[part["process"]], count), dtype=np.uint8)
                target = whole.setdefault(part["process"], empty)
                target[:, part["start"] : part["stop"]] = rows.reshape(self.steps, -1, count)
        return whole

    def layers(self, populations: Mapping[str, Array], count: int) -> dict[str, Array]:
        """Spikes uint8 `[T, B, *shape]` by neuron layer, from `[T, entries, B]` by population."""
        out = {}
        for name, layer in self.neurons.items():
            shape = self.shapes[name]
            whole = np.zeros((self.steps, count, shape[0], int(np.prod(shape[1:]))), dtype=np.uint8)
            for part in layer["parts"]:
                sent = np.moveaxis(populations[part["process"]][:, part["start"] : part["stop"]], 2, 1)
                chosen = slice(None) if part["channels"] is None else part["channels"]
                whole[:, :, chosen] = sent.reshape(self.steps, count, -1, whole.shape[3])
            out[name] = whole.reshape(self.steps, count, *shape)
        return out

    def read_out(self, steps: Array, count: int) -> Array:
        """The model's output from what the output processes sent, `[T, entries, B]`."""
        value = np.moveaxis(steps, 2, 1).astype(np.float64)
        if self.fixed:
            value = value * self.output["unit"]
        if self.output["offset"]:
            value = value + self.arrays[self.output["offset"]]
        value = value.reshape(self.steps, count, *self.output["shape"])
        return read_out(value, self.output["over_steps"], self.output["layout"])
