"""NIR graphs and files for tests, written by hand."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np

from stdeploy.graph.weight import Array

DT = 0.25
RNG = np.random.default_rng(11)


def dyadic(*shape: int) -> Array:
    """Quarters: sums are exact in float32, and ties at the threshold happen."""
    return RNG.integers(-4, 7, shape).astype(np.float32) / 4


def lif(*shape: int, **how: float | Array) -> Any:
    given: dict[str, Any] = {
        "tau": 2 * DT,
        "r": 1.0,
        "v_leak": 0.0,
        "v_threshold": 0.5,
        "v_reset": 0.0,
        **how,
    }
    return nir.LIF(**{k: np.broadcast_to(np.asarray(v, np.float32), shape).copy() for k, v in given.items()})


def conv2d(*weight: int, space: tuple[int, int] | None = None, **how: Any) -> Any:
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **how}
    return nir.Conv2d(space, dyadic(*weight), bias=dyadic(weight[0]), **given)


def network(shape: tuple[int, ...], *chain: Any, output: tuple[int, ...]) -> Any:
    """Input, the chain as n0, n1, ..., Output."""
    nodes = {"input": nir.Input(np.array(shape))} | {f"n{i}": node for i, node in enumerate(chain)}
    nodes["output"] = nir.Output(np.array(output))
    first = nodes["n0"]
    if isinstance(first, nir.Conv1d | nir.Conv2d) and first.input_shape is None:
        first.input_shape = shape[1:] if len(shape) == 3 else shape[1]  # nir writes no convolution without it
    return nir.NIRGraph(nodes, list(itertools.pairwise(nodes)), type_check=False)


def plain(tmp_path: Path, **changes: Any) -> Path:
    """A small legal file, with nodes replaced."""
    net = network((3,), nir.Affine(dyadic(4, 3), dyadic(4)), lif(4), output=(4,))
    net.nodes.update(changes)
    nir.write(tmp_path / "net.nir", net)
    return tmp_path / "net.nir"


def damaged(path: Path, how: str) -> None:
    """Break a legal file in one way."""
    if how == "cut short":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return
    if how in ("empty", "text"):
        path.write_bytes(b"" if how == "empty" else b"not HDF5 at all\n" * 99)
        return
    with h5py.File(path, "r+") as file:
        nodes = file["node/nodes"]
        if how == "no network":
            del file["node"]
        elif how == "no edges":
            del file["node/edges"]
        elif how == "newer":
            file["version"][()] = "99.0.0"
        elif how == "unknown type":
            nodes["n0/type"][()] = "Attention"
        elif how == "missing field":
            del nodes["n1/tau"]
        elif how == "ragged":
            del nodes["n1/tau"]
            nodes["n1/tau"] = np.ones(2)
        elif how == "wrong edge":
            del file["node/edges"]
            file["node/edges"] = np.array([["input", "nowhere"]], dtype=h5py.string_dtype())
        elif how == "huge":
            del nodes["n1/tau"]
            nodes.create_dataset("n1/tau", shape=(10**7, 10**6), dtype="f4", chunks=(1000, 1000))
        elif how == "words":
            del nodes["n1/tau"]
            nodes["n1/tau"] = np.array(["a"] * 4, dtype=h5py.string_dtype())
        elif how == "one node":
            file["node/type"][()] = "Affine"
        elif how == "endless":
            nodes["again"] = file["node"]
        elif how == "two inputs":
            file.copy("node/nodes/input", "node/nodes/other")
