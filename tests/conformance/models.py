"""Whole nets: Spikformers of awkward shapes, the papers' shapes in small, and the shipped samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stdeploy import workflow
from stdeploy.compress import prune
from stdeploy.compress.masks import apply_masks
from stdeploy.data import load_data
from stdeploy.graph import Graph, GraphBuilder, Node, ops, rewrite
from stdeploy.graph.execution import Executor
from stdeploy.graph.interpreter import Interpreter
from stdeploy.graph.weight import Array
from stdeploy.models import Spikformer, calibrate_batchnorm, spikformer_cifar10_dvs
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.trace import trace
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
IMAGES = 8


@dataclass(frozen=True, eq=False)
class Whole:
    """A network before and after the passes, what runs it as its author does, and inputs."""

    graph: Graph
    exported: Graph
    reference: Executor
    inputs: Array


def few_taus(graph: Graph) -> Graph:
    """Per-channel tau rounded to tenths: a few levels a layer, as quantised sLIF has."""

    def visit(builder: GraphBuilder, node: Node, inputs: tuple[str, ...]) -> str | None:
        if not isinstance(node.op, ops.Neuron) or node.op.tau is None or node.op.tau.ndim == 0:
            return None
        op = replace(node.op, tau=np.round(node.op.tau, 1))
        return builder.add(op, inputs, name=node.name, source=node.source)

    return rewrite(graph, visit)


def calibrated(**how: Any) -> Whole:
    """A net of tests/graphs.py, float32 interpreter as reference."""
    graph = few_taus(spikformer_graph(**how))
    x = random_inputs(graph, 8, seed=1)
    every_layer_fires(graph, x)
    exported = run_pipeline(graph, PIPELINES["nir"]).graph
    return Whole(graph, exported, Interpreter(graph, np.float32), x)


def event_frames() -> Whole:
    """2-16-102 in small: 16 heads of which DSP keeps a dim or two each, frames of event counts, in PyTorch."""
    torch.manual_seed(0)
    stem = ((4, True), (6, True), (16, True), (64, True))
    config = spikformer_cifar10_dvs(steps=3, embed_dim=64, mlp_dim=51, stem=stem, image_size=(48, 32))
    model = Spikformer(config).eval()
    masks, _ = prune(model, "dsp", 0.7)
    apply_masks(model, masks)
    frames = np.random.default_rng(2).poisson(0.4, (3, 3, 2, 48, 32)).astype(np.float32)
    calibrate_batchnorm(model, torch.from_numpy(frames), rate=0.25)
    traced = trace(model, (3, 2, 48, 32))
    exported = run_pipeline(traced.graph, PIPELINES["nir"]).graph
    return Whole(traced.graph, exported, traced, frames)


def sample(name: str) -> Whole:
    source = workflow.open_source(SAMPLES / f"{name}.pt")
    images, _ = load_data(SAMPLES / "test_images.npz", source.graph, IMAGES)
    return Whole(source.graph, workflow.lower(source.graph, "nir").graph, source.reference, images)


TWELVE = (4, 3, 4, 5, 4, 4, 2, 4, 4, 6, 4, 4)

MODELS: dict[str, Callable[[], Whole]] = {
    "Spikformer, T = 4": partial(calibrated, neurons="spikingjelly"),
    "Spikformer, T = 1, Q(KᵀV)": partial(calibrated, steps=1, order="kv"),
    "Spikformer, frames BT, T = 5": partial(
        calibrated, steps=5, layout="BT", heads=(3, 1, 2), v_heads=(2, 4, 1)
    ),
    "Spikformer, frames TB, sLIF per channel": partial(calibrated, per_channel=True, layout="TB"),
    "Spikformer, 2 blocks, half the dims masked": partial(
        calibrated, depth=2, masked=0.5, heads=(4, 3), v_heads=(4, 3)
    ),
    "Spikformer, 3x5 tokens": partial(calibrated, image=(2, 12, 20), order="kv"),
    "Spikformer, 12 ragged heads, 64 tokens": partial(
        calibrated, image=(3, 32, 32), dim=24, heads=TWELVE, v_heads=TWELVE[::-1], mlp=15
    ),
    "Spikformer in PyTorch, event frames, 16 heads, DSP": event_frames,
    f"samples/pruned_dsp.pt, {IMAGES} images": partial(sample, "pruned_dsp"),
    f"samples/pruned_l1p.pt, {IMAGES} images": partial(sample, "pruned_l1p"),
}
"""Net by the name of its row."""
