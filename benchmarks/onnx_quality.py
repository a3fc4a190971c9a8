"""How good our ONNX files are: against torch.onnx.export, where their time goes, int8, DSP and sparse weights.

    python benchmarks/onnx_quality.py --rounds 15

Spikformer-4-384-1536, 32x32, T = 4, BatchNorms calibrated on noise. Latencies: onnxruntime sessions of one
process take turns, in an order shuffled every round; the ratios are of medians, with a bootstrap interval.
The files' spikes are compared with PyTorch's before anything is timed.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.export_onnx import machine
from benchmarks.networks import spikformer
from stdeploy.approximate import measure_all
from stdeploy.checkpoint import load_checkpoint
from stdeploy.compress import prune
from stdeploy.compress.masks import apply_masks
from stdeploy.exporters.onnx import export
from stdeploy.models.calibration import firing_rates
from stdeploy.passes.pipelines import PIPELINES, run_pipeline
from stdeploy.runtime.bench.statistics import ratio_of_medians, summarise
from stdeploy.runtime.bench.turns import Timed, take_turns
from stdeploy.runtime.onnx_profile import profile
from stdeploy.runtime.onnx_session import OnnxRuntimeExecutor
from stdeploy.runtime.sessions import OrtSession, SessionOptions
from stdeploy.trace import trace
from stdeploy.verify import compare

SHAPE = (3, 32, 32)


def noise(batch: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, *SHAPE)).astype(np.float32)


def write(model: nn.Module, path: Path, **options: Any) -> dict[str, Any]:
    """Trace, fold and export; what a comparison with PyTorch, or of int8 with float32, finds on two inputs."""
    traced = trace(model, SHAPE)
    graph = run_pipeline(traced.graph, PIPELINES["onnx"]).graph
    export(graph, path, options)
    runtime, inputs = OnnxRuntimeExecutor(path, spikes=False), noise(2, seed=3)
    if runtime.file.approximate:
        (found,) = measure_all(graph, [runtime], inputs)
        return {"ok": True, **found.to_dict()}
    report = compare(traced, runtime, traced.graph, inputs, exported=graph)
    return {
        "ok": report.ok,
        "samples": report.samples,
        "spikes_compared": report.spikes_compared,
        "spike_mismatches": report.spike_mismatches,
        "argmax_agree": report.outputs[0].argmax_agree,
    }


def dynamo(model: nn.Module, path: Path, batch: int) -> None:
    example = (torch.from_numpy(noise(batch)),)
    torch.onnx.export(model, example, path, dynamo=True, external_data=False, verbose=False)


def latency(files: dict[str, Path], batch: int, threads: int, rounds: int) -> dict[str, Any]:
    """Each file's latencies in turns, and every one's ratio to the last."""
    inputs = noise(batch)

    def call(path: Path) -> Callable[[], Any]:
        session = OrtSession(path, SessionOptions("cpu", threads))
        feeds = {session.input_names[0]: inputs}
        return lambda: session.run(feeds)

    line = take_turns({name: Timed(call(path)) for name, path in files.items()}, rounds, 3)
    found = {name: line.rounds(name) for name in files}
    last = list(files)[-1]
    return {
        "batch": batch,
        "threads": threads,
        "summary_s": {name: summarise(rounds_).to_dict() for name, rounds_ in found.items()},
        f"ratio to {last}": {
            name: ratio_of_medians(rounds_, found[last]).to_dict()
            for name, rounds_ in found.items()
            if name != last
        },
    }


def opened(path: Path) -> tuple[nn.Module, float]:
    """A calibrated network, and its mean firing rate on the noise that is timed."""
    model = load_checkpoint(path).module.eval()
    rates = firing_rates(model, torch.from_numpy(noise(2)))
    return model, sum(rates.values()) / len(rates)


def measure(folder: Path, networks: Path, threads: int, rounds: int) -> dict[str, Any]:
    model, rate = opened(spikformer(networks / "dense.pt"))
    small, small_rate = opened(spikformer(networks / "dsp0.9.pt", 0.9))
    ours, int8, dsp = (folder / f"{name}.onnx" for name in ("ours", "int8", "dsp"))
    reports = {
        "ours": write(model, ours),
        "int8": write(model, int8, weights="int8"),
        "dsp": write(small, dsp),
    }
    pruned = copy.deepcopy(model)
    masks, _ = prune(pruned, "l1p", 0.9)
    apply_masks(pruned, masks)
    files = {"dense": folder / "l1p.onnx", "sparse": folder / "sparse.onnx"}
    reports["l1p"] = write(pruned, files["dense"])
    reports["sparse"] = write(pruned, files["sparse"], sparse=True)
    broken = [name for name, report in reports.items() if not report["ok"]]
    if broken:
        raise SystemExit(f"spikes differ beyond rounding in {', '.join(broken)}: nothing was timed")
    runs = {}
    for batch in (1, 8):
        theirs = folder / f"dynamo{batch}.onnx"
        dynamo(model, theirs, batch)
        runs[f"batch {batch}"] = latency(
            {"int8": int8, "dsp": dsp, "dynamo": theirs, "ours": ours}, batch, threads, rounds
        )
    nodes = {p.stem: len(onnx.load(p, load_external_data=False).graph.node) for p in folder.glob("*.onnx")}
    sizes = {p.stem: p.stat().st_size for p in folder.glob("*.onnx")}
    return {
        "mean_rate": {"dense": rate, "dsp": small_rate},
        "nodes": {**nodes, "ours / dynamo": nodes["ours"] / nodes["dynamo1"]},
        "bytes": {**sizes, "sparse / l1p": sizes["sparse"] / sizes["l1p"]},
        "latency": runs,
        "profile": {
            f"{p.stem} batch {batch}": profile(p, noise(batch), threads=threads, runs=20).to_dict()
            for p in (ours, int8)
            for batch in (1, 8)
        },
        "spikes": reports,
    }


def rows(result: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What is aimed at, the measured value, and the target."""
    runs, shares = result["latency"], result["profile"]

    def ratio(batch: int, over: str, under: str) -> float:
        found = runs[f"batch {batch}"]["ratio to ours"]
        value = 1.0 if over == "ours" else float(found[over]["value"])
        return value / (1.0 if under == "ours" else float(found[under]["value"]))

    return [
        *((f"ours / torch.onnx.export, batch {b}", ratio(b, "ours", "dynamo"), 0.85) for b in (1, 8)),
        *(
            (
                f"kernel time outside Conv and MatMul, batch {b}",
                shares[f"ours batch {b}"]["outside_products"],
                0.12,
            )
            for b in (1, 8)
        ),
        ("nodes, ours / torch.onnx.export", result["nodes"]["ours / dynamo"], 0.40),
        ("int8 / fp32, batch 1", ratio(1, "int8", "ours"), 0.55),
        ("DSP 4-48-153 / dense, batch 1", ratio(1, "dsp", "ours"), 0.60),
        ("file size, L1P 90 % sparse / dense", result["bytes"]["sparse / l1p"], 0.55),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", type=Path, help="folder that keeps the calibrated networks")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "onnx_quality.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        networks = arguments.networks or Path(folder)
        networks.mkdir(parents=True, exist_ok=True)
        result = measure(Path(folder), networks, arguments.threads, arguments.rounds)
    table = rows(result)
    document = {
        "benchmark": "ONNX files of Spikformer-4-384-1536 (32x32, T = 4)",
        "machine": machine(arguments.threads),
        "rounds": arguments.rounds,
        "rows": [{"what": what, "value": value, "target": target} for what, value, target in table],
        **result,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    for what, value, target in table:
        print(f"{what:48s} {value:6.3f}  target <= {target}")


if __name__ == "__main__":
    main()
