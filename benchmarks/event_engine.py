"""The event engine against onnxruntime, OpenVINO and torch's own export, on Spikformer-4-384-1536 (32x32, T = 4).

    python -m benchmarks.event_engine --networks out/networks
    python -m benchmarks.event_engine --draw          the picture again, from the result
    python -m benchmarks.event_engine --calibrate     seconds for each thing that kernels do, on this machine

Dense, L1P and DSP networks that fire at 8 % of neurons (benchmarks/networks.py). Every network: its candidates in
processes of their own, outputs compared, then turns in shuffled order. The curves against sparsity and firing rate:
all networks' event files in the same turns. Writes benchmarks/results/event_engine.json and event_engine.svg;
`python -m benchmarks.tables` puts the table into README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.event_costs import calibrate
from benchmarks.event_curves import draw
from benchmarks.latency import kept, log
from benchmarks.networks import pictures, save_pictures, spikformer
from stdeploy import benchmark, rates, workflow
from stdeploy.files import atomic_write
from stdeploy.runtime.bench.engine import Batches, measure
from stdeploy.runtime.bench.machine import available_cores, examine_machine
from stdeploy.runtime.bench.process import WorkerProcess
from stdeploy.runtime.bench.report import BenchReport, Plan, Point, Row
from stdeploy.runtime.bench.statistics import Ratio, ratio_of_medians
from stdeploy.runtime.event.session import EventSession
from stdeploy.runtime.sessions import SessionOptions

RESULT = Path(__file__).parent / "results" / "event_engine.json"
PICTURE = RESULT.with_suffix(".svg")
SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99)
RATES = (0.02, 0.05, 0.08, 0.1, 0.2)
COUNTED = 8
"""Images on which synaptic operations are counted."""


@dataclass(frozen=True)
class Net:
    """A network: `method` and `sparsity` of its blocks, the rate that it is calibrated to."""

    sparsity: float = 0.0
    method: str = "l1p"
    rate: float = 0.08

    @property
    def name(self) -> str:
        """As tables and files have it: dense-8, l1p90-8."""
        compressed = f"{self.method}{round(100 * self.sparsity)}" if self.sparsity else "dense"
        return f"{compressed}-{round(100 * self.rate)}"

    def file(self, folder: Path) -> Path:
        """The checkpoint, calibrated where it is not there yet."""
        return spikformer(folder / f"event-{self.name}.pt", self.sparsity, self.method, self.rate)


DENSE, L1P, DSP = Net(), Net(0.9), Net(0.9, "dsp")
MAIN = (DENSE, L1P, DSP)
"""Measured at batch 1 and 8; the others at batch 1."""
EXPORTED_BY_TORCH: tuple[Net, ...] = (DENSE,)
"""Also run as torch.onnx.export writes them, which takes most of a minute and is several times slower (latency.py)."""
BY_SPARSITY = (DENSE, *(Net(p) for p in SPARSITIES))
BY_RATE = tuple(tuple(replace(net, rate=rate) for rate in RATES) for net in (DENSE, L1P))
CALIBRATED = (*MAIN, replace(DENSE, rate=0.02), replace(L1P, rate=0.2))
"""Costs are fitted to their layers."""
TARGETS = {"dense-8": 1 / 1.1, "l1p90-8": 2.5, "l1p99-8": 3.5, "dsp90-8": 2.0}
"""What the best other runtime's median over the engine's was to reach at batch 1."""


def compared(net: Net, networks: Path, data: Path, plan: Plan, folder: Path) -> tuple[BenchReport, Path]:
    """One network in every candidate, and its event file."""
    names = ("onnx", "openvino", *(("dynamo",) if net in EXPORTED_BY_TORCH else ()), "event")
    options = benchmark.BenchOptions(names, SessionOptions(), data)
    plan = plan if net in MAIN else replace(plan, batches=(1,))
    report = benchmark.bench(net.file(networks), [], None, plan, options, folder=folder / net.name, log=log)
    report = replace(report, inputs=f"{data.name} of benchmarks/networks.py")  # not where it lay for this run
    return report, folder / net.name / "model" / "stdeploy.sev"


def exported(net: Net, networks: Path, images: Batches, folder: Path) -> Path:
    """The event file of a network, its kernels chosen on the images that are measured."""
    source = workflow.open_source(net.file(networks))
    lowered = workflow.lower(source.graph, "event")
    options = rates.rate_option(source, lowered.graph, images.images, "the measured images")
    return workflow.export(source, lowered, folder / f"{net.name}.sev", options).path


def counted(file: Path, images: Batches) -> float:
    """Synaptic operations of one image, all steps, on average."""
    with EventSession(file, counting=True) as session:
        session.run(images.take(COUNTED), spikes=False)
        return float(sum(counts.sum() for counts in session.synops.values())) / COUNTED


def table(report: BenchReport) -> list[dict[str, Any]]:
    """At each batch: medians, the best other candidate, and its median over the engine's (`reference` is the engine)."""
    return [_against(point) for point in report.points]


