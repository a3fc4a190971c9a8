"""What a session is given, held against what its file says: batches, frames, forced spikes and tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stdeploy.errors import UserError
from stdeploy.graph.execution import batch_size
from stdeploy.graph.weight import Array


def samples(header: Mapping[str, Any], inputs: Any) -> list[Array]:
    """A batch in the input's layout, sample by sample, steps first, float32; UserError where it does not fit."""
    given = header["input"]
    array = _numbers(inputs, given)
    batch = batch_size(array, given["layout"], given["shape"], int(header["steps"]))
    if given["layout"] == "TB":
        array = array.swapaxes(0, 1)
    return [array[k] for k in range(batch)]


def frame(header: Mapping[str, Any], values: Any) -> Array:
    """One step's input of one sample, float32; UserError where it does not fit."""
    given = header["input"]
    array = _numbers(values, given)
    if array.shape != tuple(given["shape"]):
        raise UserError(
            f"the frame has shape {array.shape}, the model takes {tuple(given['shape'])}",
            hint="a frame is one step of one sample, without axes of time and batch",
        )
    return array


def _numbers(values: Any, given: Mapping[str, Any]) -> Array:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise UserError(f"the input holds {array.dtype}, not numbers")
    most, unit = given["most"], np.float32(given["unit"])
    array = array.astype(np.float32, copy=False)
    if most is not None and array.size:
        counts = array / unit
        if not (counts.min() >= 0 and counts.max() <= most and np.all(counts == np.rint(counts))):
            raise UserError(
                f"the input holds other values than {unit:g} x {{0..{most}}}, for which the file was written"
            )
    return array


def forced_arrays(header: Mapping[str, Any], forced: Mapping[str, Array], batch: int) -> dict[str, Array]:
    """Forced spikes `[T, B or 1, *shape]` and token positions `[T or 1, B or 1, count]`, by name.

    UserError where a name is unknown, a shape does not fit or a position is none.
    """
    neurons, kept = header["neurons"], header["selections"]
    unknown = sorted(set(forced) - set(neurons) - set(kept))
    if unknown:
        raise UserError(f"forced spikes name neurons that the file does not have: {', '.join(unknown)}")
    return {
        name: _spikes(header, name, np.asarray(array), batch)
        if name in neurons
        else _positions(header, name, np.asarray(array), batch)
        for name, array in forced.items()
    }


def _spikes(header: Mapping[str, Any], name: str, array: Array, batch: int) -> Array:
    steps, shape = int(header["steps"]), tuple(header["neurons"][name]["shape"])
    if array.shape not in ((steps, batch, *shape), (steps, 1, *shape)):
        raise UserError(
            f"forced spikes of {name} have shape {array.shape}, the neuron {(steps, batch, *shape)}"
        )
    return np.broadcast_to(array, (steps, batch, *shape))


def _positions(header: Mapping[str, Any], name: str, array: Array, batch: int) -> Array:
    entry = header["selections"][name]
    count, steps = entry["count"], int(header["steps"]) if entry["stepped"] else 1
    if (
        array.ndim != 3
        or array.shape[0] < steps
        or array.shape[1] not in (1, batch)
        or array.shape[2] != count
    ):
        raise UserError(
            f"forced positions of {name} have shape {array.shape}, the selection {(steps, batch, count)}"
        )
    if array.size and (array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= entry["tokens"]):
        raise UserError(f"forced positions of {name} are none of its {entry['tokens']} tokens")
    return np.broadcast_to(array[:steps], (steps, batch, count))
