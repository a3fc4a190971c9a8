"""Time and peak memory of exporting Spikformer-4-384-1536 to ONNX, against torch.onnx.export.

    python benchmarks/export_onnx.py --rounds 5

Every measurement is a fresh process; the candidates take turns in a shuffled order. The clock starts
after torch is imported and the model built, and stops when the file is written, so each candidate pays for
what else it imports. Memory is the process's peak resident set, and its rise over the state at the start.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CANDIDATES = {
    "stdeploy": "trace, passes and export; batch size free",
    "dynamo": "torch.onnx.export(dynamo=True), batch size fixed to 1",
    "dynamo-free-batch": "torch.onnx.export(dynamo=True), batch size free",
}
PACKAGES = ("torch", "onnx", "onnxscript", "onnx-ir", "numpy")


def export(candidate: str, path: Path) -> None:
    """Write the model as `candidate` does; everything but torch and the model is imported in here."""
    import torch

    from stdeploy.models import Spikformer
    from stdeploy.models.presets import spikformer_cifar10

    torch.manual_seed(0)
    model = Spikformer(spikformer_cifar10()).eval()
    before, start = _peak_kib(), time.perf_counter()
    if candidate == "stdeploy":
        _export_stdeploy(model, path)
    elif candidate == "dynamo":
        torch.onnx.export(
            model, (torch.zeros(1, 3, 32, 32),), path, dynamo=True, external_data=False, verbose=False
        )
    else:
        dynamic = ({0: torch.export.Dim("batch")},)
        example = (torch.zeros(2, 3, 32, 32),)
        torch.onnx.export(
            model, example, path, dynamo=True, dynamic_shapes=dynamic, external_data=False, verbose=False
        )
    seconds, peak = time.perf_counter() - start, _peak_kib()
    result = {"seconds": seconds, "peak_mib": peak / 1024, "rise_mib": (peak - before) / 1024}
    print(json.dumps({"candidate": candidate, **result, "nodes": _nodes(path), "bytes": path.stat().st_size}))


def _export_stdeploy(model: Any, path: Path) -> None:
    from stdeploy.exporters import load_target
    from stdeploy.passes.pipelines import PIPELINES, run_pipeline
    from stdeploy.trace import trace

    graph = run_pipeline(trace(model, (3, 32, 32)).graph, PIPELINES["onnx"]).graph
    load_target("onnx").export(graph, path)


def _peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _nodes(path: Path) -> int:
    import onnx

    return len(onnx.load(path, load_external_data=False).graph.node)


def measure(rounds: int, threads: int, seed: int) -> list[dict[str, Any]]:
    """One fresh process per candidate and round, the candidates shuffled within each round."""
    order, runs = random.Random(seed), []
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    for turn in range(rounds):
        for candidate in order.sample(list(CANDIDATES), len(CANDIDATES)):
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--worker", candidate, "--path", f"{folder}/m.onnx"]
                done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            if done.returncode:
                raise SystemExit(f"{candidate} failed:\n{done.stderr}")
            run = {
                "round": turn,
                "load": round(os.getloadavg()[0], 1),
                **json.loads(done.stdout.strip().splitlines()[-1]),
            }
            runs.append(run)
            print(
                f"{turn}  {candidate:18s} {run['seconds']:7.2f} s  peak {run['peak_mib']:6.0f} MiB",
                flush=True,
            )
    return runs


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians with range, and the ratio to each rival within a round (median, lowest, highest)."""
    table: dict[str, Any] = {}
    by = {c: [r for r in runs if r["candidate"] == c] for c in CANDIDATES}
    for candidate, mine in by.items():
        table[candidate] = {
            "what": CANDIDATES[candidate],
            "nodes": mine[0]["nodes"],
            "bytes": mine[0]["bytes"],
            **{key: _spread([r[key] for r in mine]) for key in ("seconds", "peak_mib", "rise_mib")},
        }
    for rival in list(CANDIDATES)[1:]:
        pairs = list(zip(by["stdeploy"], by[rival], strict=True))
        table[f"stdeploy / {rival}"] = {
            key: _spread([a[key] / b[key] for a, b in pairs]) for key in ("seconds", "peak_mib", "rise_mib")
        }
    return table


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def machine(threads: int) -> dict[str, Any]:
    """Hardware and versions the numbers belong to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    default = Path(__file__).parent / "results" / "export_onnx.json"
    parser.add_argument("--json", type=Path, default=default)
    parser.add_argument("--worker", choices=CANDIDATES, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        export(arguments.worker, arguments.path)
        return
    runs = measure(arguments.rounds, arguments.threads, arguments.seed)
    result = {
        "benchmark": "export Spikformer-4-384-1536 (32x32, T = 4) to ONNX",
        "machine": machine(arguments.threads),
        "rounds": arguments.rounds,
        "summary": summarise(runs),
        "runs": runs,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    for name, row in result["summary"].items():
        cells = [
            f"{k} {row[k]['median']:.3g} [{row[k]['lowest']:.3g}, {row[k]['highest']:.3g}]"
            for k in ("seconds", "peak_mib")
        ]
        print(f"{name:30s} {'   '.join(cells)}")


if __name__ == "__main__":
    main()