def _against(point: Point) -> dict[str, Any]:
    ran = {row.name: row for row in point.rows if row.status == "ok" and row.summary is not None}
    medians = {name: 1e3 * row.summary.p50 for name, row in ran.items() if row.summary is not None}
    others = {name: ms for name, ms in medians.items() if name != "event"}
    best = min(others, key=lambda name: others[name]) if others and "event" in ran else None
    ratio = ran[best].ratio if best else None
    return {
        "batch": point.batch,
        "ms": medians,
        "samples_per_s": {name: row.samples_per_s for name, row in ran.items()},
        "best_other": best,
        "best_other / event": ratio.to_dict() if ratio else None,
    }


def curves(nets: list[Net], files: dict[str, Path], images: Batches, plan: Plan) -> dict[str, Any]:
    """Every network's event file in the same turns: medians by name, and how they go with sparsity and rate.

    `steps`: along each curve a network's median over that of the next, which has more to do. `monotone`: none is above 1,
    or its interval reaches down to 1.
    """
    specs = [
        benchmark.event_spec(net.name, net.name, SessionOptions(), path=str(files[net.name])) for net in nets
    ]
    report = BenchReport(
        examine_machine(), plan, tuple(measure(specs, images, replace(plan, reference=DENSE.name), log=log))
    )
    rows = {row.name: row for point in report.points for row in point.rows}
    ms = {name: 1e3 * row.summary.p50 for name, row in rows.items() if row.summary is not None}
    lines = {"sparsity": [n.name for n in reversed(BY_SPARSITY)]}
    lines |= {f"rate, {line[0].name.split('-')[0]}": [n.name for n in line] for line in BY_RATE}
    ratios = {
        name: {f"{a} / {b}": _step(rows[a], rows[b]) for a, b in pairwise(line)}
        for name, line in lines.items()
        if {*line} <= {*ms}
    }
    return {
        "ms": ms,
        "steps": {name: {step: r.to_dict() for step, r in line.items()} for name, line in ratios.items()},
        "monotone": {
            name: all(min(r.value, r.low or r.value) <= 1 for r in line.values())
            for name, line in ratios.items()
        },
        "report": kept(report),
    }


def _step(one: Row, other: Row) -> Ratio:
    """Ratio of the medians of two rows measured in the same turns, cut to the calls that both made in each."""
    calls = min(len(turn) for row in (one, other) for turn in row.rounds)
    return ratio_of_medians([turn[:calls] for turn in one.rounds], [turn[:calls] for turn in other.rounds])


def first_calls(file: Path, image: Path, plan: Plan) -> dict[str, dict[str, float]]:
    """Seconds to open a file and to run it once in a new process: nothing compiled yet, then compiled before."""
    out = {}
    with tempfile.TemporaryDirectory() as cache, _environment(NUMBA_CACHE_DIR=cache):
        for name in ("nothing compiled", "compiled before"):
            spec = benchmark.event_spec(name, name, SessionOptions(), path=str(file))
            worker = WorkerProcess(spec, plan.threads[0], plan.timeout)
            try:
                opened = worker.load()["seconds"]
                out[name] = {"open_s": opened, "first_call_s": worker.outputs(image)[1]}
            finally:
                worker.close()
    return out


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run(networks: Path, plan: Plan, folder: Path, *, cold: bool) -> dict[str, Any]:
    """Everything; the document that is written."""
    machine = examine_machine()  # before our own work raises the load
    data = save_pictures(folder / "pictures.npz")
    images = Batches(np.load(data)["images"])
    nets = list(dict.fromkeys([*MAIN, *BY_SPARSITY, *(net for line in BY_RATE for net in line)]))
    files: dict[str, Path] = {}
    reports: dict[str, BenchReport] = {}
    for net in nets:
        if net in MAIN or net in BY_SPARSITY:
            log(f"measuring {net.name}")
            reports[net.name], files[net.name] = compared(net, networks, data, plan, folder)
        else:
            files[net.name] = exported(net, networks, images, folder)
    log("all event files in the same turns")
    short = replace(plan, batches=(1,))
    together = curves(nets, files, images, short)
    first = {}
    if cold:
        log("first calls")
        np.save(folder / "image.npy", images.take(1))
        first = first_calls(files[L1P.name], folder / "image.npy", plan)
    return {
        "network": "Spikformer-4-384-1536, 32x32, T = 4, random weights, images with amplitude 1 / frequency",
        "machine": machine.to_dict(),
        "plan": {"threads": plan.threads, "batches": plan.batches, "seconds": plan.seconds},
        "nets": [_facts(net, files[net.name], images, reports.get(net.name)) for net in nets],
        "targets": _judged(reports),
        "curves": together,
        "first_calls": first,
        "reports": {name: kept(report) for name, report in reports.items()},
    }


