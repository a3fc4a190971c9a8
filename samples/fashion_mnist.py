"""Fashion-MNIST from the Debian package `dataset-fashion-mnist`, normalised."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch

FOLDER = Path("/usr/share/datasets/fashion-mnist")
MEAN, DEVIATION = 0.2860, 0.3530
"""Of the training pixels in [0, 1]."""


def _idx(path: Path) -> np.ndarray:
    """Array of an IDX file: 4-byte magic (type, rank), big-endian sizes, then unsigned bytes."""
    data = gzip.decompress(path.read_bytes())
    rank = data[3]
    shape = np.frombuffer(data, ">i4", rank, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def load(part: str, folder: Path = FOLDER) -> tuple[torch.Tensor, torch.Tensor]:
    """Images `[n, 1, 28, 28]` float32 (normalised) and labels `[n]` int64 of `train` or `t10k`."""
    if not folder.is_dir():
        raise SystemExit(f"{folder} not found; install it with: apt-get install dataset-fashion-mnist")
    images = _idx(folder / f"{part}-images-idx3-ubyte.gz").astype(np.float32) / 255
    labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz").astype(np.int64)
    return torch.from_numpy((images - MEAN) / DEVIATION)[:, None], torch.from_numpy(labels)
