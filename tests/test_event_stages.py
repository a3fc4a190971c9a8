"""Stages of an event program one by one against their definitions."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stdeploy.exporters.event.formats import STEPS_BETWEEN, Format, route
from stdeploy.exporters.event.pack import windows
from stdeploy.graph.weight import Array
from stdeploy.runtime.event.bit_arrays import packed, unpacked
from tests.event_stage import SIZES, SOME, STEPS, OneStage, bits, counts, sliding

FORMATS: tuple[Format, ...] = ("position bits", "position floats", "channel bits", "channel floats")


def test_the_definition_of_bits() -> None:
    spikes = np.zeros((2, 3, 70), np.uint8)
    spikes[1, 2, 65] = 1
    by_channel = packed(spikes, "channel bits").reshape(3, 2, 2)  # channel, word of positions, step
    assert by_channel[2, 1, 1] == 1 << 1 and by_channel.sum() == 2
    by_position = packed(spikes, "position bits").reshape(2, 70, 1)  # step, position, word of channels
    assert by_position[1, 65, 0] == 1 << 2 and by_position.sum() == 4


@SOME
@given(SIZES, SIZES, STEPS, st.integers(0, 99), st.sampled_from(["position bits", "channel bits"]))
def test_unpacked_undoes_packed(channels: int, positions: int, steps: int, seed: int, form: Format) -> None:
    spikes = counts(seed, 1, steps, channels, positions).astype(np.uint8)
    words = packed(spikes, form)
    np.testing.assert_array_equal(unpacked(words, form, steps, (channels, positions)), spikes)
    assert sum(int(w).bit_count() for w in words) == spikes.sum()  # room stays 0


@SOME
@given(SIZES, SIZES, STEPS, st.integers(1, 3), st.integers(0, 99), st.booleans(), st.integers(1, 2))
def test_turn(c: int, p: int, steps: int, planes: int, seed: int, to_positions: bool, threads: int) -> None:
    values = counts(seed, planes, steps, c, p)
    forms: tuple[Format, Format] = ("channel bits", "position bits")
    before, after = forms if to_positions else forms[::-1]
    x, wanted = bits(values, planes, before), bits(values, planes, after)
    stage = OneStage(steps)
    stage.buffer("x", "bits", x.size // steps), stage.buffer("y", "bits", wanted.size // steps)
    sizes = {"planes": planes, "channels": c, "positions": p, "to_positions": int(to_positions)}
    np.testing.assert_array_equal(stage.run("Turn", {"x": x}, "y", threads, **sizes), wanted)


@SOME
@given(SIZES, SIZES, STEPS, st.integers(1, 6), st.integers(0, 99), st.sampled_from([1.0, 0.125, 1 / 3]))
def test_pack_and_unpack(c: int, p: int, steps: int, planes: int, seed: int, unit: float) -> None:
    values = counts(seed, planes, steps, c, p)
    words, floats = bits(values, planes, "channel bits"), (values * np.float32(unit)).astype(np.float32)
    for op, x, y in (("Pack", floats, words), ("Unpack", words, floats)):
        stage = OneStage(steps)
        for name, array in (("x", x), ("y", y)):
            stage.buffer(name, "floats" if array is floats else "bits", array.size // steps)
        sizes = {"planes": planes, "channels": c, "positions": p, "unit": stage.draft.floats.add([unit])}
        np.testing.assert_array_equal(stage.run(op, {"x": x}, "y", 1, **sizes), y.reshape(-1))


@SOME
@given(SIZES, SIZES, STEPS, st.integers(0, 99), st.booleans())
def test_flip(c: int, p: int, steps: int, seed: int, to_positions: bool) -> None:
    x = np.random.default_rng(seed).standard_normal((steps, c, p)).astype(np.float32)
    wanted = x.swapaxes(1, 2)
    before, after = (x, wanted) if to_positions else (wanted, x)
    stage = OneStage(steps)
    stage.buffer("x", "floats", c * p), stage.buffer("y", "floats", c * p)
    sizes = {"channels": c, "positions": p, "to_positions": int(to_positions)}
    found = stage.run("Flip", {"x": np.ascontiguousarray(before)}, "y", 1, **sizes)
    np.testing.assert_array_equal(found, np.ascontiguousarray(after).reshape(-1))


@SOME
@given(st.integers(1, 300), STEPS, st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_counts_are_added_bit_by_bit(words: int, steps: int, xp: int, yp: int, seed: int) -> None:
    zp = max(xp, yp) + 1
    a, b = counts(seed, xp, words * steps, 64), counts(seed + 1, yp, words * steps, 64)

    def planes(values: Array, n: int) -> Array:
        flat = [
            np.packbits(((values >> k) & 1).astype(np.uint8), axis=1, bitorder="little") for k in range(n)
        ]
        return np.concatenate([f.view(np.uint64).reshape(-1) for f in flat])

    stage = OneStage(steps)
    for name, n in (("x", xp), ("y", yp), ("z", zp)):
        stage.buffer(name, "bits", n * words)
    fields = {"x_planes": xp, "y_planes": yp, "z_planes": zp, "words": words}
    found = stage.run("AddCounts", {"x": planes(a, xp), "y": planes(b, yp)}, "z", 2, **fields)
    np.testing.assert_array_equal(found, planes(a + b, zp))


@SOME
@given(
    SIZES,
    SIZES,
    STEPS,
    st.integers(1, 3),
    st.integers(0, 99),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_gate(c: int, p: int, steps: int, planes: int, seed: int, spread: list[bool]) -> None:
    shapes = [(steps, 1 if spread[i] else c, 1 if spread[i + 1] else p) for i in (0, 2)]
    wide = (steps, *(max(a, b) for a, b in zip(shapes[0][1:], shapes[1][1:], strict=True)))
    a, b = counts(seed, planes, *shapes[0]), counts(seed + 1, 1, *shapes[1])
    arrays = {"x": bits(a, planes, "channel bits"), "y": bits(b, 1, "channel bits")}
    wanted = bits(np.broadcast_to(a * b, wide), planes, "channel bits")
    stage = OneStage(steps)
    for name, array in {**arrays, "z": wanted}.items():
        stage.buffer(name, "bits", array.size // steps)
    fields = {"x_planes": planes, "y_planes": 1, "channels": wide[1], "positions": wide[2]}
    for name, shape in zip("xy", shapes, strict=True):
        fields |= {f"{name}_channels": shape[1], f"{name}_positions": shape[2]}
    np.testing.assert_array_equal(stage.run("Gate", arrays, "z", 2, **fields), wanted)


@SOME
@given(sliding(), st.integers(1, 3), STEPS, st.integers(1, 2), st.integers(0, 99))
def test_unfold(
    case: tuple[Any, tuple[int, ...], tuple[int, ...]], channels: int, steps: int, planes: int, seed: int
) -> None:
    op, shape, out = case
    table, size, n = windows(op, shape, out), int(np.prod(shape)), int(np.prod(out))
    values = counts(seed, planes, steps, channels, size)
    wanted = np.zeros((steps, table.taps, channels, n), np.int64)
    for p in range(n):
        for tap, q in table.pairs[table.ends[p] : table.ends[p + 1]]:
            wanted[:, tap, :, p] = values[:, :, q]
    x = bits(values, planes, "channel bits")
    y = bits(wanted.reshape(steps, -1, n), planes, "channel bits")
    stage = OneStage(steps)
    stage.buffer("x", "bits", x.size // steps), stage.buffer("y", "bits", y.size // steps)
    shifts = stage.draft.ints.add(table.shifts())
    sizes = {"channels": channels, "x_positions": size, "positions": n, "taps": table.taps}
    np.testing.assert_array_equal(
        stage.run("Unfold", {"x": x}, "y", 2, planes=planes, shifts=shifts, **sizes), y
    )


@SOME
@given(sliding(), st.sampled_from([1, 63, 65]), STEPS, st.integers(0, 99))
def test_union(
    case: tuple[Any, tuple[int, ...], tuple[int, ...]], channels: int, steps: int, seed: int
) -> None:
    op, shape, out = case
    table, size, n = windows(op, shape, out), int(np.prod(shape)), int(np.prod(out))
    spikes = np.random.default_rng(seed).random((steps, channels, size)) < 0.2
    wanted = np.zeros((steps, channels, n), bool)
    for p in range(n):
        for _, q in table.pairs[table.ends[p] : table.ends[p + 1]]:
            wanted[:, :, p] |= spikes[:, :, q]
    x, y = (packed(s, "position bits") for s in (spikes, wanted))
    stage = OneStage(steps)
    stage.buffer("x", "bits", x.size // steps), stage.buffer("y", "bits", y.size // steps)
    sizes = {"channels": channels, "x_positions": size, "positions": n}
    found = stage.run("Union", {"x": x}, "y", 2, windows=stage.draft.ints.add(table.table()), **sizes)
    np.testing.assert_array_equal(found, y)


@pytest.mark.parametrize("want", FORMATS)
@pytest.mark.parametrize("have", FORMATS)
def test_every_format_leads_to_every_other(have: Format, want: Format) -> None:
    way = route([have], want, bits=True)
    assert way[0] == have and way[-1] == want
    assert all(b in STEPS_BETWEEN[a] for a, b in pairwise(way))
    if have.endswith("floats") and want.endswith("floats"):
        assert not any(form.endswith("bits") for form in route([have], want, bits=False))
    elif have.endswith("floats"):
        with pytest.raises(ValueError, match="no way"):
            route([have], want, bits=False)
