"""L1P, DSP with DVA, neuron replacement, fine-tuning and the compressed checkpoint."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stdeploy.checkpoint import load_checkpoint, save_checkpoint
from stdeploy.compress import (
    apply_masks,
    compress_checkpoint,
    dva,
    keeper,
    l1p_mask,
    parameter_groups,
    prune,
    prune_dsp,
    prune_l1p,
    remove_dimensions,
    replace_lif,
)
from stdeploy.compress.masks import share
from stdeploy.errors import UserError
from stdeploy.models import SLIF, Spikformer, calibrate_batchnorm
from tests.test_models import SMALL

SIZED = replace(SMALL, embed_dim=30, num_heads=3, stem=((6, True), (30, False)))


def spikformer() -> Spikformer:
    torch.manual_seed(0)
    return Spikformer(SIZED).eval()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 0.999), st.integers(0, 9))
def test_l1p_keeps_what_reaches_the_threshold(m: int, n: int, p: float, seed: int) -> None:
    weight = torch.randn(m, n, generator=torch.Generator().manual_seed(seed))
    mask = l1p_mask(weight, p)
    k = math.ceil(round(p * m * n, 9))
    assert int(mask.sum()) == (m * n - k + 1 if k else m * n)
    assert weight[mask].abs().min() >= (weight[~mask].abs().max() if (~mask).any() else 0)


def test_l1p_takes_patterns_and_refuses_those_that_match_nothing() -> None:
    masks, record = prune_l1p(spikformer(), 0.5, ("block.1.mlp.*", "head"))
    assert sorted(masks) == ["block.1.mlp.fc1_linear.weight", "block.1.mlp.fc2_linear.weight", "head.weight"]
    assert record.layers["head.weight"] == int(masks["head.weight"].sum())
    with pytest.raises(UserError, match=r"matches 'blk\.\*'"):
        prune_l1p(spikformer(), 0.5, ("blk.*",))


@pytest.mark.parametrize("p", [-0.1, 1.0, 90])
def test_a_sparsity_outside_its_range_is_refused(p: float) -> None:
    with pytest.raises(UserError, match="fraction in"):
        prune_l1p(spikformer(), p)


def test_shares_do_not_depend_on_the_last_bit() -> None:
    assert share(0.1, 30, "up") == 3 and share(0.9, 10, "up") == 9
    assert share(0.8, 32, "up") == 26 and share(0.8, 32, "down") == 25


@pytest.mark.parametrize(("rounding", "per_head"), [("up", 2), ("down", 3)])
def test_dsp_keeps_the_most_valuable_dimensions_of_each_head(rounding, per_head) -> None:
    model = spikformer()
    masks, record = prune_dsp(model, 0.75, rounding=rounding)
    attention = model.block[0].attn
    score = sum(dva(getattr(attention, f"{name}_linear").weight) for name in "qkv") / 3
    kept = record.layers["block.0"]["attention"]
    for head in range(3):
        best = score[10 * head : 10 * head + 10].topk(per_head).indices + 10 * head
        assert sorted(best.tolist()) == [k for k in kept if 10 * head <= k < 10 * head + 10]
    assert len(record.layers["block.1"]["mlp"]) == 5
    apply_masks(model, masks)
    rows = attention.k_linear.weight.abs().sum(1) != 0
    assert rows.nonzero().flatten().tolist() == kept
    assert (attention.proj_linear.weight.abs().sum(0) != 0).nonzero().flatten().tolist() == kept
    assert (attention.k_bn.weight != 0).all()  # bias and BatchNorm stay, as the papers count them


def test_dsp_over_all_heads_leaves_them_ragged_but_never_empty() -> None:
    model = spikformer()
    with torch.no_grad():
        for name in "qkv":
            model.block[0].attn.get_submodule(f"{name}_linear").weight[:10] *= 1e-3
    _, record = prune_dsp(model, 0.5, scope="all")
    small = remove_dimensions(model, record)
    sizes = small.config.blocks[0].qk
    assert min(sizes) == 1 and len(set(sizes)) > 1 and sum(sizes) in (15, 16)
    assert small(torch.randn(2, 2, 9, 7)).shape == (2, 10)


def test_a_removed_model_is_the_masked_one_where_masked_channels_are_silent() -> None:
    model = spikformer()
    masks, record = prune_dsp(model, 0.6)
    apply_masks(model, masks)
    x = torch.randn(3, 2, 9, 7)
    calibrate_batchnorm(model, x, rate=0.3)
    with torch.no_grad():
        for name, mask in masks.items():
            if name.endswith(("q_linear.weight", "k_linear.weight", "v_linear.weight", "fc1_linear.weight")):
                bn = model.get_submodule(name.replace("_linear.weight", "_bn"))
                gone = ~mask[:, 0]
                bn.bias[gone], bn.running_mean[gone], bn.running_var[gone] = -1.0, 0.0, 1.0
                model.get_submodule(name.removesuffix(".weight")).bias[gone] = 0.0
        smaller = remove_dimensions(model, record).double()
        full = model.double()(x.double())
        assert full.std() > 0
        torch.testing.assert_close(smaller(x.double()), full)


def test_dsp_refuses_a_model_that_is_pruned_unevenly() -> None:
    model = spikformer()
    _, record = prune_dsp(model, 0.5)
    smaller = remove_dimensions(model, record)
    smaller.block[0].attn.v_heads = (4, 4, 7)
    with pytest.raises(UserError, match="pruned already"):
        prune_dsp(smaller, 0.5)


def test_a_model_of_other_code_is_pruned_and_told_where_it_cannot_be_saved(tmp_path: Path) -> None:
    class Attention(nn.Module):
        num_heads: int | None = None

        def __init__(self) -> None:
            super().__init__()
            self.q_linear, self.k_linear, self.v_linear, self.proj_linear = (
                nn.Linear(12, 12) for _ in "qkvp"
            )

    class MLP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1_linear, self.fc2_linear = nn.Linear(12, 20), nn.Linear(20, 12)

    model = nn.Sequential(nn.ModuleDict({"attn": Attention(), "mlp": MLP()}))
    with pytest.raises(UserError, match="number of heads") as refused:
        prune(model, "dsp", 0.5)
    assert "num_heads, an integer that divides its 12 channels" in str(refused.value.hint)
    Attention.num_heads = 3
    masks, record = prune(model, "dsp", 0.5)
    apply_masks(model, masks)
    assert (model[0]["attn"].q_linear.weight == 0).all(1).sum() == 6
    with pytest.raises(UserError, match="a Sequential is not stdeploy's Spikformer") as refused:
        save_checkpoint(tmp_path / "x.pt", model, record.to_dict())  # type: ignore[arg-type]
    assert "--model" in str(refused.value.hint) and not list(tmp_path.iterdir())


def test_replacing_neurons_carries_their_parameters_over() -> None:
    model = spikformer()
    x = torch.randn(3, 2, 9, 7)
    calibrate_batchnorm(model, x)
    before = model(x)
    assert replace_lif(model) == 14
    attention = model.block[0].attn.attn_lif
    assert isinstance(attention, SLIF) and model.config.neuron == "slif"
    assert attention.v_threshold.item() == 0.5 and attention.v_reset == -0.1
    assert attention.tau.item() == pytest.approx(1.7)
    assert type(model.patch_embed.lif0).__name__ == "LIF"
    assert torch.equal(model(x), before)
    with pytest.raises(UserError, match="no LIF neuron below block"):
        replace_lif(model)


def test_synergistic_learning_moves_weights_and_neurons_and_keeps_the_mask() -> None:
    model = spikformer()
    x, y = torch.randn(8, 2, 9, 7), torch.arange(8)
    calibrate_batchnorm(model, x, rate=0.3)
    replace_lif(model)
    masks, _ = prune_l1p(model, 0.8)
    keep = keeper(model.train(), masks)
    tau = model.block[0].attn.proj_lif.tau.item()
    optimiser = torch.optim.AdamW(parameter_groups(model, 1e-2, 1e-1))
    for _ in range(4):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
        keep()
    assert model.block[0].attn.proj_lif.tau.item() != tau
    for name, mask in masks.items():
        weight = dict(model.named_parameters())[name]
        assert not weight[~mask].any() and weight[mask].any()


@pytest.mark.parametrize("method", ["l1p", "dsp"])
def test_a_compressed_checkpoint_says_what_it_is(method: str, tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "model.pt", spikformer())
    done = compress_checkpoint(source, method, 0.8, tmp_path / "pruned.pt")
    loaded = load_checkpoint(done.path)
    assert loaded.compression["method"] == method and loaded.compression["sparsity"] == 0.8
    assert loaded.compression["source_sha256"] == load_checkpoint(source).sha256
    assert done.neurons_replaced == 14 and done.after.blocks < 0.3 * done.before.blocks
    weight = loaded.module.get_submodule("block.0.mlp.fc1_linear").weight
    assert (weight == 0).float().mean() > 0.75


def test_mode_remove_writes_the_smaller_architecture_for_dsp_only(tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "model.pt", spikformer())
    small = compress_checkpoint(source, "dsp", 0.5, tmp_path / "small.pt", mode="remove", neuron="keep")
    module = load_checkpoint(small.path).module
    assert module.block[0].attn.q_linear.weight.shape == (15, 30)
    with pytest.raises(UserError, match="only DSP"):
        compress_checkpoint(source, "l1p", 0.5, tmp_path / "no.pt", mode="remove")
    with pytest.raises(UserError, match="unknown method"):
        compress_checkpoint(source, "magic", 0.5, tmp_path / "no.pt")
    assert not (tmp_path / "no.pt").exists()
