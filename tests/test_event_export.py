"""The event target: how kernels are chosen, what the file says, and what is refused."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stdeploy import running
from stdeploy.cli.app import run
from stdeploy.cli.inspect_event import kernel_table
from stdeploy.errors import UnsupportedError, UserError
from stdeploy.event_summary import summarise_event
from stdeploy.exporters import load_target
from stdeploy.exporters.event import check, export
from stdeploy.exporters.event.container import read_sev
from stdeploy.exporters.event.cost import Costs, Rate, layers_of
from stdeploy.exporters.event.plan import ASSUMED_RATE, Fixed, Options, Rates, plan
from stdeploy.graph import GraphBuilder, Weight, ops
from stdeploy.graph.execution import Execution
from stdeploy.graph.file import save_graph
from stdeploy.graph.interpreter import Interpreter, interpret
from stdeploy.graph.value import count
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.rates import input_rates, rate_option
from stdeploy.runtime.bench import needs
from stdeploy.workflow import Source, lower, open_source
from tests.chains import chain
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph

ROOT = Path(__file__).resolve().parent.parent
GRAPH = spikformer_graph(steps=5, image=(2, 8, 8), masked=0.5, neurons="mixed", seed=3)
LOWERED = run_pipeline(GRAPH, PIPELINES["default"]).graph


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_graph(GRAPH, tmp_path / "net.stg")
    images = random_inputs(GRAPH, 3, 1)
    assert every_layer_fires(GRAPH, images)
    np.savez(tmp_path / "data.npz", images=images)
    return tmp_path


def test_without_data_the_rate_is_assumed_and_said() -> None:
    chosen = plan(LOWERED, Options())
    document = chosen.to_dict()
    assert document["rates"] == {"measured": False, "data": None, "samples": 0}
    real = {n.name for n in layers_of(LOWERED) if LOWERED[n.inputs[0]].value.domain.maximum is None}
    assert real and real != set(document["layers"])
    for name, row in document["layers"].items():
        assert row["input_rate"] == (1.0 if name in real else ASSUMED_RATE) and row["by"] == "cost"
        assert row["input_bits"] == row["input_rate"]
        assert row["kernel"] == document["kernels"][name] == min(row["seconds"], key=row["seconds"].get)
    assert any("assumed 15%" in note for note in chosen.notes)


def test_measured_rates_are_shares_of_inputs_that_are_not_zero(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(folder / "net.stg")
    images = random_inputs(GRAPH, 3, 1)
    lowered = lower(GRAPH, "event").graph
    found = input_rates(source, lowered, images)
    run = Interpreter(GRAPH, np.float32).run(images)
    kept = {n.name: n.op.kept for n in lowered.neurons if isinstance(n.op, ops.Neuron)}
    forced = {name: run.spikes[name] if k is None else run.spikes[name][:, :, k] for name, k in kept.items()}
    for node in layers_of(lowered):
        build = GraphBuilder(lowered.steps)
        build.nodes = dict(lowered.nodes)
        layout: Any = "TB" if lowered[node.inputs[0]].value.time == "step" else "B"
        build.add(ops.Output("probe", layout), (node.inputs[0],), name="probe")
        values = interpret(build.build(), images, forced=forced).outputs["probe"]
        units = values / lowered[node.inputs[0]].value.domain.scale
        set_bits = sum(f"{round(n):b}".count("1") * np.count_nonzero(units == n) for n in np.unique(units))
        wanted = (np.mean(values != 0), set_bits / values.size)
        if lowered[node.inputs[0]].value.domain.maximum is None:
            wanted = (wanted[0], wanted[0])
        assert found[node.name] == pytest.approx(wanted), node.name
    monkeypatch.setattr("stdeploy.rates.batch_for", lambda graph: 2)
    assert input_rates(source, lowered, images) == found
    assert min(found.values()) > (0, 0) and len(set(found.values())) > 4
    assert any(rate.nonzero < rate.bits < 1 for rate in found.values())


def test_few_samples_are_enough_for_rates(folder: Path) -> None:
    seen = []

    class Spy:
        name = "spy"

        def run(self, inputs: Any, forced: Any = None) -> Execution:
            seen.append(inputs.shape[0])
            return Interpreter(GRAPH, np.float32).run(inputs, forced)

    source = Source(Path("net"), GRAPH, Spy(), None, 0.0)
    option = rate_option(source, LOWERED, random_inputs(GRAPH, 20, 1), "noise")["rates"]
    assert sum(seen) == option.samples == 16 and option.data == "noise"


def test_a_plan_fixes_some_layers_and_the_cost_the_rest(tmp_path: Path) -> None:
    found = plan(LOWERED, Options())
    free = found.kernels
    name = next(n for n, e in found.estimates.items() if "columns" in e.seconds and free[n] == "rows")
    (tmp_path / "plan.json").write_text(json.dumps({"kernels": {name: "columns"}}))
    made = export(LOWERED, tmp_path / "net.sev", {"plan": str(tmp_path / "plan.json")})
    held = read_sev(tmp_path / "net.sev").header["plan"]
    assert held["kernels"] == {**free, name: "columns"} == made.metadata["kernels"]
    assert (
        held["layers"][name]["by"] == "plan" and [r["by"] for r in held["layers"].values()].count("plan") == 1
    )
    assert "1 of them as" in made.notes[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the plan"),
        ("", "is no JSON"),
        ("\x00", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", 'no object "kernels"'),
        ("3", 'no object "kernels"'),
        ('{"layers": {}}', 'no object "kernels"'),
        ('{"plan": [], "kernels": {}}', 'no object "kernels"'),
        ('{"kernels": ["rows"]}', 'no object "kernels"'),
        ('{"kernels": {"head": "diagonals"}}', "gives head the kernel 'diagonals'"),
        ('{"kernels": {"head": ["rows"]}}', "gives head the kernel"),
        ('{"kernels": {"tail": "rows"}}', "names layers that the model does not have: tail"),
    ],
)
def test_a_plan_that_is_none(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        export(LOWERED, tmp_path / "net.sev", {"plan": path})
    assert str(path) in caught.value.message and caught.value.hint
    assert not (tmp_path / "net.sev").exists()


def test_kernels_that_are_fixed_without_a_file() -> None:
    name = next(iter(plan(LOWERED, Options()).kernels))
    found = plan(LOWERED, Options(plan=Fixed({name: "rows"})))
    assert found.kernels[name] == "rows" and "1 of them as the plan has it" in found.notes[0]
    with pytest.raises(UserError, match=f"^the plan gives {name} the kernel 'diagonals'"):
        Fixed({name: "diagonals"})
    with pytest.raises(UserError, match=r"^the plan names layers that the model does not have: tail"):
        plan(LOWERED, Options(plan=Fixed({"tail": "rows"})))


def test_a_plan_in_latin_1_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(b'{"kernels": {"\xe9": "rows"}}')
    for path in (tmp_path / "plan.json", tmp_path):
        with pytest.raises(UserError, match="the plan"):
            plan(LOWERED, Options(plan=path))


def test_rates_that_are_none() -> None:
    few = Rates({"head": Rate(0.5, 0.5)}, "data", 1)
    with pytest.raises(UserError, match="no rate of"):
        plan(LOWERED, Options(rates=few))
    for wrong in (Rate(-0.1, 0.5), Rate(0.5, 1.5), Rate(0.5, 0.4), Rate(math.nan, 1), Rate(0.1, math.nan)):
        rates = Rates(dict.fromkeys(plan(LOWERED, Options()).kernels, wrong), "x", 1)
        with pytest.raises(UserError, match="are none of its inputs"):
            plan(LOWERED, Options(rates=rates))
    graph = chain((3, 2), ops.Linear(Weight.dense(np.ones((2, 3))), None), domain=count(1.0, 6))
    for bits, right in ((0.4, False), (0.5, True), (3.0, True), (3.1, False)):
        options = Options(rates=Rates({"n0": Rate(0.5, bits)}, "x", 1))
        if right:
            assert plan(graph, options).estimates["n0"].rate.bits == bits
            continue
        with pytest.raises(UserError, match=r"n0 are none of its inputs: 0\.5"):
            plan(graph, options)
    with pytest.raises(UserError, match="no option speed"):
        export(LOWERED, "net.sev", {"speed": 9})
    for name, value in (("rates", {"head": 0.5}), ("plan", {"head": "rows"}), ("costs", None)):
        with pytest.raises(UserError, match=f"option {name} is no"):
            check(LOWERED, {name: value})


def test_the_file_says_where_it_comes_from_and_is_the_same_every_time(tmp_path: Path) -> None:
    graph = LOWERED.with_metadata(source="net.pt", source_sha256="ab", nothing=None)
    export(graph, tmp_path / "a.sev")
    export(graph, tmp_path / "b.sev")
    assert (tmp_path / "a.sev").read_bytes() == (tmp_path / "b.sev").read_bytes()
    header = read_sev(tmp_path / "a.sev").header
    assert header["metadata"]["source"] == "net.pt" and "stdeploy_version" in header["metadata"]
    assert header["plan"]["costs"] == Costs().to_dict() and header["steps"] == 5
    assert set(header["neurons"]) == {n.name for n in LOWERED.neurons}


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    build = GraphBuilder(2)
    a, b = (build.add(ops.Input((3,), ("channel",), "TB"), name=name) for name in "ab")
    build.add(ops.Output("y", "TB"), (build.add(ops.Add(), (a, b), name="sum"),), name="y")
    graph = build.build()
    (found,) = check(graph)
    assert "one input, not 2" in found.reason
    with pytest.raises(UnsupportedError):
        export(graph, tmp_path / "net.sev")
    assert list(tmp_path.iterdir()) == []


def test_the_target_needs_no_numba() -> None:
    code = "import sys, stdeploy.exporters.event as e; e.check; sys.exit('numba' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
    assert load_target("event").SUFFIX == ".sev"


def test_without_numba_it_can_be_exported_but_not_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = running.importlib.util.find_spec
    monkeypatch.setattr(
        running.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "numba" else real(name, *rest),
    )
    assert run(["export", "net.stg", "--target", "event"]) == 2
    error = capsys.readouterr().err
    assert "numba is not installed" in error and 'pip install "stdeploy[event]"' in error
    assert not (folder / "net.sev").exists()
    assert run(["export", "net.stg", "--target", "event", "--no-verify"]) == 0
    assert run(["inspect", "net.sev"]) == 0
    for reader in ([], ["--reader", "event"]):
        assert run(["verify", "net.stg", "net.sev", *reader]) == 2
        assert "numba is not installed" in capsys.readouterr().err
    found = needs.lacking("event")
    assert found == "numba is not installed"
    for name in [n for n in sys.modules if n.startswith("stdeploy.runtime.event")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match="numba is not installed"):
        importlib.import_module("stdeploy.runtime.event.session")


def test_data_measures_and_the_plan_goes_round(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "net.stg", "--target", "event", "--data", "data.npz", "--no-verify"]) == 0
    text = capsys.readouterr().out
    assert "3 samples of data.npz" in text and "verify" not in text.split("not verified")[0]
    assert run(["inspect", "net.sev", "--json", "plan.json"]) == 0
    shown = capsys.readouterr().out
    document = json.loads((folder / "plan.json").read_text())
    held = document["plan"]
    assert held["rates"] == {"measured": True, "data": "data.npz", "samples": 3}
    assert all(name in shown for name in held["kernels"]) and "measured on 3 samples of data.npz" in shown
    titles = [str(column.header) for column in kernel_table(summarise_event(folder / "net.sev")).columns]
    assert titles[3:6] == ["inputs not zero", "bits set", "weights not zero"]
    assert all(0 < row["input_rate"] <= row["input_bits"] < 3 for row in held["layers"].values())
    assert document["size_bytes"] == (folder / "net.sev").stat().st_size
    assert sum(document["stages"].values()) and document["arrays"]["weights"]["type"] == "float32"
    arguments = ["export", "net.stg", "--target", "event", "--plan", "plan.json", "-o", "again.sev"]
    assert run([*arguments, "--no-verify"]) == 0
    first, again = read_sev(folder / "net.sev"), read_sev(folder / "again.sev")
    assert again.header["stages"] == first.header["stages"]
    assert all(row["by"] == "plan" for row in again.header["plan"]["layers"].values())
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["export", "net.stg", "--target", "onnx", "--plan", "p.json"], "--plan is an option of event"),
        (["export", "net.stg", "--target", "event", "--plan", "gone.json"], "cannot read the plan gone.json"),
        (["export", "net.stg", "--target", "event", "--no-verify", "--data", "gone.npz"], "does not exist"),
        (["export", "net.stg", "--target", "event", "-o", "net.onnx"], "does not end in .sev"),
        (["export", "net.stg", "--target", "event", "--reader", "openvino"], "no reader 'openvino'"),
        (["inspect", "gone.sev"], "gone.sev does not exist"),
        (["inspect", "bad.sev"], "bad.sev is not a .sev file"),
        (["inspect", "bad.sev", "--graph"], "--graph does not take"),
        (["verify", "net.stg", "bad.sev"], "bad.sev is not a .sev file"),
        (["bench", "bad.sev"], "bad.sev is not a .sev file"),
    ],
)
def test_what_the_user_got_wrong(
    folder: Path, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bad.sev").write_bytes(b"no such thing")
    before = sorted(folder.iterdir())
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert text in error and "Traceback" not in error
    assert sorted(folder.iterdir()) == before
