"""The papers' compressed Spikformers as NIR files: export time and memory, size, counts, and spikes in every reader.

    python benchmarks/nir_paper_scale.py [--only 4-48-153]

Each net is the dense architecture with BatchNorms calibrated so that every neuron layer fires, pruned by
`stdeploy.compress` (DSP, p = 90 %). Export is a fresh process: its clock starts before stdeploy is imported
and stops when the file is written; its memory is the process's peak resident set. Verification is another:
16 inputs, every step, teacher-forced, one thread. Writes benchmarks/results/nir_paper_scale.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "nir_paper_scale.json"
READERS = ("snntorch", "spikingjelly", "spikingjelly-m", "norse", "stdeploy")
PACKAGES = ("torch", "numpy", "nir", "nirtorch", "snntorch", "spikingjelly", "norse")
INPUTS = 16


@dataclass(frozen=True)
class Net:
    """A row of the paper's tables: preset, rounding of the pruned share, the name's two widths."""

    preset: str
    rounding: str
    attention: int
    hidden: int
    classes: int = 10
    verified: bool = True


NETS = {
    "4-48-153": Net("spikformer_cifar10", "down", 48, 153),
    "2-16-102": Net("spikformer_cifar10_dvs", "up", 16, 102),
    "8-48-204": Net("spikformer_imagenet", "up", 48, 204, classes=100, verified=False),
}


def make(name: str, path: Path) -> None:
    """Build, prune, calibrate and save; the widths of the net's name have to come out of the pruning."""
    import torch

    from stdeploy.checkpoint import save_checkpoint
    from stdeploy.compress import prune
    from stdeploy.compress.masks import apply_masks
    from stdeploy.models import Spikformer, calibrate_batchnorm, presets

    net = NETS[name]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = getattr(presets, net.preset)(num_classes=net.classes)
    model = Spikformer(config).eval()
    masks, record = prune(model, "dsp", 0.9, rounding=net.rounding)  # type: ignore[arg-type]
    kept = {(len(layer["attention"]), len(layer["mlp"])) for layer in record.layers.values()}
    if kept != {(net.attention, net.hidden)}:
        raise SystemExit(f"{name}: DSP keeps {kept}")
    apply_masks(model, masks)
    rates = {}
    if net.verified:
        rates = calibrate_batchnorm(model, torch.from_numpy(inputs(config, 2, seed=1)), tries=6)
    save_checkpoint(path, model, record.to_dict())
    print(json.dumps({"lowest_rate": min(rates.values(), default=0), "neuron_layers": len(rates)}))


def inputs(config: Any, count: int, seed: int = 0) -> Any:
    """Normalised images, or frames of small event counts."""
    import numpy as np

    rng = np.random.default_rng(seed)
    shape = (config.in_channels, *config.image_size)
    if config.input_kind == "image":
        return rng.standard_normal((count, *shape)).astype(np.float32)
    return rng.poisson(0.1, (count, config.steps, *shape)).astype(np.float32)


def export(model: Path, path: Path, dialect: str) -> None:
    """Trace, passes and export; prints seconds, memory, counts, and the counts by the formulas of docs/nir.md."""
    start = time.perf_counter()
    from stdeploy import workflow

    source = workflow.open_source(model)
    lowered = workflow.lower(source.graph, "nir")
    artifact = workflow.export(source, lowered, path, {"dialect": dialect})
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {
        "seconds": round(seconds, 2),
        "peak_mib": round(peak),
        "bytes": artifact.size_bytes,
        **artifact.metadata,
        "formula": formula(lowered.graph),
    }
    print(json.dumps(result))


