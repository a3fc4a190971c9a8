"""Stages of an event program one by one against their definitions, and the tables and the memory that they read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.exporters.event.draft import Draft
from stdeploy.exporters.event.formats import STEPS_BETWEEN, Format, route
from stdeploy.exporters.event.pack import RUN, matrix, rows, windows
from stdeploy.exporters.event.stages import NUMBER, STAGES, STEPS_TOGETHER
from stdeploy.graph import Graph, GraphBuilder, Weight, ops
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.rules import window_count
from stdeploy.graph.weight import Array
from stdeploy.runtime.event.bit_arrays import packed, unpacked
from stdeploy.runtime.event.machine import Machine

FORMATS: tuple[Format, ...] = ("position bits", "position floats", "channel bits", "channel floats")
SIZES = st.sampled_from([1, 2, 3, 31, 63, 64, 65, 127, 128, 129, 200])
STEPS = st.sampled_from([1, 3, 4, 5])
SOME = settings(max_examples=60, deadline=None)


class OneStage:
    """A program of one stage; `run` puts arrays into its buffers and takes one out."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.draft = Draft(Graph(steps, {}))

    def buffer(self, name: str, kind: str, count: int, *, listed: bool = False) -> str:
        return self.draft.buffer(name, kind, count, True, listed=listed)

    def run(self, op: str, inputs: dict[str, Array], out: str, threads: int = 1, **fields: int) -> Array:
        names = self.draft.buffers
        stepped = {f: True for f in STAGES[NUMBER[op]]._fields if f == "steps" or f.endswith("_steps")}
        self.draft.stage(op, ["n"], {name: name for name in names}, fields, stepped)
        header = {
            "stages": self.draft.stages,
            "buffers": names,
            "input": {"buffer": next(iter(inputs))},
            "outputs": [{"buffer": name} for name in names],
        }
        arrays = {"weights": self.draft.floats.array(), "indices": self.draft.ints.array()}
        machine = Machine(header, arrays, self.steps, threads, stateful=False)
        machine.bytes[:] = 0xA5  # nothing may rest on memory that happens to be zero
        for name, array in inputs.items():
            machine.array(name)[:] = array.reshape(-1)
        machine.run(0, 1)
        machine.close()
        return machine.array(out).copy()


def bits(values: Array, planes: int, form: Format) -> Array:
    """Counts `[T, C, P]` as planes of words: by the definition in stages."""
    return np.concatenate([packed((values >> k) & 1, form) for k in range(planes)])


def counts(seed: int, planes: int, *shape: int) -> Array:
    return np.random.default_rng(seed).integers(0, 2**planes, shape)


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


@st.composite
def sliding(draw: Any) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
    """A convolution or pool of one or two axes, the shape it slides over and the one it makes."""
    axes = draw(st.integers(1, 2))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    shape, kernel, stride = each(1, 11), each(1, 3), each(1, 3)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    dilation = each(1, 2)
    kind = draw(st.sampled_from(["conv", "max", "avg"]))
    dilation = (1,) * axes if kind == "avg" else dilation
    ceil = kind != "conv" and draw(st.booleans())
    pieces = zip(shape, kernel, stride, padding, dilation, strict=True)
    try:
        out = tuple(window_count(n, k, s, p, d, ceil) for n, k, s, p, d in pieces)
    except ValueError:
        return draw(sliding())  # type: ignore[no-any-return]
    if kind == "conv":
        weight = Weight.dense(np.ones((1, 1, *kernel), np.float32))
        return ops.Conv(weight, None, stride, padding, dilation), shape, out
    if kind == "max":
        return ops.MaxPool(kernel, stride, padding, dilation, ceil), shape, out
    return ops.AvgPool(kernel, stride, padding, ceil), shape, out


