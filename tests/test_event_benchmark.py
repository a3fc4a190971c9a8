"""What benchmarks/event_*.py compute of their measurements: fitted costs, ratios, curves; and the networks' images."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import event_curves, event_engine
from benchmarks.event_costs import CLOSE, RESULT, UNFOLD, Sample, fit, judged
from benchmarks.event_engine import DENSE, DSP, L1P, Net, table
from benchmarks.networks import pictures
from stdeploy.exporters.event.cost import Costs
from stdeploy.runtime.bench.report import BenchReport, Plan, Point, Row
from stdeploy.runtime.bench.statistics import ratio_of_medians, summarise


def samples(costs: dict[str, float], count: int = 24) -> list[Sample]:
    """Layers of random work, each with both kernels, whose seconds are exactly what `costs` say."""
    rng = np.random.default_rng(3)
    names = {
        kernel: [name for name in costs if name.startswith(kernel[:-1])] for kernel in ("rows", "columns")
    }
    out = []
    for k in range(count):
        for kernel, own in names.items():
            work = {name: float(10 ** rng.uniform(2, 6)) for name in own}
            seconds = sum(costs[name] * n for name, n in work.items())
            out.append(Sample("net", f"layer{k}", kernel, work, seconds))
    return out


def test_costs_that_explain_the_times_are_found() -> None:
    true = {name: value for name, value in Costs().to_dict().items() if name != "machine"}
    found = samples(true)
    costs = fit(found)
    assert costs == pytest.approx(true, rel=1e-6)
    fine = judged(found, costs)
    assert fine["share_within_20_percent"] == 1 and fine["time_lost_by_choosing"] == pytest.approx(0)
    assert fine["layers_and_kernels"] == 48 and fine["choices_not_fastest"] == 0


def test_unfolding_alone_is_no_kernel_to_choose() -> None:
    true = {name: value for name, value in Costs().to_dict().items() if name != "machine"}
    alone = Sample("net", "layer0", UNFOLD, {"column_shift": 1.0}, 100 * true["column_shift"])
    fine = judged([*samples(true), alone], true)
    assert fine["largest_error"] == pytest.approx(0.99)
    assert fine["choices_not_fastest"] == 0 and fine["time_lost_by_choosing"] == pytest.approx(0)


def test_the_costs_that_ship_are_those_that_were_fitted_and_judged() -> None:
    document = json.loads(RESULT.read_text())
    shipped = {name: value for name, value in Costs().to_dict().items() if name != "machine"}
    assert document["shipped_costs"] == shipped
    assert shipped == pytest.approx(document["costs"], rel=0.05), "two digits of each"
    close = [abs(s["shipped_ms"] / s["ms"] - 1) <= CLOSE for s in document["samples"]]
    assert np.mean(close) == document["fit_of_shipped_costs"]["share_within_20_percent"]


def test_wrong_costs_are_seen_as_wrong() -> None:
    true = {name: value for name, value in Costs().to_dict().items() if name != "machine"}
    found = samples(true)
    rows_free = {name: 0.0 if name.startswith("row") else value for name, value in true.items()}
    bad = judged(found, rows_free)
    assert bad["largest_error"] == pytest.approx(1) and bad["choices_not_fastest"] > 0
    assert bad["time_lost_by_choosing"] > 0


def row(name: str, seconds: float, reference: float) -> Row:
    rounds = tuple((seconds * (1 + 0.01 * k),) * 2 for k in range(6))
    base = tuple((reference * (1 + 0.01 * k),) * 2 for k in range(6))
    return Row(
        name, "model", "ok", summary=summarise(rounds), rounds=rounds, ratio=ratio_of_medians(rounds, base)
    )


def report() -> BenchReport:
    rows = (row("onnx", 0.03, 0.01), row("openvino", 0.02, 0.01), row("event", 0.01, 0.01))
    failed = Row("dynamo", "model", "failed", "no")
    machine = event_engine.examine_machine()
    return BenchReport(machine, Plan(reference="event"), (Point(2, 1, (*rows, failed)),))


def test_the_best_other_is_the_fastest_that_ran() -> None:
    (found,) = table(report())
    assert found["best_other"] == "openvino" and set(found["ms"]) == {"onnx", "openvino", "event"}
    assert found["best_other / event"]["value"] == pytest.approx(2)
    only = replace(report(), points=(Point(2, 1, (row("event", 1, 1),)),))
    assert table(only)[0]["best_other"] is None and table(only)[0]["best_other / event"] is None


def test_the_picture_has_a_panel_for_sparsity_and_one_for_each_rate() -> None:
    nets = [*event_engine.BY_SPARSITY, DSP, *(n for line in event_engine.BY_RATE for n in line)]
    unique = list(dict.fromkeys(nets))
    against = table(report())
    document = {
        "nets": [
            {
                "name": net.name,
                "method": net.method if net.sparsity else None,
                "sparsity": net.sparsity,
                "rate": net.rate,
                "synops": 1e6 * (1 + k),
                "against": against if net.rate == 0.08 else None,
            }
            for k, net in enumerate(unique)
        ],
        "curves": {"ms": {net.name: 10.0 + k for k, net in enumerate(unique)}},
    }
    text = event_curves.draw(json.loads(json.dumps(document)))
    assert text.startswith("<svg") and "synaptic operations" in text and "L1P 90%" in text
    assert text == event_curves.draw(document)


def test_networks_have_names_of_their_own() -> None:
    assert [net.name for net in (DENSE, L1P, DSP, Net(0.95), replace(L1P, rate=0.02))] == [
        "dense-8",
        "l1p90-8",
        "dsp90-8",
        "l1p95-8",
        "l1p90-2",
    ]


def test_pictures_fall_off_as_photographs_do() -> None:
    images = pictures(32, 7).numpy()
    assert images.mean((2, 3)) == pytest.approx(0, abs=1e-5) and images.std((2, 3)) == pytest.approx(
        1, rel=1e-2
    )
    power = (np.abs(np.fft.fft2(images)) ** 2).mean((0, 1))
    slope = np.polyfit(np.log(np.arange(1, 13)), np.log((power[0, 1:13] + power[1:13, 0]) / 2), 1)[0]
    assert -2.4 < slope < -1.6
    assert np.array_equal(images, pictures(32, 7).numpy()) and not np.array_equal(
        images, pictures(32, 8).numpy()
    )
