"""A DSP-masked Spikformer through trace and passes: every spike stays, where plain removal changes the network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stdeploy.compress import apply_masks, prune_dsp, remove_dimensions
from stdeploy.graph import ops
from stdeploy.models import Spikformer, SpikformerConfig
from stdeploy.models.calibration import calibrate_batchnorm
from stdeploy.passes.pipelines import PIPELINES, run_pipeline
from stdeploy.trace import trace
from tests.graphs import every_layer_fires
from tests.rows import same_spikes

MASKED = ("attn.q", "attn.k", "attn.v", "mlp.fc1")

EACH_STEP_ALIKE = ("nir", "lava")
"""Targets without a constant per step: channels that fire from their bias alone stay neurons."""


def masked_model(scope: Any) -> tuple[Spikformer, Spikformer, torch.Tensor]:
    """A Spikformer with half its dimensions masked, the same with those dimensions cut out, and a batch."""
    torch.manual_seed(4)
    config = SpikformerConfig(
        depth=2, embed_dim=32, mlp_dim=48, num_heads=4, steps=4, stem=((16, True), (32, True)),
        image_size=(16, 16), tau=1.7, v_reset=-0.05, attn_threshold=0.3,
    )  # fmt: skip
    model, x = Spikformer(config).eval(), torch.randn(8, 3, 16, 16)
    masks, record = prune_dsp(model, 0.5, scope=scope)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            torch.nn.init.normal_(module.bias, std=0.3)
    calibrate_batchnorm(model, x, rate=0.2)
    apply_masks(model, masks)
    with torch.no_grad():  # masked channels that fire: their BatchNorm's shift alone reaches the threshold
        for i in range(config.depth):
            for part in MASKED:
                layer = model.get_submodule(f"block.{i}.{part}_linear")
                norm = model.get_submodule(f"block.{i}.{part}_bn")
                dead = layer.weight.abs().sum(1) == 0
                norm.bias[dead] = norm.bias[dead] + torch.linspace(-0.5, 2.0, int(dead.sum()))
    return model, remove_dimensions(model, record).eval(), x


@pytest.mark.parametrize("scope", ["head", "all"])
def test_masked_dimensions_go_without_changing_a_spike(scope: str) -> None:
    model, smaller, x = masked_model(scope)
    with torch.no_grad():
        assert not torch.allclose(model(x), smaller(x), atol=1e-3)  # removal alone is another network
    graph = trace(model, (3, 16, 16)).graph
    inputs = x.numpy()
    every_layer_fires(graph, inputs)
    for target in PIPELINES:
        result = run_pipeline(graph, PIPELINES[target])
        same_spikes(graph, result.graph, inputs)
        assert not run_pipeline(result.graph, PIPELINES[target]).modified
        width = {n.name: n.value.shape[0] for n in result.graph.neurons}
        for i in range(2):
            dims = smaller.config.block(i)
            if target not in EACH_STEP_ALIKE:
                assert width[f"block.{i}.attn.q_lif"] == width[f"block.{i}.attn.k_lif"] == sum(dims.qk)
            assert width[f"block.{i}.attn.v_lif"] == sum(dims.v)
            assert width[f"block.{i}.mlp.fc1_lif"] == dims.mlp
        constants = [n.op.value for n in result.graph.of(ops.Constant) if isinstance(n.op, ops.Constant)]
        assert bool(constants) == (target not in EACH_STEP_ALIKE) and all(np.any(c) for c in constants)


def test_a_smaller_model_with_ragged_heads_keeps_every_spike() -> None:
    _, smaller, x = masked_model("all")
    assert len(set(smaller.config.block(0).qk)) > 1
    with torch.no_grad():
        calibrate_batchnorm(smaller, x, rate=0.2)
    graph = trace(smaller, (3, 16, 16)).graph
    every_layer_fires(graph, x.numpy())
    result = run_pipeline(graph, PIPELINES["onnx"]).graph
    same_spikes(graph, result, x.numpy())
    assert len(result.of(ops.MatMul)) == 4 and not result.of(ops.Concat)
