"""One count, whoever runs the network: PyTorch, its ONNX file, its NIR file; pruned, shrunk or padded with zeros."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stdeploy import running, workflow
from stdeploy.compress import apply_masks, prune
from stdeploy.data import load_data
from stdeploy.energy.counting import count, count_executor, spikes_of
from stdeploy.energy.ledger import Ledger
from stdeploy.energy.views import view
from stdeploy.graph import Graph
from stdeploy.graph.interpreter import interpret
from stdeploy.models import Spikformer, SpikformerConfig, calibrate_batchnorm
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.trace import trace
from tests.test_samples import IMAGES, NAMES, SAMPLES

IMAGES_COUNTED = 6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("target", "reader"), [("onnx", "onnxruntime"), ("nir", "snntorch"), ("nir", "norse")]
)
def test_an_artefacts_count_is_its_models(name: str, target: str, reader: str, tmp_path: Path) -> None:
    source = workflow.open_source(SAMPLES / f"{name}.pt")
    images, _ = load_data(IMAGES, source.graph, IMAGES_COUNTED)
    deployed = workflow.lower(source.graph, target)
    path = tmp_path / f"sample{workflow.suffix_of(target)}"
    workflow.export(source, deployed, path)
    executor = running.spiking_executor(path, [reader])
    exported = count_executor(deployed.graph, executor, images, batch=4)
    model = count_executor(deployed.graph, source.reference, images, source=source.graph)
    assert exported == model
    assert exported.network["synops.binary"].total > 10**6 and exported.network["attention.unary"].total > 0


def small_spikformer(method: str, sparsity: float) -> tuple[Graph, np.ndarray]:
    """A pruned Spikformer's graph, whose pruned rows keep bias and BatchNorm, and a batch."""
    torch.manual_seed(4)
    config = SpikformerConfig(
        depth=2, embed_dim=32, mlp_dim=48, num_heads=4, steps=3, stem=((16, True), (32, True)),
        image_size=(16, 16), tau=1.7, v_reset=-0.05, attn_threshold=0.3,
    )  # fmt: skip
    model, x = Spikformer(config).eval(), torch.randn(4, 3, 16, 16)
    masks, _ = prune(model, method, sparsity)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            torch.nn.init.normal_(module.bias, std=0.3)
    calibrate_batchnorm(model, x, rate=0.2)
    apply_masks(model, masks)
    return trace(model, (3, 16, 16)).graph, x.numpy()


def counted(graph: Graph, x: np.ndarray) -> Ledger:
    return count(graph, x, interpret(graph, x, dtype=np.float32).spikes)


@pytest.mark.parametrize("target", ["onnx", "nir"])
def test_a_shrunk_model_has_the_operations_of_the_same_weights_padded_with_zeros(target: str) -> None:
    """DSP: zero rows and columns are no synapses, so taking them out changes no SynOp of any Linear or Conv.

    What it does take out is the attention of channels that fire by their bias alone.
    """
    graph, x = small_spikformer("dsp", 0.5)
    smaller = run_pipeline(graph, PIPELINES[target]).graph
    spikes = interpret(graph, x).spikes
    padded, shrunk = count(graph, x, spikes), count(smaller, x, spikes_of(smaller, graph, spikes))
    removed = 0
    for layer in shrunk.of("synapse"):
        before = padded.layer(layer.name)
        assert layer.total["synops"] == before.total["synops"], layer.name
        assert layer.steps["synops"] == before.steps["synops"]
        assert layer.constants["connections"] == before.constants["connections"]
        removed += before.constants["dense"] - layer.constants["dense"]
    assert removed > 0 and len(shrunk.of("synapse")) == len(padded.of("synapse"))
    (before, *_), (after, *_) = padded.of("order"), shrunk.of("order")
    for order in ("qk", "kv"):
        assert after.total[f"{order}.coincidence"].total <= before.total[f"{order}.coincidence"].total
        assert after.constants[f"{order}.dense"] < before.constants[f"{order}.dense"]


def test_pruned_weights_move_the_exact_count_and_no_published_formula() -> None:
    """L1P at 80 to 99 %: the same spikes into the same layers, fewer synapses."""
    graph, x = small_spikformer("l1p", 0.8)
    pruned = counted(graph, x)
    dense = []
    for sparsity in (0.9, 0.99):
        sparser, _ = small_spikformer("l1p", sparsity)
        dense.append(counted(sparser, x))
    blocks = [layer.name for layer in pruned.of("synapse") if layer.name.startswith("block")]
    for ledger, density in ((pruned, 0.2), (dense[0], 0.1), (dense[1], 0.01)):
        exact = sum(ledger.layer(n).total["synops"].total for n in blocks)
        blind = sum(ledger.layer(n).total["blind"].total for n in blocks)
        assert exact / blind == pytest.approx(density, rel=0.35)
        assert (
            view(ledger, "neurobench").total["Effective_ACs"] <= view(ledger, "spikingjelly").total["SynOp"]
        )
    assert all(layer.constants["nonzero_weights"] > 0 for layer in dense[1].of("synapse"))


def test_the_executed_order_does_not_change_the_synapses() -> None:
    graph, x = small_spikformer("l1p", 0.8)
    spikes = interpret(graph, x).spikes
    before = count(graph, x, spikes)
    other = run_pipeline(graph, PIPELINES["onnx"]).graph
    after = count(other, x, spikes_of(other, graph, spikes))
    assert {o.kind for o in before.of("order")} | {o.kind for o in after.of("order")} == {"qk", "kv"}
    for a, b in zip(before.of("order"), after.of("order"), strict=True):
        assert replace(a, kind=b.kind, parts=b.parts, name=b.name, source=b.source) == b
