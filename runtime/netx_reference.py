"""A netx file in numpy: what lava-dl's fixed-point network computes, without Lava and without its pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from scipy import sparse

from stdeploy import __version__
from stdeploy.errors import UserError
from stdeploy.exporters.lava.linear_map import convolution
from stdeploy.exporters.lava.netx import METADATA
from stdeploy.graph.execution import Execution, batch_size, read_out
from stdeploy.graph.weight import Array
from stdeploy.runtime.lava_reference import fire_fixed

BIAS_EXPONENT = 6
"""Fixed by lava-dl's reader."""


class NetxFile:
    """A netx file that stdeploy wrote; UserError where it cannot be read or does not say its neurons."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with h5py.File(self.path, "r") as file:
                self.metadata: dict[str, Any] = json.loads(file.attrs[METADATA])
                groups = file["layer"]
                self.layers = [_read(groups[str(i)]) for i in range(len(groups))]
            self.steps = int(self.metadata["steps"])
            self.shapes = {name: tuple(shape) for name, shape in self.metadata["neurons"].items()}
            self.input, self.output = self.metadata["input"], self.metadata["output"]
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"cannot read {self.path} as a netx file of stdeploy: {error}", hint="export it again"
            ) from error


def _read(group: Any) -> dict[str, Any]:
    layer = {name: group[name][()] for name in group if name != "neuron"}
    layer["type"] = layer["type"][0].decode()
    if "neuron" in group:
        layer |= {name: int(group["neuron"][name][()]) for name in ("vDecay", "vThMant")}
    return layer


class NetxReference:
    """Executor of a netx file; the definition of its bits."""

    def __init__(self, path: Path | str) -> None:
        self.file = NetxFile(path)
        self.name = f"stdeploy {__version__} netx reference, int64"

    def run(self, inputs: Array, forced: Mapping[str, Array] | None = None) -> Execution:
        """Run a batch; UserError where it does not fit."""
        file, forced = self.file, forced or {}
        layout, shape = file.input["layout"], file.input["shape"]
        count = batch_size(np.asarray(inputs), layout, shape, file.steps)
        events = np.round(np.asarray(inputs, dtype=np.float64) / file.input["unit"]).astype(np.int64)
        if layout == "B":
            events = np.repeat(events[None], file.steps, axis=0)
        elif layout == "BT":
            events = np.swapaxes(events, 0, 1)
        carried = events.reshape(file.steps, count, -1).swapaxes(1, 2)
        names = iter(file.shapes)
        spikes: dict[str, Array] = {}
        space = (*shape, 1, 1)[:3]
        for layer in file.layers:
            if layer["type"] not in ("conv", "dense"):
                continue
            name = next(names)
            matrix, space = _matrix(layer, space)
            carried = _fire(layer, matrix, carried)
            spikes[name] = (
                carried.swapaxes(1, 2).reshape(file.steps, count, *file.shapes[name]).astype(np.uint8)
            )
            if name in forced:
                given = np.asarray(forced[name], dtype=np.int64)
                carried = given.reshape(file.steps, count, -1).swapaxes(1, 2)
        return Execution({file.output["label"]: self._read_out(carried, count)}, spikes)

    def _read_out(self, carried: Array, count: int) -> Array:
        output = self.file.output
        values = carried.swapaxes(1, 2).reshape(self.file.steps, count, *output["shape"]) * output["scale"]
        return read_out(values, output["over_steps"], output["layout"])


def _matrix(layer: dict[str, Any], space: tuple[int, ...]) -> tuple[sparse.csr_matrix, tuple[int, ...]]:
    weight = layer["weight"].astype(np.int64)
    if layer["type"] == "dense":
        return sparse.csr_matrix(weight), (len(weight), 1, 1)
    linear = convolution(
        weight, int(layer["groups"]), space, layer["stride"], layer["padding"], layer["dilation"]
    )
    return sparse.csr_matrix(linear.expanded.astype(np.int64)), tuple(int(n) for n in layer["shape"])


def _fire(layer: dict[str, Any], matrix: sparse.csr_matrix, carried: Array) -> Array:
    size = matrix.shape[0]
    bias = np.repeat(layer["bias"].astype(np.int64) << BIAS_EXPONENT, size // len(layer["bias"]))[:, None]
    v = np.zeros((size, carried.shape[2]), dtype=np.int64)
    out = []
    for events in carried:
        v, fired = fire_fixed(v, matrix @ events, bias, layer["vDecay"], layer["vThMant"])
        out.append(fired.astype(np.int64))
    return np.stack(out)
