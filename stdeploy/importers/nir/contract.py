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
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{path}: its metadata is damaged ({error})", hint="export it again") from error


def _parse(metadata: Any) -> Contract:
    layers = metadata["neurons"].items()
    contract = Contract(
        metadata=metadata,
        steps=int(metadata["steps"]),
        dt=float(metadata["dt"]),
        input={key: metadata["input"][key] for key in ("layout", "shape")},
        output={key: metadata["output"][key] for key in ("label", "layout", "shape", "over_steps")},
        shapes={name: tuple(layer["shape"]) for name, layer in layers},
        parts={name: [_part(p) for p in layer["parts"]] for name, layer in layers},
        roles=dict(metadata.get("roles", {})),
        counts=dict(metadata.get("counts", {})),
        dialect=_dialect(metadata),
    )
    if not (contract.steps > 0 and np.isfinite(contract.dt) and contract.dt > 0):
        raise ValueError(f"steps = {contract.steps}, dt = {contract.dt}")
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
    channels = item["channels"]
    return Part(str(item["node"]), None if channels is None else np.asarray(channels, dtype=np.int64))
