"""The `.sev` container: what is written comes back, mapped and exact; anything else is one error."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stdeploy.errors import UserError
from stdeploy.exporters.event.container import ALIGNMENT, VERSION, Sev, read_sev

HEADER: dict[str, Any] = {"plan": {"kernels": {"β.0": "rows"}, "rate": 0.1 + 0.2}, "steps": 5, "none": None}
ARRAYS = {
    "weight": np.arange(15, dtype=np.float32).reshape(3, 5) / 7,
    "indices": np.array([2, 1, 70_000], dtype=np.int32),
    "scalar": np.array(-0.0),
    "empty": np.zeros((0, 4), np.uint8),
    "mask": np.array([True, False, True]),
}

numbers = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
types = st.sampled_from(
    ["?", "i1", "u1", "<i2", ">u2", "<i4", ">i4", "<u8", "<f2", "<f4", ">f4", "<f8", ">f8"]
)
arrays = types.flatmap(
    lambda t: hnp.arrays(t, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.sev"


def same(a: Any, b: Any) -> bool:
    """Equality that tells -0.0 from 0.0 and 1 from 1.0 and True."""
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    signs = isinstance(a, float) and math.copysign(1, a) != math.copysign(1, b)
    return type(a) is type(b) and a == b and not signs


@settings(max_examples=60, deadline=None)
@given(
    header=st.dictionaries(st.text(), plain, max_size=4), held=st.dictionaries(st.text(), arrays, max_size=4)
)
def test_a_round_trip_is_exact(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], held: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("sev") / "net.sev"
    sev = Sev(header, held)
    size = sev.write(path)
    assert path.read_bytes() == sev.to_bytes() and path.stat().st_size == size
    found = read_sev(path)
    assert same(found.header, header) and list(found.arrays) == list(held)
    for name, array in held.items():
        got = found.arrays[name]
        assert (
            type(got) is np.ndarray
            and got.dtype == array.dtype.newbyteorder("<")
            and got.shape == array.shape
        )
        assert got.tobytes() == array.astype(got.dtype).tobytes()  # bits: NaN payloads and zeros' signs too
    assert Sev(found.header, found.arrays).to_bytes() == sev.to_bytes()


def test_arrays_are_mapped_aligned_and_read_only(path: Path) -> None:
    Sev(HEADER, ARRAYS).write(path)
    found = read_sev(path)
    addresses = {a.ctypes.data for a in found.arrays.values() if a.size}
    assert all(address % ALIGNMENT == 0 for address in addresses) and len(addresses) == 4
    base = found.arrays["weight"]
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert base.base is not None and base.size == path.stat().st_size, "a view of the mapping, not a copy"
    with pytest.raises(ValueError, match="read-only"):
        found.arrays["weight"][0, 0] = 1


def test_a_mapped_file_can_be_replaced(path: Path) -> None:
    Sev(HEADER, ARRAYS).write(path)
    found = read_sev(path)
    Sev(found.header, {"other": np.ones(3)}).write(path)
    np.testing.assert_array_equal(found.arrays["weight"], ARRAYS["weight"])
    assert list(read_sev(path).arrays) == ["other"]


def test_every_flipped_byte_is_noticed_or_harmless(path: Path) -> None:
    whole = Sev(HEADER, ARRAYS).to_bytes()
    harmless = 0
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x20
        path.write_bytes(changed)
        try:
            found = read_sev(path)
        except UserError as error:
            assert str(path) in str(error) and error.hint
            continue
        harmless += 1
        assert whole[place] == 0, "only padding may change"
        assert Sev(found.header, found.arrays).to_bytes() == whole
    assert harmless < 5 * ALIGNMENT


def test_every_cut_is_noticed(path: Path) -> None:
    whole = Sev(HEADER, ARRAYS).to_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"is empty|cut short"):
            read_sev(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(UserError, match="damaged"):
        read_sev(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x08\x07\x12\x07pytorch" * 20, "is not a .sev file"),
        (Sev(HEADER, {}).to_bytes().replace(b"\r\n", b"\n"), "text mode"),
        (
            struct.pack("<8sIIQQ32s", b"\x93SEV\r\n\x1a\n", VERSION + 1, 0, 64, 0, b""),
            f"version {VERSION + 1}",
        ),
    ],
)
def test_what_is_no_such_file_is_one_error(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_sev(path)
    assert str(path) in caught.value.message and caught.value.hint


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_sev(tmp_path / "none.sev")
    with pytest.raises(UserError, match="is a folder"):
        read_sev(tmp_path)


def forged(document: Any, data: bytes = bytes(64)) -> bytes:
    """A file whose checksums are right and whose content is not."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    first = -(-(64 + len(text)) // ALIGNMENT) * ALIGNMENT
    lead = struct.pack("<8sIIQQ", b"\x93SEV\r\n\x1a\n", VERSION, 0, first + len(data), len(text))
    return (lead + hashlib.sha256(lead + text).digest() + text).ljust(first, b"\0") + data


