"""Latency of Spikformer-4-384-1536 (32x32, T = 4): stdeploy's ONNX against PyTorch and torch's export; DSP against dense.

    python benchmarks/latency.py
    python benchmarks/latency.py --device cuda

Writes benchmarks/results/latency.json (latency_cuda.json); `python -m benchmarks.tables` puts it into the README.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.networks import spikformer
from stdeploy import benchmark, running, workflow
from stdeploy.data import random_data
from stdeploy.runtime.bench.engine import Batches, measure
from stdeploy.runtime.bench.machine import examine_machine
from stdeploy.runtime.bench.report import BenchReport, Plan
from stdeploy.runtime.bench.text import render
from stdeploy.runtime.sessions import PROVIDERS, SessionOptions, load_onnxruntime

RESULTS = Path(__file__).parent / "results"
SPARSITIES = (0.5, 0.9, 0.99)


def log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def proof(model: Path, folder: Path, samples: int) -> dict[str, Any]:
    """Every spike of our file against PyTorch's, teacher-forced (stdeploy verify)."""
    source = workflow.open_source(model)
    path = workflow.export(source, workflow.lower(source.graph, "onnx"), folder / "proof.onnx").path
    inputs = random_data(source.graph, samples)
    exported = workflow.exported_graph(source, path)
    (report,) = workflow.check_all(source, exported, running.executors(path), inputs)
    found = report.to_dict()
    layers = found["layers"]
    unexplained = sum(layer["unexplained"] for layer in layers)
    named = {key: found[key] for key in ("samples", "spikes_compared", "spike_mismatches", "ok")}
    return {**named, "unexplained": unexplained}


def figure6(models: dict[str, Path], plan: Plan, session: SessionOptions, folder: Path) -> BenchReport:
    """Our ONNX of the dense network and of what DSP leaves at each sparsity, all in the same turns."""
    specs, rates = [], {}
    for name, path in models.items():
        source = workflow.open_source(path)
        file = workflow.export(
            source, workflow.lower(source.graph, "onnx"), folder / f"{path.stem}.onnx"
        ).path
        specs.append(benchmark.onnx_spec(name, name, session, path=str(file)))
        graph = source.graph
        rates[name] = benchmark.firing_rates(benchmark.Network(path, graph, source), random_data(graph, 1))
    inputs = Batches(random_data(graph, max(plan.batches), plan.seed))
    points = measure(specs, inputs, plan, log=log)
    return BenchReport(examine_machine(session.device), plan, tuple(points), "standard normal noise", rates)


def kept(report: BenchReport) -> dict[str, Any]:
    """The report without its single calls, which would fill thousands of lines."""
    document = report.to_dict()
    for point in document["points"]:
        del point["order"]
        for row in point["candidates"]:
            del row["latency_ms_by_round"]
    return document


def main() -> int:
    """Measure once; exit code 1 where a candidate failed, 0 where the device is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "tensorrt"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="timed seconds for each candidate and batch"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--samples", type=int, default=1, help="samples of the proof, 0 for none")
    parser.add_argument("--networks", type=Path, help="folder that keeps the calibrated networks")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    name = "latency.json" if arguments.device == "cpu" else f"latency_{arguments.device}.json"
    path = arguments.json or RESULTS / name
    session = SessionOptions(arguments.device)
    if PROVIDERS[arguments.device] not in load_onnxruntime().get_available_providers():
        print(f"skipped: no {PROVIDERS[arguments.device]} on this machine", file=sys.stderr)
        return 0
    plan = Plan((1, 8), (arguments.threads,), "onnx", arguments.rounds, arguments.seconds)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        networks = arguments.networks or folder
        networks.mkdir(parents=True, exist_ok=True)
        log("calibrating the dense network")
        dense = spikformer(networks / "dense.pt")
        options = benchmark.BenchOptions(("torch", "dynamo", "onnx"), session)
        report = benchmark.bench(dense, [], None, plan, options, folder=folder, log=log)
        models = {"dense": dense}
        for sparsity in SPARSITIES:
            log(f"calibrating DSP p = {sparsity:.0%}")
            models[f"p = {sparsity:.0%}"] = spikformer(networks / f"dsp{sparsity}.pt", sparsity)
        compressed = figure6(models, replace(plan, reference="dense"), session, folder)
        log("comparing every spike")
        proven = proof(dense, folder, arguments.samples) if arguments.samples else None
    document = {
        "network": "Spikformer-4-384-1536, 32x32, T = 4, random weights",
        "candidates": kept(report),
        "dsp": kept(compressed),
        "proof": proven,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print("\n".join([*render(report), "", *render(compressed)]))
    for warning in (*report.warnings, *compressed.warnings, *report.problems, *compressed.problems):
        print(f"warning: {warning}", file=sys.stderr)
    return 1 if report.problems or compressed.problems else 0


if __name__ == "__main__":
    sys.exit(main())
