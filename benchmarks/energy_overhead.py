"""What counting adds to a forward pass of Spikformer-4-384-1536, batch 2: the ratio, in one process, taking turns.

A round is one plain forward pass of the module, one that records every neuron's spikes, and the counting of these.
Every layer fires: the BatchNorms are calibrated. Dense weights, then the blocks' weights 80 % zero.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

import stdeploy
from stdeploy.compress import apply_masks, prune
from stdeploy.energy.counting import Counter
from stdeploy.models import Spikformer, calibrate_batchnorm, spikformer_cifar10
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.trace import trace

RESULT = Path(__file__).parent / "results" / "energy_overhead.json"
ROUNDS = 9
BATCH = 2


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _summary(ratios: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(ratios), 3),
        "lowest": round(min(ratios), 3),
        "highest": round(max(ratios), 3),
    }


def measure(net: nn.Module) -> dict[str, object]:
    """Ratios to a plain forward pass: with the spikes recorded, and with those counted too."""
    traced = trace(net, (3, 32, 32))
    graph = run_pipeline(traced.graph, PIPELINES["onnx"]).graph
    x = np.random.default_rng(1).standard_normal((BATCH, 3, 32, 32)).astype(np.float32)
    counter = Counter(traced.graph)
    tensor = torch.from_numpy(x)
    spikes = traced.run(x).spikes
    counter.add(x, spikes)
    plain, recorded, counted = [], [], []
    with torch.no_grad():
        for _ in range(ROUNDS):
            plain.append(_seconds(lambda: net(tensor)))
            recorded.append(_seconds(lambda: traced.run(x)))
            counted.append(_seconds(lambda: counter.add(x, spikes)))
    rates = [float(s.mean()) for s in spikes.values()]
    return {
        "forward_seconds": round(statistics.median(plain), 4),
        "recording/forward": _summary([r / p for r, p in zip(recorded, plain, strict=True)]),
        "counting/forward": _summary([c / p for c, p in zip(counted, plain, strict=True)]),
        "(recording + counting)/forward": _summary(
            [(r + c) / p for r, c, p in zip(recorded, counted, plain, strict=True)]
        ),
        "nodes": len(graph),
        "mean_rate": round(statistics.mean(rates), 3),
    }


def main() -> None:
    """Measure the dense and the pruned network."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = Spikformer(spikformer_cifar10()).eval()
    calibrate_batchnorm(net, torch.randn(2, 3, 32, 32))
    document = {
        "stdeploy": stdeploy.__version__,
        "torch": torch.__version__,
        "rounds": ROUNDS,
        "batch": BATCH,
    }
    document["dense"] = measure(net)
    masks, _ = prune(net, "l1p", 0.8)
    apply_masks(net, masks)
    document["l1p 80 %"] = measure(net)
    RESULT.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
