"""Neurons against plain autograd and SpikingJelly; Spikformer's shapes, options and calibration."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from stdeploy.errors import UserError
from stdeploy.models import LIF, SLIF, BlockDims, Spikformer, SpikformerConfig, calibrate_batchnorm
from stdeploy.models.calibration import firing_rates
from stdeploy.models.neurons import SURROGATE_WIDTH

SMALL = SpikformerConfig(
    depth=2,
    embed_dim=12,
    mlp_dim=20,
    num_heads=3,
    steps=3,
    stem=((6, True), (12, False)),
    in_channels=2,
    image_size=(9, 7),
    scale=0.5,
    tau=1.7,
    v_reset=-0.1,
)


class _Spike(torch.autograd.Function):
    """Heaviside forward, arctangent surrogate backward: the definition the fused neuron must match."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z >= 0).to(z)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return gradient * (SURROGATE_WIDTH / 2) / (1 + (torch.pi / 2 * SURROGATE_WIDTH * z) ** 2)


def unfused(x: Tensor, tau: Tensor, threshold: Tensor, rest: float | None, decay_input: bool) -> Tensor:
    r = rest or 0.0
    v, out = torch.full_like(x[0], r), []
    for xt in x:
        h = v + (xt - (v - r)) / tau if decay_input else v - (v - r) / tau + xt
        s = _Spike.apply(h - threshold)
        fired = s.detach()
        v = h - fired * threshold if rest is None else (1 - fired) * h + fired * r
        out.append(s)
    return torch.stack(out)


@pytest.mark.parametrize("rest", [0.0, -0.2, None])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("channels", [None, 4])
def test_the_fused_neuron_has_the_spikes_and_gradients_of_the_unfused_one(
    rest, decay_input, channels
) -> None:
    torch.manual_seed(0)
    neuron = SLIF(1.7, 0.9, rest, decay_input, channels=channels).double()
    if channels:
        neuron.tau.data += torch.rand(channels).double()
        neuron.v_threshold.data += 0.2 * torch.rand(channels).double()
    x = (0.8 + torch.randn(5, 3, 6, 4, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(5, 3, 6, 4, dtype=torch.float64)
    got = neuron(x)
    want = unfused(x, neuron.tau, neuron.v_threshold, rest, decay_input)
    assert torch.equal(got, want) and 0.05 < got.mean() < 0.9
    inputs = (x, neuron.tau, neuron.v_threshold)
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), inputs),
        torch.autograd.grad((want * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(importlib.util.find_spec("spikingjelly") is None, reason="spikingjelly is not installed")
@pytest.mark.parametrize("rest", [0.0, 0.1, None])
@pytest.mark.parametrize("decay_input", [True, False])
def test_the_spikes_are_spikingjellys(rest, decay_input) -> None:
    from spikingjelly.activation_based import neuron

    theirs = neuron.LIFNode(tau=2.5, decay_input=decay_input, v_threshold=0.8, v_reset=rest, step_mode="m")
    x = torch.randn(6, 2, 50, generator=torch.Generator().manual_seed(1)) + 0.6
    assert torch.equal(LIF(2.5, 0.8, rest, decay_input)(x), theirs(x))


def test_every_call_starts_from_rest() -> None:
    neuron, x = LIF(3.0), torch.full((2, 1, 1), 0.9)
    assert torch.equal(neuron(x), neuron(x))


def test_projection_keeps_the_learned_parameters_in_range() -> None:
    neuron = SLIF(channels=2)
    neuron.tau.data = torch.tensor([0.2, 3.0])
    neuron.v_threshold.data = torch.tensor([-1.0, 0.5])
    neuron.project_()
    assert neuron.tau[0] > 1 and neuron.tau[1] == 3
    assert neuron.v_threshold[0] > 0 and neuron.v_threshold[1] == 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"neuron": "slif"},
        {"neuron": "slif", "per_channel": True},
        {
            "qkv_bias": False,
            "proj_bias": False,
            "mlp_bias": False,
            "legacy_norms": True,
            "legacy_position": True,
        },
        {"blocks": (BlockDims((4, 1, 2), (2, 2, 1), 7), BlockDims((2, 2, 2), (1, 1, 1), 20))},
        {"input_kind": "event_frames", "steps": 5},
        {"steps": 1},
    ],
)
def test_every_layer_of_a_calibrated_spikformer_fires(changes) -> None:
    torch.manual_seed(0)
    config = SpikformerConfig.from_dict({**SMALL.to_dict(), **changes} | _plain_blocks(changes))
    model = Spikformer(config).eval()
    shape = (3, config.steps, 2, 9, 7) if config.input_kind == "event_frames" else (3, 2, 9, 7)
    x = torch.randn(shape)
    rates = calibrate_batchnorm(model, x, rate=0.3)
    assert all(0.02 < rate < 0.9 for rate in rates.values()), rates
    with torch.no_grad():
        out = model(x)
    assert out.shape == (3, 10) and out.std() > 0
    assert len(rates) == 3 + 7 * 2
    assert SpikformerConfig.from_dict(config.to_dict()) == config


