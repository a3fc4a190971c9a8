"""The graph's file form: JSON for the structure and npz for the arrays, versioned and checksummed.

One `.stg` file is an uncompressed-name npz archive: entry `graph.json` (UTF-8 bytes) beside one entry
per distinct array. The checksum covers the JSON without itself and every array's name, type, shape and bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from stdeploy.errors import UserError
from stdeploy.files import atomic_write
from stdeploy.graph.graph import Graph, GraphBuilder, GraphError, Node
from stdeploy.graph.ops import CATALOGUE, Op
from stdeploy.graph.validate import validate
from stdeploy.graph.value import Domain
from stdeploy.graph.weight import Array, Weight

FORMAT = "stdeploy.graph"
VERSION = 1
SUFFIX = ".stg"
_ENTRY = "graph.json"


def save_graph(graph: Graph, path: Path | str) -> Path:
    """Write `graph` to `path`; the file appears whole or not at all (UserError where it cannot)."""
    arrays = _Arrays()
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "steps": graph.steps,
        "metadata": dict(graph.metadata),
        "nodes": [_encode_node(node, arrays) for node in graph],
    }
    document["sha256"] = _checksum(document, arrays.by_name)
    text = np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)
    with atomic_write(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **{_ENTRY: text}, **arrays.by_name)
    return Path(path)


def load_graph(path: Path | str) -> Graph:
    """Read a graph written by save_graph; UserError where it is damaged, foreign or too new."""
    source = Path(path)
    if source.is_file() and not zipfile.is_zipfile(source):
        raise UserError(f"{source} is not a stdeploy graph, or is truncated", hint="export it again")
    try:
        with np.load(source, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        document = json.loads(arrays.pop(_ENTRY).tobytes())
    except FileNotFoundError as error:
        raise UserError(f"{source} does not exist") from error
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{source} is not a stdeploy graph: {error}", hint="export it again") from error
    if not isinstance(document, dict):
        raise UserError(
            f"{source} is not a stdeploy graph: its {_ENTRY} is no object", hint="export it again"
        )
    if document.get("format") != FORMAT or document.get("version") != VERSION:
        found = f"{document.get('format')} version {document.get('version')}"
        raise UserError(f"{source} holds {found}; this stdeploy reads {FORMAT} version {VERSION}")
    stated = document.pop("sha256", None)
    if stated != _checksum(document, arrays):
        raise UserError(f"{source} is damaged: its checksum does not match", hint="export it again")
    try:
        builder = GraphBuilder(int(document["steps"]), dict(document["metadata"]))
        for item in document["nodes"]:
            builder.add(_decode_op(item, arrays), item["inputs"], name=item["name"], source=item["source"])
        return validate(builder.build())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{source} holds an illegal graph: {error}") from error


def _checksum(document: dict[str, Any], arrays: dict[str, Array]) -> str:
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


class _Arrays:
    """Arrays by entry name; an array that several nodes share is stored once."""

    def __init__(self) -> None:
        self.by_name: dict[str, Array] = {}
        self._names: dict[int, str] = {}

    def add(self, array: Array) -> str:
        if id(array) not in self._names:
            name = f"a{len(self.by_name)}"
            self._names[id(array)] = name
            self.by_name[name] = array
        return self._names[id(array)]


def _encode_node(node: Node, arrays: _Arrays) -> dict[str, Any]:
    fields = {f.name: _encode(getattr(node.op, f.name), arrays) for f in dataclasses.fields(node.op)}
    return {
        "name": node.name,
        "op": node.kind,
        "inputs": list(node.inputs),
        "source": node.source,
        "fields": fields,
    }


def _encode(value: Any, arrays: _Arrays) -> Any:
    if isinstance(value, np.ndarray):
        return {"array": arrays.add(value)}
    if isinstance(value, Weight):
        return {
            "weight": {f.name: _encode(getattr(value, f.name), arrays) for f in dataclasses.fields(value)}
        }
    if isinstance(value, Domain):
        return {"domain": [float(value.scale), value.maximum]}
    if isinstance(value, tuple):
        return [_encode(item, arrays) for item in value]
    return value.item() if isinstance(value, np.generic) else value  # numpy scalars are no JSON


def _decode_op(item: dict[str, Any], arrays: dict[str, Array]) -> Op:
    if item["op"] not in CATALOGUE:
        raise GraphError(f"{item['name']}: unknown operator {item['op']}")
    return CATALOGUE[item["op"]](**{name: _decode(value, arrays) for name, value in item["fields"].items()})


def _decode(value: Any, arrays: dict[str, Array]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, arrays) for item in value)
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return arrays[value["array"]]
    if "weight" in value:
        return Weight(**{name: _decode(part, arrays) for name, part in value["weight"].items()})
    return Domain(*value["domain"])
