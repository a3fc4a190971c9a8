"""What stdeploy writes into a NIR file beside the network: time, input, output, the nodes of each layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from stdeploy.errors import UserError
from stdeploy.exporters.nir.emit import METADATA_KEY
from stdeploy.graph.weight import Array

LAYOUTS = ("B", "BT", "TB")
OVER_STEPS = ("mean", "sum", "last", "each step")


@dataclass(frozen=True, eq=False)
class Part:
    """Channels of a neuron layer that one node holds; None: all, in order."""

    node: str
    channels: Array | None


@dataclass(frozen=True)
class WrittenIn:
    """The dialect that a file says it is in; `proven_in` None: it says nothing of readers."""

    name: str
    proven_in: tuple[str, ...] | None
    refused_by: Mapping[str, str]
    type_check: bool


@dataclass(frozen=True, eq=False)
class Contract:
    """`metadata` is all of it; `shapes` and `parts` by neuron layer; `roles` of auxiliary nodes."""

    metadata: Mapping[str, Any]
    steps: int
    dt: float
    input: Mapping[str, Any]
    output: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    parts: Mapping[str, list[Part]]
    roles: Mapping[str, str]
    counts: Mapping[str, int]
    dialect: WrittenIn


def read_contract(path: Path, file: Any) -> Contract | None:
    """The contract in an open HDF5 file, None where there is none; UserError where it is damaged."""
    stored = file.get(f"node/metadata/{METADATA_KEY}")
    if not isinstance(stored, h5py.Dataset):
        return None
    try:
        return _parse(json.loads(stored[()]))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, OverflowError) as error:
        raise UserError(f"{path}: its metadata is damaged ({error})", hint="export it again") from error


def _parse(metadata: Any) -> Contract:
    layers = metadata["neurons"].items()
    ends = {key: metadata[key] for key in ("input", "output")}
    contract = Contract(
        metadata=metadata,
        steps=_whole("steps", [metadata["steps"]])[0],
        dt=float(metadata["dt"]),
        input={"layout": ends["input"]["layout"], "shape": _whole("input", ends["input"]["shape"])},
        output={
            **{key: ends["output"][key] for key in ("label", "layout", "over_steps")},
            "shape": _whole("output", ends["output"]["shape"]),
        },
        shapes={name: _whole(name, layer["shape"]) for name, layer in layers},
        parts={name: [_part(p) for p in layer["parts"]] for name, layer in layers},
        roles={str(node): str(role) for node, role in metadata.get("roles", {}).items()},
        counts={str(key): int(count) for key, count in metadata.get("counts", {}).items()},
        dialect=_dialect(metadata),
    )
    if not (np.isfinite(contract.dt) and contract.dt > 0):
        raise ValueError(f"dt = {contract.dt}")
    for key, value, known in (
        ("layout", contract.input["layout"], LAYOUTS),
        ("layout", contract.output["layout"], LAYOUTS),
        ("over_steps", contract.output["over_steps"], OVER_STEPS),
    ):
        if value not in known:
            raise ValueError(f"{key} is {value!r}, none of {', '.join(known)}")
    empty = [name for name, parts in contract.parts.items() if not parts]
    if empty:
        raise ValueError(f"no node holds {', '.join(empty)}")
    return contract


def _dialect(metadata: Mapping[str, Any]) -> WrittenIn:
    proven = metadata.get("proven_in")
    return WrittenIn(
        str(metadata.get("dialect", "")),
        None if proven is None else tuple(map(str, proven)),
        dict(metadata.get("refused_by", {})),
        bool(metadata.get("dialect_rules", {}).get("type_check", True)),
    )


def _part(item: Mapping[str, Any]) -> Part:
    node, channels = str(item["node"]), item["channels"]
    return Part(node, None if channels is None else np.array(_whole(node, channels, least=0), dtype=np.int64))


def _whole(label: str, values: Any, least: int = 1) -> tuple[int, ...]:
    """A list of integers of at least `least`; ValueError else."""
    if not isinstance(values, list) or not all(type(n) is int and n >= least for n in values):
        raise ValueError(f"{label}: {values!r} is no list of integers from {least} on")
    return tuple(values)
