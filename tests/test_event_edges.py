"""Small nets in the event engine where sizes, values, thresholds and weights are at their edges."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stdeploy.cli.app import run
from stdeploy.errors import UnsupportedError, UserError
from stdeploy.exporters.event import check, export
from stdeploy.graph import GraphBuilder, Weight, ops
from stdeploy.graph.file import save_graph
from stdeploy.graph.interpreter import Interpreter, interpret
from stdeploy.graph.value import count
from stdeploy.verify import batch_axis, compare
from tests.chains import chain, conv, lif, linear
from tests.event import KERNELS, counted_as_energy, frames_of, same, session, streamed_as_batched
from tests.graphs import every_layer_fires, random_inputs


@pytest.mark.parametrize("kind", KERNELS)
def test_values_that_are_no_numbers_stay_with_their_sample(kind: str) -> None:
    graph = chain(
        (5, 3, 4), linear(17, 5), lif(), linear(4, 17, 1), lif(), ops.MaxPool((2, 2), (2, 2), (0, 0), (1, 1))
    )
    x = random_inputs(graph, 3)
    with session(graph, kind) as engine:
        clean = engine.run(x)
        for value in (
            np.nan,
            np.inf,
            -np.inf,
            3e37,
            -0.0,
            1e-45,
        ):  # 3e38 overflows in one order of sums, not in another
            dirty = x.copy()
            dirty[:, 1] = value
            found = engine.run(dirty)
            same(found, engine.run(dirty))
            with np.errstate(all="ignore"):
                wanted = interpret(graph, dirty, dtype=np.float32)
            for name, spikes in found.spikes.items():
                np.testing.assert_array_equal(spikes[:, ::2], clean.spikes[name][:, ::2])
                steps = (
                    slice(None) if abs(value) < 1 or np.isnan(value) else 0
                )  # then the interpreter's 0 x inf
                if (
                    np.isfinite(value) or kind == "rows"
                ):  # columns leaves out zero weights, the interpreter's 0 x inf
                    np.testing.assert_array_equal(
                        spikes[steps], wanted.spikes[name][steps], err_msg=f"{name}: {value}"
                    )


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize(
    ("shape", "out"),
    [((1,), 1), ((1, 1), 65), ((65, 63), 1), ((3, 65), 129), ((64, 64), 64), ((2, 4097), 2), ((97, 2), 97)],
)
@pytest.mark.parametrize("threshold", [-0.3, 0.0, 0.7])
def test_sizes_about_a_word_and_thresholds_that_fire_without_input(
    shape: tuple[int, ...], out: int, kind: str, threshold: float
) -> None:
    """Bits beyond the channels and the positions stay 0: they would be events of the next product."""
    parts = (
        lif(threshold),
        linear(out, shape[0]),
        lif(threshold, None, None),
        linear(3, out, 1),
        lif(threshold, 2.0),
    )
    graph = chain(shape, *parts)
    x = random_inputs(graph, 2)
    wanted = interpret(graph, x, dtype=np.float32)
    with session(graph, kind, counting=True) as engine:
        found = engine.run(x)
        for name, spikes in wanted.spikes.items():
            np.testing.assert_array_equal(found.spikes[name], spikes, err_msg=name)
        np.testing.assert_array_equal(found.outputs["y"], wanted.outputs["y"])
        assert engine.synops["n1"].sum() == np.count_nonzero(
            parts[1].weight.array() != 0, axis=0
        ) @ wanted.spikes[  # type: ignore[union-attr]
            "n0"
        ].reshape(3, 2, shape[0], -1).sum(axis=(0, 1, 3))


@pytest.mark.parametrize("kind", KERNELS)
def test_weights_that_are_all_zero(kind: str) -> None:
    nothing = ops.Linear(Weight.dense(np.zeros((3, 4), np.float32)), None)
    graph = chain(
        (4, 5), lif(), nothing, lif(0.5), ops.Linear(Weight.dense(np.zeros((2, 3), np.float32)), None)
    )
    with session(graph, kind, counting=True) as engine:
        found = engine.run(random_inputs(graph))
        assert found.spikes["n0"].any() and not found.spikes["n2"].any() and not found.outputs["y"].any()
        assert not any(counts.any() for counts in engine.synops.values())


GROUPED: dict[str, tuple[tuple[int, ...], tuple[ops.Op, ...], int]] = {
    "depthwise": ((130, 5, 7), (conv(130, 130, 130), lif(), conv(260, 130, 130), lif(), conv(3, 260, 1)), 9),
    "two groups": ((200, 3, 9), (conv(200, 200, 2), lif(), conv(400, 200, 2), lif(), conv(8, 400, 4, 1)), 4),
    "few weights": ((65, 4, 4), (lif(), conv(97, 65, 1, density=0.0005), lif(0.4), conv(2, 97, 1)), 5),
    "no weights": ((70, 3, 3), (lif(), conv(110, 70, 1, density=0), lif(0.1), conv(1, 110, 1, 1)), 1),
}


@pytest.mark.parametrize("layout", ["B", "TB"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", GROUPED)
def test_rows_without_weights_are_left_out(name: str, threads: int, layout: Any) -> None:
    shape, parts, steps = GROUPED[name]
    graph = chain(shape, *parts, steps=steps, layout=layout)
    x = np.round(8 * random_inputs(graph, 4)) / 8  # sums are exact
    assert every_layer_fires(graph, x)
    with session(graph, "rows", threads, counting=True) as engine:
        stages = [s for s in engine.header["stages"] if s["op"] == "Rows"]
        indices = engine.file.arrays["indices"]
        there = [indices[s["fields"]["parts"] + s["fields"]["blocks"]] for s in stages]
        words = [
            s["fields"]["blocks"] * s["fields"]["taps"] * -(-s["fields"]["channels"] // 64) for s in stages
        ]
        assert any(a < b for a, b in zip(there, words, strict=True)) and (name != "no weights") == all(there)
        report = compare(Interpreter(graph, np.float32), engine, graph, x)
        assert not report.problems and not report.mismatches
        counted_as_energy(graph, engine, x, engine.run(x))
        streamed_as_batched(engine, np.take(x, [1], axis=batch_axis(graph)))


@pytest.mark.parametrize("layout", ["B", "TB"])
def test_networks_without_neurons(layout: Any) -> None:
    graph = chain((4, 5), linear(3, 4), ops.Scale(0.5), layout=layout)
    x = np.round(8 * random_inputs(graph)) / 8
    with session(graph) as engine:
        np.testing.assert_array_equal(
            engine.run(x).outputs["y"], interpret(graph, x, dtype=np.float32).outputs["y"]
        )
        assert engine.run(x).spikes == {}
        engine.step(frames_of(engine, np.take(x, [0], axis=1 if layout == "TB" else 0))[0])
        if layout == "TB":
            with pytest.raises(UserError, match="needs a frame"):
                engine.step()


def test_inputs_that_count_are_held_against_their_domain() -> None:
    builder = GraphBuilder(2)
    x = builder.add(ops.Input((3,), ("channel",), "TB", count(0.5, 4)), name="input")
    y = builder.add(linear(2, 3), (x,), name="fc")
    builder.add(ops.Output("y", "TB"), (y,), name="output")
    graph = builder.build()
    counts = np.random.default_rng(0).integers(0, 5, (2, 3, 3)) / 2
    for kind in KERNELS:
        with session(graph, kind) as engine:
            np.testing.assert_array_equal(
                engine.run(counts).outputs["y"], interpret(graph, counts).outputs["y"]
            )
            for wrong in (-0.5, 0.25, 2.5, np.nan):
                with pytest.raises(UserError, match="other values than"):
                    engine.run(np.where(counts == counts.max(), wrong, counts))


DILATED = ops.MaxPool((2,), (1,), (1,), (2,))
"""Over one position it sees padding only."""


def test_windows_of_nothing_but_padding_are_refused_over_spikes_and_counts(tmp_path: Path) -> None:
    half = ops.AvgPool((2,), (1,), (0,))
    graph = chain((2, 2), lif(), half, DILATED, lif(), DILATED)
    found = check(graph)
    assert [item.where for item in found] == ["n2", "n4"]
    assert all("nothing but padding" in item.reason for item in found)
    with pytest.raises(UnsupportedError, match="2 parts of the model cannot be run"):
        export(graph, tmp_path / "net.sev")
    assert not list(tmp_path.iterdir())


def test_a_layer_whose_tables_are_too_large_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stdeploy.exporters.event.draft.LARGEST", 400)
    half = ops.AvgPool((2, 2), (2, 2), (0, 0))
    save_graph(chain((5, 10, 10), lif(), linear(4, 5), lif(0.2), half), Path("few.stg"))
    save_graph(chain((5, 10, 10), lif(), half, linear(4, 5), lif(0.2)), Path("net.stg"))
    assert run(["export", "few.stg", "--target", "event", "--no-verify"]) == 0
    assert run(["export", "net.stg", "--target", "event", "--no-verify"]) == 3
    assert "where: n1: AvgPool: its table would count to 500" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few.sev", "few.stg", "net.stg"]


@pytest.mark.parametrize("ceil", [False, True])
def test_refused_are_those_pools_of_spikes_whose_maximum_is_no_number(ceil: bool) -> None:
    seen = set()
    for size, kernel, stride, dilation in itertools.product(
        range(1, 4), range(1, 4), range(1, 4), range(1, 4)
    ):
        for padding in range(kernel // 2 + 1):
            if size + 2 * padding < dilation * (kernel - 1) + 1:
                continue
            pool = ops.MaxPool((kernel, 1), (stride, 1), (padding, 0), (dilation, 1), ceil)
            graph = chain((2, size, 2), lif(), pool, steps=1)
            infinite = bool(np.isinf(interpret(graph, random_inputs(graph, 1)).outputs["y"]).any())
            assert bool(check(graph)) == infinite, (size, pool)
            seen.add(infinite)
    assert seen == {False, True}


def test_a_maximum_of_real_values_may_be_of_padding() -> None:
    graph = chain((2, 1), DILATED, lif())
    x = random_inputs(graph, 3)
    assert check(graph) == []
    with session(graph) as engine, np.errstate(all="ignore"):
        same(engine.run(x), interpret(graph, x, dtype=np.float32))


def test_the_command_names_them_and_a_target_that_takes_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pool = ops.MaxPool((2, 2), (1, 1), (1, 1), (2, 2))
    save_graph(chain((2, 1, 1), lif(), pool, steps=1), Path("net.stg"))
    assert run(["export", "net.stg", "--target", "event"]) == 3
    error = capsys.readouterr().err
    assert "where: n1: MaxPool: a window holds nothing but padding" in error and "--target onnx" in error
    assert [path.name for path in tmp_path.iterdir()] == ["net.stg"]