def _facts(net: Net, file: Path, images: Batches, report: BenchReport | None) -> dict[str, Any]:
    """What a network is, how often it fires, and its times beside other candidates', where they were measured."""
    return {
        "name": net.name,
        "method": net.method if net.sparsity else None,
        "sparsity": net.sparsity,
        "rate": net.rate,
        "synops": counted(file, images),
        "rates": report.to_dict()["firing_rates"]["model"] if report is not None else None,
        "against": table(report) if report is not None else None,
    }


def _judged(reports: dict[str, BenchReport]) -> dict[str, Any]:
    """Wanted and measured ratios at batch 1."""
    out = {}
    for name, wanted in TARGETS.items():
        (at_one,) = [row for row in table(reports[name]) if row["batch"] == 1]
        ratio = at_one["best_other / event"]
        out[name] = {"wanted": wanted, "measured": ratio, "met": bool(ratio and ratio["value"] >= wanted)}
    return out


def lines(document: dict[str, Any]) -> list[str]:
    """What a terminal shows."""
    out = []
    for net in document["nets"]:
        for point in net["against"] or ():
            ratio = point["best_other / event"]
            times = ", ".join(f"{name} {ms:.2f}" for name, ms in point["ms"].items())
            shown = "" if ratio is None else f"; {point['best_other']} / event {_interval(ratio)}"
            out.append(f"{net['name']}, batch {point['batch']}: {times} ms{shown}")
    for name, target in document["targets"].items():
        out.append(f"{name}: wanted {target['wanted']:.2f}, {'met' if target['met'] else 'missed'}")
    synops = {net["name"]: net["synops"] for net in document["nets"]}
    for name, ms in document["curves"]["ms"].items():
        out.append(f"{name}: {ms:.2f} ms, {synops[name] / 1e6:.0f} M SynOps")
    for name, steps in document["curves"]["steps"].items():
        out.append(f"{name}: " + ", ".join(f"{step} {_interval(ratio)}" for step, ratio in steps.items()))
    out.append(f"monotone: {document['curves']['monotone']}")
    for name, seconds in document["first_calls"].items():
        out.append(f"{name}: open {seconds['open_s']:.2f} s, first call {seconds['first_call_s']:.2f} s")
    return out


def _interval(ratio: dict[str, Any]) -> str:
    if ratio["low"] is None:
        return f"{ratio['value']:.2f}"
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


@contextlib.contextmanager
def _kept(networks: Path | None) -> Iterator[Path]:
    """The folder of the calibrated networks; one that goes away where none is named."""
    if networks is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        networks.mkdir(parents=True, exist_ok=True)
        yield networks


def main() -> int:
    """Measure once; exit code 1 where a candidate failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", type=Path, help="folder that keeps the calibrated networks")
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="timed seconds of each candidate and batch"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--no-cold", action="store_true", help="leave out the first call without a cache")
    parser.add_argument("--draw", action="store_true", help="only draw the picture of the result")
    parser.add_argument("--calibrate", action="store_true", help="only measure what kernels cost here")
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.calibrate:
        with _kept(arguments.networks) as networks:
            found = calibrate([net.file(networks) for net in CALIBRATED], pictures(1, 100).numpy())
        print(json.dumps({key: found[key] for key in ("costs", "fit", "fit_of_shipped_costs")}, indent=1))
        return 0
    picture = arguments.json.with_suffix(".svg")
    if not arguments.draw:
        plan = Plan((1, 8), (arguments.threads,), "event", arguments.rounds, arguments.seconds)
        with tempfile.TemporaryDirectory() as temporary, _kept(arguments.networks) as networks:
            folder = Path(temporary)
            document = run(networks, plan, folder, cold=not arguments.no_cold)
        with atomic_write(arguments.json) as path:
            path.write_text(json.dumps(document, indent=1) + "\n")
        print("\n".join(lines(document)))
    document = json.loads(arguments.json.read_text())
    picture.write_text(draw(document))
    problems = [p for report in document["reports"].values() for p in report["problems"]]
    problems += document["curves"]["report"]["problems"]
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