def formula(graph: Any) -> dict[str, int]:
    """Pairs, auxiliary neurons and stored weights of the attention as docs/nir.md has them, from the graph alone.

    `one_hot_weights`: what the earlier lowering, by dense one-hot convolutions, would have stored.
    """
    import math

    from stdeploy.passes.attention_order import products

    total = {"pairs": 0, "attention_neurons": 0, "attention_weights": 0, "one_hot_weights": 0}
    for product in products(graph):
        tokens = math.prod(graph[product.q].value.shape[1:])
        pairs = sum(a * b for a, b in zip(product.head_q, product.head_v, strict=True))
        digits, queries, values = int(math.log2(tokens)) + 1, sum(product.head_q), sum(product.head_v)
        width = max(node.value.shape[0] for node in graph if node.name.endswith("add"))
        total["pairs"] += pairs
        total["attention_neurons"] += pairs * tokens * (1 + digits)
        total["attention_weights"] += pairs * (2 * queries + (1 + digits) * values) + (digits - 1) * pairs**2
        total["one_hot_weights"] += (
            3 * pairs * width + pairs**2 * tokens * (1 + digits) + digits * width * pairs
        )
    return total


def read(model: Path, path: Path) -> None:
    """Load in every reader, and compare with the PyTorch model."""
    import torch

    torch.set_num_threads(1)
    from stdeploy import workflow
    from stdeploy.runtime.nir_readers import NirReader

    source = workflow.open_source(model)
    exported = workflow.lower(source.graph, "nir").graph
    if source.opened is None:
        raise SystemExit(f"{model} is no checkpoint")
    x = inputs(source.opened.module.config, INPUTS)
    NirReader(path, "snntorch")  # what the packages load at their first import is not the file's
    readers, seconds = [], {}
    for name in READERS:
        start = time.perf_counter()
        readers.append(NirReader(path, name))
        seconds[name] = round(time.perf_counter() - start, 2)
    rows = {}
    reports = workflow.check_all(source, exported, readers, x)
    for name, report in zip(READERS, reports, strict=True):
        (output,) = report.outputs
        rows[name] = {
            "name": report.candidate,
            "load_seconds": seconds[name],
            "spikes": report.spikes_compared,
            "differ": report.spike_mismatches,
            "unexplained": sum(la.unexplained + la.reference_unexplained for la in report.layers),
            "max_output_difference": output.max_difference,
            "argmax_agree": f"{output.argmax_agree}/{output.samples}",
            "ok": report.ok,
        }
    rates = [layer.firing_rate for layer in reports[0].layers]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {
                "readers": rows,
                "rates": [min(rates), max(rates)],
                "layers": len(rates),
                "peak_mib": round(peak),
            }
        )
    )


def child(*arguments: str) -> dict[str, Any]:
    """This script in a fresh process, one thread; what it prints last."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    out: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return out


def measure(name: str, folder: Path) -> dict[str, Any]:
    """One net: made, exported in two dialects, and verified."""
    model, path = str(folder / f"{name}.pt"), str(folder / f"{name}.nir")
    made = child("--worker", "make", "--net", name, model)
    out = {"made": made, "portable": child("--worker", "export", model, path)}
    compact = str(folder / f"{name}-compact.nir")
    out["compact"] = child("--worker", "export", "--dialect", "compact", model, compact)
    if NETS[name].verified:
        out["verified"] = child("--worker", "read", model, path)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=NETS, action="append", help="measure these nets, keep the others")
    parser.add_argument("--worker", choices=("make", "export", "read"), help=argparse.SUPPRESS)
    parser.add_argument("--net", help=argparse.SUPPRESS)
    parser.add_argument("--dialect", default="portable", help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.worker == "make":
        make(told.net, told.paths[0])
    elif told.worker == "export":
        export(told.paths[0], told.paths[1], told.dialect)
    elif told.worker == "read":
        read(told.paths[0], told.paths[1])
    if told.worker:
        return
    nets = json.loads(RESULT.read_text())["nets"] if told.only and RESULT.exists() else {}
    for name in told.only or NETS:
        with tempfile.TemporaryDirectory() as folder:
            nets[name] = measure(name, Path(folder))
        print(name, json.dumps(nets[name], indent=1), flush=True)
    machine = {
        "cores": os.cpu_count(),
        "threads": 1,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }
    document = {
        "benchmark": "NIR at the papers' scale",
        "inputs": INPUTS,
        "machine": machine,
        "nets": {name: nets[name] for name in NETS if name in nets},
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
