"""The papers' compressed Spikformers as NIR files: export time and memory, size, counts, and spikes in every reader.

    python benchmarks/nir_paper_scale.py [--only 4-48-153]

Each net is the dense architecture with BatchNorms calibrated so that every neuron layer fires, pruned by
`stdeploy.compress` (DSP, p = 90 %). Export is a fresh process: its clock starts before stdeploy is imported
and stops when the file is written; its memory is the process's peak resident set. Verification is another:
every reader, every step, teacher-forced, one thread. Writes benchmarks/results/nir_paper_scale.json.
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


@dataclass(frozen=True)
class Net:
    """A row of the paper's tables: preset, rounding of the pruned share, the name's two widths.

    `inputs` are verified; BatchNorms are calibrated on `calibration` others.
    """

    preset: str
    rounding: str
    attention: int
    hidden: int
    classes: int = 10
    inputs: int = 16
    calibration: int = 2


NETS = {
    "4-48-153": Net("spikformer_cifar10", "down", 48, 153),
    "2-16-102": Net("spikformer_cifar10_dvs", "up", 16, 102),
    "8-48-204": Net("spikformer_imagenet", "up", 48, 204, classes=100, inputs=2, calibration=1),
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
    images = torch.from_numpy(inputs(config, net.calibration, seed=1))
    rates = calibrate_batchnorm(model, images)
    save_checkpoint(path, model, record.to_dict())
    print(json.dumps({"lowest_rate": min(rates.values()), "neuron_layers": len(rates)}))


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


def read(name: str, model: Path, path: Path) -> None:
    """Load in every reader, and compare with the PyTorch model."""
    import torch

    torch.set_num_threads(1)
    from stdeploy import workflow
    from stdeploy.runtime.nir_readers import NirReader

    source = workflow.open_source(model)
    exported = workflow.lower(source.graph, "nir").graph
    if source.opened is None:
        raise SystemExit(f"{model} is no checkpoint")
    x = inputs(source.opened.module.config, NETS[name].inputs)
    NirReader(path, "snntorch")  # what the packages load at their first import is not the file's
    readers, seconds = [], {}
    for reader in READERS:
        start = time.perf_counter()
        readers.append(NirReader(path, reader))
        seconds[reader] = round(time.perf_counter() - start, 2)
    rows = {}
    reports = workflow.check_all(source, exported, readers, x)
    for reader, report in zip(READERS, reports, strict=True):
        (output,) = report.outputs
        rows[reader] = {
            "name": report.candidate,
            "load_seconds": seconds[reader],
            "spikes": report.spikes_compared,
            "differ": report.spike_mismatches,
            "unexplained": sum(la.unexplained + la.reference_unexplained for la in report.layers),
            "max_output_difference": output.max_difference,
            "argmax_agree": f"{output.argmax_agree}/{output.samples}",
            "ok": report.ok,
        }
    rates = [layer.firing_rate for layer in reports[0].layers]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {"rates": [min(rates), max(rates)], "layers": len(rates), "peak_mib": round(peak)}
    print(json.dumps({"inputs": len(x), "readers": rows, **result}))


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
    out["verified"] = child("--worker", "read", "--net", name, model, path)
    return out


def table(document: dict[str, Any]) -> str:
    """The tables of docs/nir.md."""
    nets = document["nets"]
    first = [("", *nets)]
    portable = {name: net["portable"] for name, net in nets.items()}
    for title, cell in (
        ("export, fresh process", lambda p: f"{p['seconds']:.1f} s"),
        ("peak memory", lambda p: f"{p['peak_mib'] / 1024:.1f} GiB"),
        ("file", lambda p: f"{p['bytes'] / 1e6:.1f} MB"),
        ("nodes / edges", lambda p: f"{p['nodes']} / {p['edges']}"),
        ("model neurons", lambda p: f"{p['model_neurons']:,}"),
        ("pooling neurons", lambda p: f"{p['pooling_neurons']:,}"),
        ("attention neurons = formula", lambda p: _equal(p, "attention_neurons")),
        ("pairs of all blocks", lambda p: f"{p['formula']['pairs']:,}"),
        ("stored (nonzero) weights", lambda p: f"{p['stored_weights']:,} ({p['nonzero_weights']:,})"),
        ("of these, attention", lambda p: f"{p['formula']['attention_weights']:,}"),
        ("by the one-hot lowering", lambda p: f"{p['formula']['one_hot_weights']:,}"),
    ):
        first.append((title, *(cell(p) for p in portable.values())))
    first.append(("compact: stored weights", *(f"{n['compact']['stored_weights']:,}" for n in nets.values())))
    done = {name: net["verified"] for name, net in nets.items()}
    second = [("reader", *(f"{n}: load, differ, unexplained of {_spikes(v)}" for n, v in done.items()))]
    for reader in READERS:
        rows = [v["readers"][reader] for v in done.values()]
        cells = (f"{r['load_seconds']:.1f} s, {r['differ']}, {r['unexplained']}" for r in rows)
        second.append((rows[0]["name"], *cells))
    rates = (f"{100 * v['rates'][0]:.2g} to {100 * v['rates'][1]:.2g} %" for v in done.values())
    second.append(("firing rates of the layers", *rates))
    return "\n\n".join(_markdown(rows) for rows in (first, second))


def _equal(portable: dict[str, Any], key: str) -> str:
    counted, formula = portable[key], portable["formula"][key]
    return f"{counted:,}" if counted == formula else f"{counted:,} is not {formula:,}"


def _spikes(verified: dict[str, Any]) -> str:
    return f"{next(iter(verified['readers'].values()))['spikes']:,} ({verified['inputs']} inputs)"


def _markdown(rows: list[tuple[str, ...]]) -> str:
    lines = [rows[0], ("---", *("--:" for _ in rows[0][1:])), *rows[1:]]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", choices=NETS, action="append", help="measure these nets, keep the others")
    parser.add_argument("--table", action="store_true", help="print the tables of the last measurement")
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
        read(told.net, told.paths[0], told.paths[1])
    if told.table:
        print(table(json.loads(RESULT.read_text())))
    if told.worker or told.table:
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
        "machine": machine,
        "nets": {name: nets[name] for name in NETS if name in nets},
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
