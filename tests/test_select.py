"""Selection of tokens by their scores: the operator, its order and ties, passes, files and the comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.errors import UserError
from stdeploy.exporters import load_target
from stdeploy.exporters.onnx import TIES
from stdeploy.graph import Graph, GraphError, ops
from stdeploy.graph.execution import Execution
from stdeploy.graph.file import load_graph, save_graph
from stdeploy.graph.interpreter import Interpreter, interpret
from stdeploy.graph.printer import print_graph
from stdeploy.graph.rounding import Bounded, drives
from stdeploy.graph.selection import pick, ranked, shared
from stdeploy.graph.value import REAL, SPIKE, Value, count
from stdeploy.graph.weight import Array
from stdeploy.parity import SELECTION_KINDS
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.runtime.onnx_session import OnnxRuntimeExecutor
from stdeploy.selection_parity import judge
from stdeploy.verify import compare
from tests.graphs import every_layer_fires
from tests.rows import ALWAYS, OFTEN, Net, check, width

Order = Literal["score", "index"]


def pruned(
    kept: int = 7,
    order: Order = "score",
    scores: str = "count",
    *,
    largest: bool = True,
    steps: int = 5,
    seed: int = 0,
    **drives: Any,
) -> Graph:
    """Spikes [7, 20], of which the tokens with the best scores go on, twice; slots keep membranes."""
    net = Net(seed, steps)
    tokens = net.add(ops.Flatten(tokens=True), net.x, name="tokens")
    x = net.unit(tokens, 7, "a", **drives)
    if scores == "count":  # integers
        s = net.add(ops.Reduce((0,), False), x, name="scores")
    elif scores == "mean":  # a third of integers, as the mean over three heads
        s = net.add(ops.Reduce((0,), True), net.add(ops.Slice(0, 0, 3), x, name="heads"), name="scores")
    else:
        s = net.linear(x, 1, "scores")
    y = net.add(ops.Select(kept, largest, order), x, s, name="select")
    z = net.add(ops.Select(kept, largest, order), tokens, s, name="also")
    both = net.add(ops.Concat(0), y, z, name="both")
    y = net.unit(both, 6, "b")
    out = net.add(ops.Reduce((1,), True), y, name="mean")
    return net.done(out)


@st.composite
def scored(draw: st.DrawFn) -> tuple[Array, ops.Select]:
    tokens = draw(st.integers(1, 9))
    rows = draw(
        st.lists(st.lists(st.integers(-3, 3), min_size=tokens, max_size=tokens), min_size=1, max_size=3)
    )
    op = ops.Select(
        draw(st.integers(1, tokens)), draw(st.booleans()), draw(st.sampled_from(["score", "index"]))
    )
    return np.array(rows, dtype=np.float64), op


@settings(max_examples=300, deadline=None)
@given(scored())
def test_the_order_is_that_of_python(case: tuple[Array, ops.Select]) -> None:
    scores, op = case
    sign = -1 if op.largest else 1
    for row, found in zip(scores, ranked(op, scores, REAL), strict=True):
        wanted = sorted(range(row.size), key=lambda i: (sign * row[i], i))[: op.count]
        assert found.tolist() == (sorted(wanted) if op.order == "index" else wanted)


def test_counts_are_compared_as_integers() -> None:
    """0.1 * 3 is not 0.3: rounding of a score does not break a tie."""
    scores = np.array([[0.3, 0.1 * 3, 0.2, 0.1 * 3]])
    assert scores[0, 1] > scores[0, 0]
    op = ops.Select(3)
    assert ranked(op, scores, count(0.1, 3)).tolist() == [[0, 1, 3]]
    assert ranked(op, scores, REAL).tolist() == [[1, 3, 0]]
    assert ranked(op, scores.astype(np.float32), count(0.1, 3)).tolist() == [[0, 1, 3]]


def test_the_value_of_a_selection() -> None:
    x, s = Value((3, 8), ("channel", "token"), "static", SPIKE), Value((1, 2, 4), ("head", "y", "x"), "step")
    assert ops.Select(5).infer([x, s], 4) == Value((3, 5), ("channel", "token"), "step", SPIKE)
    for op, scores, reason in (
        (ops.Select(9), s, "9 of 8 tokens"),
        (ops.Select(0), s, "0 of 8 tokens"),
        (ops.Select(1), replace(s, shape=(7,), axes=("token",)), "one for each of 8"),
        (ops.Select(1), replace(s, time="final"), "after all steps"),
        (ops.Select(1, order="random"), s, "unknown order"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=reason):
            op.infer([replace(x, time="step"), scores], 4)
    with pytest.raises(ValueError, match="channels and tokens"):
        ops.Select(1).infer([Value((3, 2, 4), ("channel", "y", "x"), "step"), s], 4)


@pytest.mark.parametrize("order", ["score", "index"])
def test_the_interpreter_keeps_what_the_scores_choose(order: Order) -> None:
    graph = pruned(order=order)
    x = Net().data()
    every_layer_fires(graph, x)
    run = interpret(graph, x)
    spikes = run.spikes["a"].astype(float)
    tokens = x.reshape(5, 3, 3, 20)
    for t in range(5):
        for b in range(3):
            scores = spikes[t, b].sum(0)
            best = sorted(range(20), key=lambda i: (-scores[i], i))[:7]
            best = sorted(best) if order == "index" else best
            assert run.selections["select"][t, b].tolist() == best
    assert len({tuple(s) for s in run.selections["select"][:, 0].tolist()}) > 1  # anew at every step
    np.testing.assert_array_equal(run.selections["select"], run.selections["also"])
    both = pick(tokens[2], run.selections["also"][2])
    np.testing.assert_array_equal(both[1, :, 3], tokens[2, 1][:, run.selections["also"][2, 1, 3]])


def test_forced_positions_are_what_the_readers_see() -> None:
    graph, x = pruned(), Net().data()
    free = interpret(graph, x)
    other = 19 - free.selections["select"]
    taught = interpret(graph, x, forced={"select": other, "also": other, **free.spikes})
    np.testing.assert_array_equal(taught.selections["select"], free.selections["select"])
    assert not np.array_equal(taught.spikes["b"], free.spikes["b"])
    again = interpret(graph, x, forced=free.selections)
    np.testing.assert_array_equal(again.spikes["b"], free.spikes["b"])
    with pytest.raises(UserError, match="keeps 7"):
        interpret(graph, x, forced={"select": other[..., :3]})
    with pytest.raises(UserError, match="does not have"):
        interpret(graph, x, forced={"scores": other})


def test_file_and_text(tmp_path: Path) -> None:
    graph, x = pruned(order="index", largest=False), Net().data()
    again = load_graph(save_graph(graph, tmp_path / "net.stg"))
    assert print_graph(again) == print_graph(graph)
    assert "Select(count=7, largest=False, order=index)(%a, %scores)" in print_graph(graph)
    np.testing.assert_array_equal(interpret(again, x).spikes["b"], interpret(graph, x).spikes["b"])


def test_a_final_score_cannot_choose_at_every_step() -> None:
    net = Net()
    x = net.unit(net.add(ops.Flatten(tokens=True), net.x, name="tokens"), 4, "a")
    s = net.add(ops.Readout("mean"), net.add(ops.Reduce((0,), False), x, name="sum"), name="over")
    with pytest.raises(GraphError, match="after all steps"):
        net.add(ops.Select(3), x, s, name="select")


@pytest.mark.parametrize("pipeline", ["onnx", "nir", "inspect"])
@pytest.mark.parametrize("scores", ["count", "real"])
def test_passes_keep_every_spike(pipeline: str, scores: str) -> None:
    graph, x = pruned(scores=scores, drives={0: OFTEN, 3: ALWAYS, 5: 0.4}), Net().data()
    every_layer_fires(graph, x)
    after = run_pipeline(graph, PIPELINES[pipeline]).graph
    old, new = interpret(graph, x), interpret(after, x)
    for name, kept in new.selections.items():
        np.testing.assert_array_equal(kept, old.selections[name], err_msg=name)
    for node in after.neurons:
        assert isinstance(node.op, ops.Neuron)
        channels = slice(None) if node.op.kept is None else node.op.kept
        np.testing.assert_array_equal(new.spikes[node.name], old.spikes[node.name][:, :, channels])
    np.testing.assert_allclose(new.outputs["y0"], old.outputs["y0"], rtol=1e-11)


def test_constant_channels_go_through_a_selection() -> None:
    """A constant channel is the same for every token, so its reader behind the selection holds it as a bias."""
    net = Net()
    tokens = net.add(ops.Flatten(tokens=True), net.x, name="tokens")
    x = net.unit(tokens, 6, "a", {1: OFTEN, 4: 0.4})
    s = net.add(ops.Reduce((0,), False), net.unit(tokens, 3, "s"), name="scores")
    y = net.unit(net.add(ops.Select(5), x, s, name="select"), 4, "b")
    graph = net.done(y)
    result = check(graph, net.data())
    assert width(result.graph, "a") == width(result.graph, "select") == 4
    assert width(result.graph, "s") == 3  # its scores are all needed


@pytest.mark.parametrize("order", ["score", "index"])
@pytest.mark.parametrize("scores", ["count", "mean", "real"])
@pytest.mark.parametrize("largest", [True, False])
def test_onnx_keeps_the_same_tokens(tmp_path: Path, order: Order, scores: str, largest: bool) -> None:
    graph, x = pruned(7, order, scores, largest=largest), Net().data().astype(np.float32)
    path = tmp_path / "net.onnx"
    artefact = load_target("onnx").export(graph, path)
    assert TIES in artefact.notes
    runtime = OnnxRuntimeExecutor(path)
    found, wanted = runtime.run(x), interpret(graph, x)
    for name in ("select", "also"):
        np.testing.assert_array_equal(found.selections[name], wanted.selections[name])
        assert found.selections[name].dtype == np.int64
    np.testing.assert_array_equal(found.spikes["b"], wanted.spikes["b"])
    assert sum(n.op_type == "TopK" for n in runtime.file.model.graph.node) == (2 if order == "index" else 1)
    report = compare(Interpreter(graph, np.float32), runtime, graph, x)
    assert report.ok and not report.spike_mismatches
    (selection,) = report.selections
    assert (selection.name, selection.compared, selection.mismatches) == ("select", 15, 0)
    assert selection.tied > 0 if scores != "real" else selection.tied >= 0
    other = {n: 19 - p for n, p in found.selections.items()}
    np.testing.assert_array_equal(
        runtime.run(x, other).spikes["b"], interpret(graph, x, forced=other).spikes["b"]
    )
    with pytest.raises(UserError, match="forced positions of select"):
        runtime.run(x, {"select": other["select"][:, :, :2]})


@pytest.mark.parametrize("steps, kept, batch", [(1, 1, 3), (5, 20, 1), (1, 20, 2)])
def test_onnx_at_the_edges(tmp_path: Path, steps: int, kept: int, batch: int) -> None:
    graph = pruned(kept, steps=steps)
    x = np.random.default_rng(9).normal(size=(steps, batch, 3, 4, 5)).astype(np.float32)
    load_target("onnx").export(graph, tmp_path / "net.onnx")
    found, wanted = OnnxRuntimeExecutor(tmp_path / "net.onnx").run(x), interpret(graph, x)
    np.testing.assert_array_equal(found.selections["select"], wanted.selections["select"])
    np.testing.assert_array_equal(found.spikes["b"], wanted.spikes["b"])


def test_openvino_breaks_no_tie_of_its_own(tmp_path: Path) -> None:
    """Its TopK takes any of equal scores; the file leaves it none that count."""
    pytest.importorskip("openvino")
    from stdeploy.runtime.onnx_session import OpenVinoExecutor

    for scores in ("count", "mean"):
        graph, x = pruned(9, "score", scores), Net().data().astype(np.float32)
        load_target("onnx").export(graph, tmp_path / "net.onnx")
        report = compare(Interpreter(graph), OpenVinoExecutor(tmp_path / "net.onnx"), graph, x)
        assert report.ok and report.selections[0].tied > 5 and not report.selections[0].mismatches


def test_nir_says_why_not() -> None:
    reasons = [item for item in load_target("nir").check(pruned()) if item.what == "Select"]
    assert len(reasons) == 2 and all("do not depend on values" in item.reason for item in reasons)


class Altered:
    """An executor whose selections, and what follows from them, are changed on the way out."""

    def __init__(self, graph: Graph, change: Any) -> None:
        self.graph, self.change, self.name = graph, change, "altered"

    def run(self, inputs: Array, forced: Any = None) -> Execution:
        own = interpret(self.graph, inputs, forced=forced)
        positions = {n: self.change(p.copy()) for n, p in own.selections.items()}
        run = interpret(self.graph, inputs, forced={**positions, **(forced or {})})
        return replace(run, selections=positions)


def _swap(scores: Array, equal: bool) -> Any:
    """Exchanges, once, the last kept token for a dropped one with the same score (or another)."""

    def change(positions: Array) -> Array:
        for t, b in np.ndindex(positions.shape[:2]):
            last = scores[t, b, positions[t, b, -1]]
            for i in range(20):
                if i not in positions[t, b] and (scores[t, b, i] == last) == equal:
                    positions[t, b, -1] = i
                    return positions
        raise AssertionError("nothing to swap")

    return change


@pytest.mark.parametrize("equal", [True, False])
def test_another_tie_is_told_from_a_wrong_token(equal: bool) -> None:
    graph, x = pruned(), Net().data().astype(np.float32)
    reference = Interpreter(graph)
    scores = reference.run(x).spikes["a"].sum(axis=2)
    report = compare(reference, Altered(graph, _swap(scores, equal)), graph, x)
    (selection,) = report.selections
    (mismatch,) = report.selection_mismatches
    assert selection.mismatches == 1 and len(mismatch.lost) == len(mismatch.gained) == 1
    assert mismatch.kind == ("tie" if equal else "unexplained")
    assert report.ok == equal
    assert (mismatch.margin == 0) == equal
    assert bool(report.warnings) == equal
    if equal:
        assert "ties were broken" in report.warnings[0]
    else:
        assert report.problems[0] == "select: 1 selections of altered are wrong"
    text = "\n".join(report._text(20))
    assert "1 of 15 selections differ" in text and f": {mismatch.kind}" in text
    assert report.to_dict()["selections"][0]["ties"] == int(equal)


def test_rounding_of_a_real_score_explains_another_choice() -> None:
    """Two real scores nearer than float32 tells apart may be ranked either way, and farther ones not."""
    op = ops.Select(2)
    error = np.full((1, 1, 4), 1e-6)
    for gap, kind in ((1e-6, "rounding"), (1e-5, "unexplained")):
        scores = Bounded(np.array([[[0.5, 1.0 + gap, 1.0, 2.0]]]), error)
        judged = judge(op, REAL, scores, np.array([[[3, 2]]]))
        assert SELECTION_KINDS[int(judged.kind[0, 0])] == kind
        assert judge(op, REAL, scores, np.array([[[3, 1]]])).kind[0, 0] == -1
    assert not judged.tied.any()


@pytest.mark.parametrize("order", ["score", "index"])
def test_scores_that_rounding_ranks_otherwise_are_explained(order: Order) -> None:
    """Scores a float32 apart, off the interpreter and a float32 one: other tokens, each found and explained."""
    net = Net(3)
    tokens = net.add(ops.Flatten(tokens=True), net.x, name="tokens")
    s = net.linear(tokens, 1, "scores")
    x = net.unit(tokens, 6, "a")
    y = net.add(ops.Select(7, True, order), x, s, name="select")
    graph = net.done(net.unit(y, 5, "b"))
    x = np.repeat(net.data()[..., :1], 5, axis=-1)  # rows of equal tokens, but for noise below float32's
    x = (x + 3e-8 * np.random.default_rng(0).normal(size=x.shape) * np.abs(x)).astype(np.float32)
    report = compare(Interpreter(graph, np.float64), Interpreter(graph, np.float32), graph, x)
    (selection,) = report.selections
    assert selection.explained > 5 and selection.unexplained == selection.reference_unexplained == 0
    assert all(m.margin <= 2 * m.bound and m.kind == "rounding" for m in report.selection_mismatches)
    assert report.ok, report.problems
    far = compare(Interpreter(graph), Altered(graph, lambda p: p[..., ::-1]), graph, x)
    assert not far.ok


@pytest.mark.parametrize("positions", [[3, 3], [3, 4], [-1, 3], [0, 3], [1, 3]])
def test_impossible_selections_are_wrong(positions: list[int]) -> None:
    scores = Bounded(np.array([[[0.5, 1.1, 1.0, 2.0]]]), np.zeros((1, 1, 4)))
    judged = judge(ops.Select(2), count(0.1, 20), scores, np.array([[positions]]))
    assert SELECTION_KINDS[int(judged.kind[0, 0])] == "unexplained"


@settings(max_examples=300, deadline=None)
@given(scored(), st.randoms(use_true_random=False))
def test_what_noise_within_the_bound_chooses_is_never_wrong(case: tuple[Array, ops.Select], rng: Any) -> None:
    scores, op = case
    error = np.array([[rng.uniform(0, 1.2) for _ in row] for row in scores])
    noisy = scores + np.array([[rng.uniform(-1, 1) * e for e in row] for row in error])
    judged = judge(op, REAL, Bounded(scores[None], error[None]), ranked(op, noisy, REAL)[None])
    assert not np.any(judged.kind == SELECTION_KINDS.index("unexplained"))


@settings(max_examples=200, deadline=None)
@given(scored(), st.permutations(range(9)))
def test_without_rounding_only_ties_are_excused(case: tuple[Array, ops.Select], order: list[int]) -> None:
    """Brute force: a selection is a tie where it has the rule's scores, in the rule's order of scores."""
    scores, op = case
    tokens = scores.shape[1]
    chosen = np.array([i for i in order if i < tokens][: op.count])
    chosen = np.sort(chosen) if op.order == "index" else chosen
    rule = ranked(op, scores, REAL)
    exact = Bounded(scores[None], np.zeros((1, *scores.shape)))
    kinds = judge(op, REAL, exact, np.broadcast_to(chosen, (1, *rule.shape))).kind[0]
    for row, wanted, kind in zip(scores, rule, kinds, strict=True):
        a, b = row[chosen].tolist(), row[wanted].tolist()
        same = a == b if op.order == "score" else sorted(a) == sorted(b)
        expected = -1 if chosen.tolist() == wanted.tolist() else 1 if same else 2
        assert kind == expected


def test_bounds_follow_the_given_selection() -> None:
    graph, x = pruned(scores="real"), Net().data().astype(np.float32)
    run = Interpreter(graph, np.float32).run(x)
    exact = drives(graph, x, run.spikes, run.selections)
    assert exact.scores["select"].value.shape == (5, 3, 20) and exact.scores["select"].error.max() > 0
    other = drives(graph, x, run.spikes, {n: 19 - p for n, p in run.selections.items()})
    assert np.any(other.neurons["b"].value != exact.neurons["b"].value)
    np.testing.assert_array_equal(other.neurons["a"].value, exact.neurons["a"].value)
    assert shared(graph) == {"select": "select", "also": "select"}


def test_an_executor_without_selections_is_not_taken_as_proof() -> None:
    graph, x = pruned(), Net().data().astype(np.float32)

    class Blind(Interpreter):
        def run(self, inputs: Array, forced: Any = None) -> Execution:
            return replace(super().run(inputs, forced), selections={})

    report = compare(Interpreter(graph), Blind(graph), graph, x)
    assert not report.ok and report.unobserved == ("select",)