def _plain_blocks(changes: dict) -> dict:
    return {"blocks": [{"qk": b.qk, "v": b.v, "mlp": b.mlp} for b in changes.get("blocks", ())]}


class _AllNormsFirst(nn.Module):
    """Three BatchNorms before the first of their neurons, a chain of two, and a sum that comes before its neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 6, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        self.lifs = nn.ModuleList(LIF() for _ in range(3))
        self.inner, self.inner_bn = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.outer, self.outer_bn, self.last = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), LIF(1.7, 0.9, 0.1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        drives = [bn(conv(x)) for conv, bn in zip(self.convs, self.norms, strict=True)]
        q, k, v = (lif(d.expand(4, *d.shape)) for lif, d in zip(self.lifs, drives, strict=True))
        y = (q + k + v).flatten(0, 1)
        y = self.outer_bn(self.outer(self.inner_bn(self.inner(y)))) + y
        return self.last(self.pool(y).unflatten(0, (4, -1)))


@pytest.mark.parametrize("rate", [0.03, 0.2])
def test_calibration_meets_the_rate_wherever_a_batchnorm_is_the_neurons_own(rate: float) -> None:
    torch.manual_seed(0)
    model = _AllNormsFirst()
    x = torch.randn(5, 4, 12, 12)
    rates = calibrate_batchnorm(model, x, rate)
    assert set(rates) == {"lifs.0", "lifs.1", "lifs.2", "last"}
    assert rates == firing_rates(model.eval(), x)
    assert all(abs(found - rate) < 2e-3 for found in rates.values()), rates
    assert model.inner_bn.bias.abs().max() < 1.5  # between two products: its statistics alone


def test_calibration_shifts_a_shared_batchnorm_for_the_first_neuron_only() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.bn = nn.Linear(8, 8), nn.BatchNorm1d(8)
            self.first, self.second = LIF(), LIF()

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(self.bn(self.linear(x)).expand(4, -1, -1))
            return self.second(self.bn(self.linear(y.flatten(0, 1))).unflatten(0, (4, -1)))

    torch.manual_seed(0)
    rates = calibrate_batchnorm(Shared(), torch.randn(200, 8), 0.2)
    assert abs(rates["first"] - 0.2) < 1e-2 and 0 < rates["second"] < 0.95


def test_a_batchnorm_that_is_never_called_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), LIF())
    model.unused = nn.BatchNorm1d(3)
    model.forward = lambda x: model[1](model[0](x))  # type: ignore[method-assign]
    with pytest.raises(UserError, match="never called"):
        calibrate_batchnorm(model, torch.randn(4, 3))


def test_an_image_repeated_over_time_is_the_same_as_its_frames() -> None:
    torch.manual_seed(0)
    model = Spikformer(SMALL).eval()
    x = torch.randn(3, 2, 9, 7)
    calibrate_batchnorm(model, x, rate=0.3)
    frames = Spikformer(SpikformerConfig.from_dict({**SMALL.to_dict(), "input_kind": "event_frames"})).eval()
    frames.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(x), frames(x[:, None].repeat(1, 3, 1, 1, 1)))


def test_a_fresh_spikformer_is_silent_and_calibration_says_when_it_cannot_help() -> None:
    torch.manual_seed(0)
    model = Spikformer(SMALL).eval()
    assert min(firing_rates(model, torch.randn(2, 2, 9, 7)).values()) == 0

    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.lif = nn.BatchNorm1d(3), LIF(v_threshold=1e9)

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(self.bn(x).unsqueeze(0))

    with pytest.raises(UserError, match=r"lif \(0\.000\)"):
        calibrate_batchnorm(Deaf(), torch.randn(4, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "does not divide into 5 heads"),
        ({"stem": ((6, True),)}, "must end with 12 channels"),
        ({"blocks": ({"qk": (1,), "v": (1,), "mlp": 3},)}, "1 blocks of kept dimensions for depth 2"),
        ({"flavour": "salt"}, "not a Spikformer configuration"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(changes, message) -> None:
    with pytest.raises(UserError, match=message):
        SpikformerConfig.from_dict({**SMALL.to_dict(), **changes})
