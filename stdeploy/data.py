"""Inputs to verify on: the user's npz, or random ones that say so."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from stdeploy.errors import UserError
from stdeploy.graph import Graph
from stdeploy.graph.execution import batch_size, leading
from stdeploy.graph.ops import Input
from stdeploy.graph.weight import Array

SEED = 0
"""Seed of the random inputs that stand in where the user gives no data."""


def load_data(path: Path, graph: Graph, limit: int | None = None) -> tuple[Array, Array | None]:
    """`images` (float32, in the model's layout) and `labels` of an npz file, at most `limit` samples.

    Raises UserError that names the file and the shape it should have.
    """
    wanted = input_text(graph)
    hint = f"save it with numpy.savez(path, images=float32 {wanted}, labels=int64 B)"
    if path.is_file() and not zipfile.is_zipfile(path):
        raise UserError(f"--data {path} is not a readable npz file", hint=hint)
    try:
        with np.load(path, allow_pickle=False) as archive:
            data = {name: archive[name] for name in archive.files if name in ("images", "labels")}
            names = list(archive.files)
    except FileNotFoundError as error:
        raise UserError(f"--data {path} does not exist") from error
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"--data {path} is not a readable npz file: {error}", hint=hint) from error
    if "images" not in data:
        raise UserError(f"--data {path} has no array called images (it has: {', '.join(names)})", hint=hint)
    images, labels = data["images"], data.get("labels")
    fault = _fault(images, labels, graph)
    if fault:
        raise UserError(f"--data {path}: {fault}", hint=hint)
    axis = 1 if _input(graph).layout == "TB" else 0
    count = images.shape[axis] if limit is None else min(limit, images.shape[axis])
    chosen = np.take(images, range(count), axis=axis)
    return chosen, None if labels is None else labels[:count]


def _fault(images: Array, labels: Array | None, graph: Graph) -> str | None:
    op = _input(graph)
    try:
        count = batch_size(images, op.layout, op.shape, graph.steps)
    except UserError as error:
        return error.message
    if images.dtype != np.float32:
        return f"images are {images.dtype}, not float32 as the model takes them (normalised)"
    if not np.all(np.isfinite(images)):
        return "images hold values that are not finite"
    if count == 0:
        return "images hold no sample"
    if labels is not None and labels.shape != (count,):
        return f"labels have shape {list(labels.shape)} for {count} images"
    if labels is not None and not np.issubdtype(labels.dtype, np.integer):
        return f"labels are {labels.dtype}, not the integers of the classes"
    classes = graph.outputs[0].value.shape
    if labels is not None and len(classes) == 1 and not 0 <= labels.min() <= labels.max() < classes[0]:
        return f"labels run from {labels.min()} to {labels.max()}, the model has {classes[0]} classes"
    return None


def random_data(graph: Graph, samples: int, seed: int = SEED) -> Array:
    """Standard normal inputs in the model's layout, float32: they exercise the network but mean nothing."""
    op = _input(graph)
    lead = leading(op.layout, samples, graph.steps)
    return np.random.default_rng(seed).standard_normal((*lead, *op.shape)).astype(np.float32)


def input_text(graph: Graph) -> str:
    """The input's shape in words, B samples: Bx1x28x28."""
    op = _input(graph)
    return "x".join(str(d) for d in [*leading(op.layout, "B", graph.steps), *op.shape])


def _input(graph: Graph) -> Input:
    op = graph.inputs[0].op
    if not isinstance(op, Input):
        raise TypeError("the graph's first input is not an Input")
    return op