ZEROS = 0x758D6336
"""CRC-32 of 64 zeros."""


def test_a_forged_file_of_legal_content_is_read(path: Path) -> None:
    path.write_bytes(forged({"header": {}, "arrays": [["a", "<f4", [4, 4], 0, ZEROS]]}))
    assert read_sev(path).arrays["a"].shape == (4, 4)


@pytest.mark.parametrize(
    "document",
    [
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        [],
        {"header": {}},
        {"header": [], "arrays": []},
        {"header": {}, "arrays": {}},
        {"header": {}, "arrays": [1]},
        {"header": {}, "arrays": [["a", "<f4", [4, 4], 0]]},
        {"header": {}, "arrays": [["a", "|O", [8], 0, ZEROS]]},
        {"header": {}, "arrays": [["a", ["<f4"], [4, 4], 0, ZEROS]]},
        {"header": {}, "arrays": [[1, "<f4", [4, 4], 0, ZEROS]]},
        {"header": {}, "arrays": [["a", ">f4", [4, 4], 0, ZEROS]]},
        {"header": {}, "arrays": [["a", "<f4", "44", 0, ZEROS]]},
        {"header": {}, "arrays": [["a", "<f4", [4, -4], 0, ZEROS]]},
        {"header": {}, "arrays": [["a", "<f4", [4, True], 0, ZEROS]]},
        {"header": {}, "arrays": [["a", "<f4", [4, 5], 0, ZEROS]]},
        {"header": {}, "arrays": [["a", "<f4", [0, 10**30], 0, 0]]},
        {"header": {}, "arrays": [["a", "<f4", [1] * 99, 0, 0]]},
        {"header": {}, "arrays": [["a", "<f4", [1], 4, 0]]},
        {"header": {}, "arrays": [["a", "<f4", [1], 64, 0]]},
        {"header": {}, "arrays": [["a", "|u1", [64], 0, ZEROS], ["a", "|u1", [64], 0, ZEROS]]},
    ],
)
def test_illegal_content_is_one_error(path: Path, document: Any) -> None:
    path.write_bytes(forged(document))
    with pytest.raises(UserError, match="no legal"):
        read_sev(path)


@pytest.mark.parametrize(
    ("header", "held"),
    [
        ({"a": (1, 2)}, {}),
        ({1: "a"}, {}),
        ({"a": math.nan}, {}),
        ({"a": math.inf}, {}),
        ({}, {"a": np.array(["text"])}),
        ({}, {"a": np.array([None])}),
        ({}, {"a": np.zeros(2, np.complex64)}),
        ({}, {"a": np.zeros((1,) * 9)}),
    ],
)
def test_what_the_file_cannot_hold_is_not_written(
    path: Path, header: dict[Any, Any], held: dict[str, Any]
) -> None:
    with pytest.raises(ValueError):
        Sev(header, held).write(path)
    assert list(path.parent.iterdir()) == []