@SOME
@given(sliding())
def test_windows_by_nested_loops(case: tuple[Any, tuple[int, ...], tuple[int, ...]]) -> None:
    op, shape, out = case
    kernel = op.weight.shape[2:] if isinstance(op, ops.Conv) else op.kernel
    dilation = getattr(op, "dilation", (1,) * len(shape))
    wanted = []
    for o in np.ndindex(out):
        seen = []
        for tap, k in enumerate(np.ndindex(kernel)):
            at = [o[i] * op.stride[i] + k[i] * dilation[i] - op.padding[i] for i in range(len(shape))]
            if all(0 <= a < n for a, n in zip(at, shape, strict=True)):
                seen.append((tap, int(np.ravel_multi_index(at, shape))))
        wanted.append(seen)
    table = windows(op, shape, out)
    found = [list(map(tuple, table.pairs[a:b])) for a, b in zip(table.ends, table.ends[1:], strict=False)]
    assert found == wanted and table.positions == len(wanted)
    runs = table.runs()
    ends, triples = runs[: table.taps + 1], runs[table.taps + 1 :].reshape(-1, 3)
    told = set()
    for tap in range(table.taps):
        for dst, src, n in triples[ends[tap] : ends[tap + 1]]:
            assert 1 <= n <= RUN
            told |= {(int(dst) + i, tap, int(src) + i) for i in range(n)}
    assert told == {(p, tap, q) for p, seen in enumerate(wanted) for tap, q in seen}


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
    runs = stage.draft.ints.add(table.runs())
    sizes = {"channels": channels, "x_positions": size, "positions": n, "taps": table.taps}
    np.testing.assert_array_equal(stage.run("Unfold", {"x": x}, "y", 2, planes=planes, runs=runs, **sizes), y)


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


@SOME
@given(SIZES, st.integers(1, 9), STEPS, st.sampled_from([0, 1, 3]), st.integers(0, 99))
def test_lists_of_events(channels: int, positions: int, steps: int, planes: int, seed: int) -> None:
    """Of every position and four steps: each channel that is active once, in order, with its four factors."""
    rng = np.random.default_rng(seed)
    values = counts(seed, max(1, planes), steps, channels, positions) * (
        rng.random((steps, channels, positions)) < 0.3
    )
    if planes:
        x = bits(values, planes, "position bits")
    else:
        values = values * rng.standard_normal(values.shape).astype(np.float32)
        x = np.ascontiguousarray(values.swapaxes(1, 2)).astype(np.float32)
    stage = OneStage(steps)
    stage.buffer("x", "bits" if planes else "floats", x.size // steps)
    stage.buffer("counts", "ints", positions, listed=True)
    stage.buffer("rows", "ints", positions * channels, listed=True)
    stage.buffer("places", "ints", positions * channels, listed=True)
    given_ = {"x": x}
    if planes == 1:
        stage.draft.buffer("patterns", "floats", 64, False)
        given_["patterns"] = (np.arange(16)[:, None] >> np.arange(STEPS_TOGETHER) & 1).astype(np.float32)
    else:
        stage.buffer("values", "floats", positions * channels * STEPS_TOGETHER, listed=True)
    fields = {"x_floats": int(not planes), "planes": planes, "channels": channels, "positions": positions}
    machine: list[Machine] = []
    run = Machine.run

    def spy(self: Machine, *args: Any, **how: Any) -> None:
        machine.append(self)
        run(self, *args, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Machine, "run", spy)
        stage.run("Events", given_, "counts", 1, **fields)
    numbers, listed, places = (machine[0].array(name) for name in ("counts", "rows", "places"))
    floats = machine[0].bytes.view(np.float32)
    for group in range(-(-steps // STEPS_TOGETHER)):
        part = values[group * STEPS_TOGETHER : (group + 1) * STEPS_TOGETHER]
        for p in range(positions):
            at = (group * positions + p) * channels
            n = numbers[group * positions + p]
            wanted = np.flatnonzero(part[:, :, p].any(axis=0))
            np.testing.assert_array_equal(listed[at : at + n], wanted)
            for c, place in zip(wanted, places[at : at + n], strict=True):
                factors = floats[place : place + len(part)]
                np.testing.assert_array_equal(factors, part[:, c, p].astype(np.float32))


@SOME
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99))
def test_the_matrix_of_a_grouped_convolution(groups: int, per: int, inp: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = (
        rng.integers(-4, 5, (groups * per, inp, 2, 3)) * (rng.random((groups * per, inp, 2, 3)) < 0.6)
    ).astype(np.float32)
    op = ops.Conv(Weight.dense(weight), None, (1, 1), (0, 0), (1, 1), groups)
    x = rng.integers(-3, 4, (1, groups * inp, 2, 3)).astype(np.float32)  # one window: taps are positions
    builder = GraphBuilder(1)
    name = builder.add(ops.Input(x.shape[1:], ("channel", "y", "x")), name="input")
    builder.add(ops.Output("y"), (builder.add(op, (name,), name="conv"),), name="output")
    wanted = interpret(builder.build(), x).outputs["y"].reshape(-1)
    found = matrix(op) @ x[0].reshape(groups * inp, -1).T.reshape(-1)
    np.testing.assert_array_equal(found, wanted)
    dense, nonzero = rows(matrix(op))
    assert nonzero.sum() == np.count_nonzero(weight) == np.count_nonzero(dense)


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
