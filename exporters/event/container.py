"""The `.sev` file: a JSON header and named arrays that a reader maps instead of reading.

    0    8  magic
    8    4  format version, uint32
    12   4  zero
    16   8  bytes of the whole file, uint64
    24   8  bytes of the JSON, uint64
    32  32  SHA-256 of the 32 bytes before it and of the JSON
    64      JSON, UTF-8: {"header": {...}, "arrays": [[name, type, shape, offset, CRC-32], ...]}
            arrays in C order; offsets count from the first multiple of 64 behind the JSON and are such multiples

All integers and arrays are little-endian. The magic holds line ends and a byte that no text has, as PNG's does, so that
a copy in text mode shows.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stdeploy.errors import UserError
from stdeploy.files import atomic_write
from stdeploy.graph.weight import Array

SUFFIX = ".sev"
VERSION = 2
ALIGNMENT = 64
"""Bytes: a cache line, and the width of an AVX-512 load."""

_MAGIC = b"\x93SEV\r\n\x1a\n"
_LEAD = struct.Struct("<8sIIQQ")
_DIGEST = 32
_START = _LEAD.size + _DIGEST
_TYPES = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
_LARGEST_RANK = 8
_AGAIN = "export it again"


@dataclass(frozen=True, eq=False)
class Sev:
    """What a `.sev` file holds: plain JSON values, and arrays by name (read-only where they were mapped)."""

    header: dict[str, Any]
    arrays: dict[str, Array]

    def to_bytes(self) -> bytes:
        """The file's bytes; the same content gives the same bytes. ValueError where JSON or arrays cannot hold it."""
        return b"".join(_parts(self))

    def write(self, path: Path | str) -> int:
        """Write the file, which appears whole or not at all, and return its size. UserError where it cannot be."""
        with atomic_write(path) as temporary, temporary.open("wb") as stream:
            return sum(stream.write(part) for part in _parts(self))


def _parts(sev: Sev) -> Iterator[bytes | memoryview]:
    """The file piece by piece."""
    arrays = {name: _little(name, array) for name, array in sev.arrays.items()}
    table: list[list[Any]] = []
    end = 0
    for name, array in arrays.items():
        start = _aligned(end)
        table.append([name, array.dtype.str, list(array.shape), start, zlib.crc32(_raw(array))])
        end = start + array.nbytes
    document = {"header": sev.header, "arrays": table}
    text = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    if json.loads(text) != document:
        raise ValueError("the header holds what JSON does not give back: tuples, or keys that are no strings")
    first = _aligned(_START + len(text))
    lead = _LEAD.pack(_MAGIC, VERSION, 0, first + end, len(text))
    yield lead + hashlib.sha256(lead + text).digest() + text + bytes(first - _START - len(text))
    place = 0
    for row, array in zip(table, arrays.values(), strict=True):
        yield bytes(row[3] - place)
        yield _raw(array)
        place = row[3] + array.nbytes


def _little(name: str, array: Array) -> Array:
    kind = array.dtype.newbyteorder("<")
    if kind.str not in _TYPES or array.ndim > _LARGEST_RANK:
        raise ValueError(f"{name} is {array.ndim}-d {array.dtype}, which a .sev file does not hold")
    return np.asarray(array, dtype=kind, order="C")


def _raw(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def read_sev(path: Path | str) -> Sev:
    """Map a file written by `Sev.write`; its arrays are views of the mapping, and read-only.

    UserError that names the file where it is missing, not a .sev file, cut, damaged (every array is held against its
    checksum) or newer than this stdeploy.
    """
    source = Path(path)
    if source.is_dir():
        raise UserError(f"{source} is a folder, not a .sev file")
    try:
        with source.open("rb") as stream:
            size = source.stat().st_size
            text_size = _require_lead(source, stream.read(_START), size)
            mapped = np.frombuffer(mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ), np.uint8)
    except FileNotFoundError as error:
        raise UserError(f"{source} does not exist") from error
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror or error}") from error
    text = mapped[_START : _START + text_size].tobytes()
    lead, digest = mapped[: _LEAD.size].tobytes(), mapped[_LEAD.size : _START].tobytes()
    if hashlib.sha256(lead + text).digest() != digest:
        raise UserError(f"{source} is damaged: its header's checksum does not match", hint=_AGAIN)
    try:
        document = json.loads(text)
        header, table = document["header"], document["arrays"]
        if not isinstance(header, dict) or not isinstance(table, list):
            raise TypeError("its header is no object, or its table no list")
        views = [_view(row, mapped[_aligned(_START + text_size) :]) for row in table]
        if len({name for name, *_ in views}) != len(views):
            raise ValueError("two arrays have one name")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{source} is no legal .sev file: {error}", hint=_AGAIN) from error
    for name, array, checksum in views:
        if zlib.crc32(_raw(array)) != checksum:
            raise UserError(f"{source} is damaged: the checksum of {name} does not match", hint=_AGAIN)
    return Sev(header, {name: array for name, array, _ in views})


def _require_lead(source: Path, lead: bytes, size: int) -> int:
    """Bytes of the JSON; UserError where the first bytes are not those of a whole file of this version."""
    if not lead:
        raise UserError(f"{source} is empty", hint=_AGAIN)
    if not lead.startswith(_MAGIC[: len(lead)]):
        damaged = lead[:4] == _MAGIC[:4]
        reason = "is damaged, perhaps by a copy in text mode" if damaged else "is not a .sev file"
        raise UserError(f"{source} {reason}", hint="stdeploy export MODEL --target event writes one")
    if len(lead) < _START:
        raise UserError(f"{source} is cut short: it ends within its first {_START} bytes", hint=_AGAIN)
    _, version, _, stated, text_size = _LEAD.unpack_from(lead)
    if version != VERSION:
        raise UserError(
            f"{source} has format version {version}; this stdeploy reads version {VERSION}",
            hint="read it with the stdeploy that wrote it, or export the model again with this one",
        )
    if size < stated:
        raise UserError(f"{source} is cut short: {size:,} of {stated:,} bytes are there", hint=_AGAIN)
    if size > stated or _aligned(_START + text_size) > size:
        raise UserError(f"{source} is damaged: its sizes do not fit its {size:,} bytes", hint=_AGAIN)
    return int(text_size)


def _view(row: Any, data: Array) -> tuple[str, Array, int]:
    """Name, array and checksum of a row of the table; ValueError or TypeError where `data` holds no such array."""
    name, kind, shape, offset, checksum = row
    if not isinstance(name, str) or not isinstance(shape, list):
        raise TypeError("an array's name or shape is none")
    if not all(type(n) is int and n >= 0 for n in (*shape, offset, checksum)) or len(shape) > _LARGEST_RANK:
        raise ValueError(f"{name} has a shape, offset or checksum that is none")
    if kind not in _TYPES:
        raise ValueError(f"{name} is of type {kind}")
    dtype: np.dtype[Any] = np.dtype(kind)
    end = offset + dtype.itemsize * math.prod(shape)
    if offset % ALIGNMENT or end > data.size:
        raise ValueError(f"{name} does not lie within the file")
    array: Array = data[offset:end].view(dtype).reshape(shape)
    return name, array, checksum
