"""Two encoder blocks of Spikformer-4-384 (64 tokens, 12 heads, L1P 90 %) in Lava: spikes, ms a step, memory.

Random weights, BatchNorm calibrated to a rate of 0.1; 8 samples of the stem's own output. Every spike is compared
with the interpreter in float64. Prints a JSON document and writes it to benchmarks/results.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor, nn

import stdeploy
from stdeploy.compress import apply_masks, prune
from stdeploy.exporters import lava
from stdeploy.graph.interpreter import interpret
from stdeploy.models import Spikformer, SpikformerConfig
from stdeploy.models.calibration import calibrate_batchnorm
from stdeploy.passes.pipelines import PIPELINES, run_pipeline
from stdeploy.runtime.lava_process import LavaExecutor
from stdeploy.trace import trace

RESULT = Path(__file__).parent / "results" / "lava_encoder.json"
SAMPLES, STEPS = 8, 4
CONFIG = SpikformerConfig(
    2,
    384,
    1536,
    12,
    steps=STEPS,
    stem=((48, False), (96, False), (192, True), (384, True)),
    image_size=(32, 32),
)


class Encoder(nn.Module):
    """The blocks, on tokens `[B, T, d, N]`; the mean over tokens and steps."""

    def __init__(self, model: Spikformer) -> None:
        super().__init__()
        self.block = model.block

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(1, 0, 3, 2)
        for block in self.block:
            x = block(x)
        return x.mean((0, 2))


class Memory(threading.Thread):
    """The most proportional memory of this program's children together, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.processes, self.done = 0, 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.5):
            total = count = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    total += child.memory_full_info().pss
                    count += 1
                except psutil.Error:
                    continue
            self.most, self.processes = max(self.most, total), max(self.processes, count)


def main() -> None:
    """Measure once."""
    torch.manual_seed(0)
    model = Spikformer(CONFIG).eval()
    masks, _ = prune(model, "l1p", 0.9)
    apply_masks(model, masks)
    images = torch.randn(SAMPLES, 3, 32, 32)
    calibrate_batchnorm(model, images, 0.1)
    with torch.no_grad():
        tokens = model.patch_embed(images).permute(1, 0, 3, 2).contiguous()
    graph = trace(Encoder(model).eval(), tuple(tokens.shape[1:]), layout="BT").graph
    graph = run_pipeline(graph, PIPELINES["lava"]).graph
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        artifact = lava.export(graph, Path(folder, "net"), {"attention": "process"})
        export_seconds = time.perf_counter() - start
        executor = LavaExecutor(Path(folder, "net"))
        seconds = {}
        for count in (1, SAMPLES):  # the difference leaves start-up and compilation out
            memory = Memory()
            memory.start()
            start = time.perf_counter()
            got = executor.run(tokens[:count].numpy())
            seconds[count] = time.perf_counter() - start
            memory.done.set()
    wanted = interpret(graph, tokens.numpy())
    differ = {n: int((got.spikes[n] != s).sum()) for n, s in wanted.spikes.items()}
    step = (seconds[SAMPLES] - seconds[1]) / ((SAMPLES - 1) * STEPS)
    document = {
        "stdeploy": stdeploy.__version__,
        "lava": executor.name,
        "python": sys.version.split()[0],
        "cpus": psutil.cpu_count(),
        "load": round(psutil.getloadavg()[0], 1),
        "samples": SAMPLES,
        "steps": STEPS,
        **artifact.metadata,
        "folder_bytes": artifact.size_bytes,
        "export_s": round(export_seconds, 2),
        "spikes_compared": sum(s.size for s in wanted.spikes.values()),
        "spikes_that_differ": sum(differ.values()),
        "rates": {n: round(float(s.mean()), 4) for n, s in wanted.spikes.items()},
        "largest_output_difference": float(np.abs(got.outputs["output"] - wanted.outputs["output"]).max()),
        "ms_per_step": round(1000 * step, 1),
        "operating_system_processes": memory.processes,
        "memory_bytes": memory.most,
    }
    RESULT.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    json.dump(document, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
