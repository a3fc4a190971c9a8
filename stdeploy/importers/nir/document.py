"""A NIR file as read from disk: its network, its contract where stdeploy wrote one, and bytes per node.

Groups are walked here and every node is made by nir itself, one at a time: nir.read fails at the first damaged
node without its name, and its type check refuses legal grouped and non-square convolutions (nir 1.0.8).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np

from stdeploy.errors import UserError
from stdeploy.importers.nir.contract import Contract, read_contract

MOST_BYTES = 16 << 30
"""Arrays that a file may declare; HDF5 can declare any size in a few bytes."""

_MOST_NESTED = 16
_LARGEST = 1 << 31


@dataclass(frozen=True, eq=False)
class Document:
    """`network` is a nir.NIRGraph without its type check; `stored`: bytes of arrays on disk by node."""

    path: Path
    network: Any
    contract: Contract | None
    version: str
    stored: Mapping[str, int] = field(default_factory=dict)


def read_document(path: Path | str) -> Document:
    """Read a NIR file; UserError where it is missing, damaged, no NIR, too new or absurdly large."""
    path = Path(path)
    with _opened(path) as file:
        try:
            version = _version(path, file)
            root = file["node"]
            declared = _declared(root)
            if declared > MOST_BYTES:
                raise UserError(
                    f"{path} declares {declared / 2**30:,.0f} GiB of arrays, more than {MOST_BYTES >> 30}"
                )
            network = _graph(path, root, "")
            return Document(path, network, read_contract(path, file), version, _stored(root, ""))
        except (KeyError, ValueError, TypeError, AttributeError, OSError, RuntimeError, MemoryError) as error:
            raise UserError(
                f"{path} is not a readable NIR file: {_plain(error)}", hint="is it cut short?"
            ) from error


def stored_contract(path: Path) -> Contract | None:
    """Only what stdeploy wrote about a file's steps, input and neurons; None where it wrote nothing."""
    with _opened(path) as file:
        return read_contract(path, file)


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path} is a folder" if path.is_dir() else f"{path} does not exist")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(
            f"{path} is not a readable NIR file: {_plain(error)}", hint="NIR files are HDF5; is it cut short?"
        ) from error


def _plain(error: BaseException) -> str:
    """An error's text in one line; KeyError's is only a name."""
    text = " ".join(str(error).split())
    return f"it has no {text}" if isinstance(error, KeyError) else text or type(error).__name__


def _version(path: Path, file: Any) -> str:
    """The nir release that wrote the file; UserError where its major number is above the installed one's."""
    stored = file.get("version")
    text = _text(stored[()]) if isinstance(stored, h5py.Dataset) else ""
    written, here = (v.split(".")[0] for v in (text, nir.version))
    if written.isdecimal() and here.isdecimal() and int(written) > int(here):
        raise UserError(
            f"{path} was written by nir {text}; nir {nir.version} is installed", hint="pip install -U nir"
        )
    return text or "unknown"


def _declared(group: Any) -> int:
    """Bytes that the arrays of a group claim to hold."""
    sizes: list[int] = []

    def note(_name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            sizes.append(int(item.dtype.itemsize) * int(np.prod(item.shape, dtype=object)))

    group.visititems(note)
    return sum(sizes)


def _stored(graph: Any, prefix: str) -> dict[str, int]:
    """Bytes on disk by node, nodes of nested graphs as `graph.node`."""
    out: dict[str, int] = {}
    for name, item in graph["nodes"].items():
        if "nodes" in item:
            out |= _stored(item, f"{prefix}{name}.")
        else:
            arrays = [d for d in item.values() if isinstance(d, h5py.Dataset)]
            out[f"{prefix}{name}"] = sum(int(d.id.get_storage_size()) for d in arrays)
    return out


def _graph(path: Path, group: Any, where: str, depth: int = 0) -> Any:
    if depth > _MOST_NESTED:
        raise UserError(f"{path}: {where} lies more than {_MOST_NESTED} graphs deep")
    if _text(group["type"][()]) != "NIRGraph":
        raise UserError(f"{path} holds a single {_text(group['type'][()])}, not a network")
    nodes = {}
    for name, item in group["nodes"].items():
        inner = f"{where}.{name}".lstrip(".")
        if _text(item["type"][()]) == "NIRGraph":
            nodes[name] = _graph(path, item, inner, depth + 1)
        else:
            nodes[name] = _node(path, item, inner)
    edges = group["edges"][()]
    if edges.size and edges.shape[1:] != (2,):
        raise UserError(f"{path}: edges of shape {edges.shape} are no pairs of nodes")
    return nir.NIRGraph(nodes, [(_text(a), _text(b)) for a, b in edges], type_check=False)


def _node(path: Path, group: Any, where: str) -> Any:
    """One primitive, made (and its parameters' shapes checked) by nir."""
    kind = _text(group["type"][()])
    if kind not in nir.ir.__all__:
        raise UserError(f"{path}: {where} is a {kind}, which nir {nir.version} does not know")
    stored = {key: item[()] for key, item in group.items() if isinstance(item, h5py.Dataset)}
    try:
        fields = {key: _checked(kind, key, value) for key, value in stored.items()}
        return nir.dict2NIRNode(fields)
    except (AssertionError, TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: {where}: not a legal {kind}: {_plain(error)}") from error


_LEAST = {
    "stride": 1,
    "dilation": 1,
    "kernel_size": 1,
    "groups": 1,
    "padding": 0,
    "shape": 1,
    "input_shape": 1,
    "input_type": 1,
    "start_dim": -_LARGEST,
    "end_dim": -_LARGEST,
}
"""Parameters that are integers, with the least that each may be."""

_SCALARS = {"groups", "start_dim", "end_dim"}


def _checked(kind: str, key: str, value: Any) -> Any:
    """A field as nir takes it; ValueError where it is not the kind of number that its name stands for."""
    if isinstance(value, bytes):
        return _text(value)
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{key} holds {array.dtype}, not real numbers")
    if key not in _LEAST:
        return value
    array = array.astype(np.float64)
    if array.ndim > 1 or not np.all(np.isfinite(array)) or np.any(array != np.round(array)):
        raise ValueError(f"{key} has to be integers, not {array.tolist()}")
    if np.any(array < _LEAST[key]) or np.any(array > _LARGEST):
        raise ValueError(f"{key} is out of range: {array.tolist()}")
    whole = array.astype(np.int64)
    if key in _SCALARS or (kind == "Conv1d" and key == "input_shape"):
        if array.size != 1:
            raise ValueError(f"{key} is one number, not {array.tolist()}")
        return int(whole.reshape(()))
    return whole


def _text(value: Any) -> str:
    return value.decode("utf8", "replace") if isinstance(value, bytes) else str(value)
