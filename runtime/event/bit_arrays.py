"""Spikes between the engine's bits and arrays [T, C, *shape] of uint8."""

from __future__ import annotations

import numpy as np

from stdeploy.exporters.event.stages import WORD
from stdeploy.graph.weight import Array


def unpacked(words: Array, form: str, steps: int, shape: tuple[int, ...]) -> Array:
    """uint8 [T, C, *shape] of one plane of bits, by positions or by channels (stages)."""
    channels, positions = shape[0] if shape else 1, int(np.prod(shape[1:], dtype=np.int64))
    if form == "position bits":
        bits = np.unpackbits(words.reshape(steps, positions, -1).view(np.uint8), axis=2, bitorder="little")
        spikes = bits[:, :, :channels].swapaxes(1, 2)
    else:
        by_step = np.ascontiguousarray(words.reshape(channels, -1, steps).transpose(2, 0, 1))
        spikes = np.unpackbits(by_step.view(np.uint8), axis=2, bitorder="little")[:, :, :positions]
    return np.ascontiguousarray(spikes).reshape(steps, *shape)


def packed(spikes: Array, form: str) -> Array:
    """The words of spikes [T, C, *shape]: what `unpacked` undoes."""
    flat = spikes.reshape(spikes.shape[0], spikes.shape[1] if spikes.ndim > 1 else 1, -1) != 0
    if form == "position bits":
        flat = flat.swapaxes(1, 2)
    room = -(-flat.shape[2] // WORD) * WORD
    bits = np.zeros((*flat.shape[:2], room), bool)
    bits[:, :, : flat.shape[2]] = flat
    words = np.packbits(bits, axis=2, bitorder="little").view(np.uint64)
    return np.ascontiguousarray(words if form == "position bits" else words.transpose(1, 2, 0)).reshape(-1)
