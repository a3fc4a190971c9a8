"""Trace a Spikformer of 12 blocks, d = 768 (224 x 224 images, T = 4): seconds, and the most memory it takes.

Prints a JSON document and writes it to benchmarks/results. Memory is the growth of the process's peak resident
set while tracing, in multiples of the model's own parameters and buffers.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import torch

import stdeploy
from stdeploy.models import Spikformer, SpikformerConfig
from stdeploy.trace import trace

RESULT = Path(__file__).parent / "results" / "trace_large.json"


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _config(depth: int, dim: int, heads: int, size: tuple[int, int]) -> SpikformerConfig:
    stem = tuple((max(1, dim // k), True) for k in (8, 4, 2, 1))
    return SpikformerConfig(depth, dim, 4 * dim, heads, steps=4, stem=stem, image_size=size, num_classes=1000)


def main() -> None:
    """Measure once."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = _config(12, 768, 12, (224, 224))
    net = Spikformer(config).eval()
    size = sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))
    small = Spikformer(_config(1, 24, 2, (32, 32))).eval()
    trace(small, (3, 32, 32))  # what PyTorch loads at its first export is not the model's
    before, start = _peak(), time.perf_counter()
    traced = trace(net, (3, 224, 224))
    seconds, grown = time.perf_counter() - start, _peak() - before
    document = {
        "stdeploy": stdeploy.__version__,
        "torch": torch.__version__,
        "blocks": config.depth,
        "dim": config.embed_dim,
        "steps": config.steps,
        "model_bytes": size,
        "nodes": len(traced.graph),
        "neuron_layers": len(traced.graph.neurons),
        "seconds": round(seconds, 2),
        "peak_growth_bytes": grown,
        "peak_growth_in_models": round(grown / size, 2),
    }
    RESULT.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    json.dump(document, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
