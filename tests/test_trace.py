"""Traces of small nets against the nets themselves, spike for spike in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stdeploy.graph.interpreter import interpret
from stdeploy.graph.ops import Conv, Linear, MatMul, Neuron, Output
from stdeploy.models import LIF, SLIF, BlockDims, Spikformer, SpikformerConfig, calibrate_batchnorm
from stdeploy.trace import trace
from tests.traced import Repeated, agree, awkward, kinds, random_batch


def spikformer(**changes: object) -> tuple[Spikformer, tuple[int, ...]]:
    settings: dict[str, object] = {
        "depth": 1, "embed_dim": 12, "mlp_dim": 14, "num_heads": 2, "steps": 3, "in_channels": 2,
        "stem": ((6, False), (12, True)), "image_size": (8, 6), "tau": 1.7, "v_threshold": 0.9,
        "attn_threshold": 0.05, "v_reset": -0.1, "num_classes": 5,
    }  # fmt: skip
    config = SpikformerConfig(**{**settings, **changes})  # type: ignore[arg-type]
    net = Spikformer(config).eval()
    frames = config.input_kind == "event_frames"
    shape = (*((config.steps,) if frames else ()), config.in_channels, *config.image_size)
    generator = torch.Generator().manual_seed(3)
    calibrate_batchnorm(net, torch.randn(6, *shape, generator=generator), rate=0.3)
    return net.double(), shape


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"steps": 1, "tau": 1.2},
        {"steps": 5, "input_kind": "event_frames"},
        {"neuron": "slif", "per_channel": True, "qkv_bias": False},
        {"v_reset": None, "legacy_norms": True, "legacy_position": True},
    ],
    ids=["image", "one step", "event frames", "slif per channel", "soft reset"],
)
def test_spikformer(changes: dict[str, object]) -> None:
    traced = agree(*spikformer(**changes))
    assert "block.0.attn.q_lif" in traced.graph.nodes
    assert traced.graph["patch_embed.conv0"].value.time == (
        "static" if "input_kind" not in changes else "step"
    )
    assert traced.graph.metadata["model"] == "Spikformer"
    assert traced.graph.metadata["dtype"] == "float64"


def test_ragged_heads_become_one_product() -> None:
    blocks = (BlockDims(qk=(3, 1), v=(2, 5), mlp=7),)
    traced = agree(*spikformer(blocks=blocks))
    products = [n.op for n in traced.graph.of(MatMul)]
    assert [(p.over, p.heads_a, p.heads_b) for p in products if isinstance(p, MatMul)] == [
        ("channels", (3, 1), (3, 1)),
        ("keys", (), (2, 5)),
    ]
    assert not {"Slice", "Concat"} & set(kinds(traced))


def test_float32_keeps_its_type() -> None:
    net, shape = spikformer()
    traced = trace(net.float(), shape)
    x = random_batch(traced).astype(np.float32)
    module, graph = traced.run(x), interpret(traced.graph, x, dtype=np.float32)
    assert module.outputs["output"].dtype == np.float32
    np.testing.assert_allclose(module.outputs["output"], graph.outputs["output"], rtol=1e-4, atol=1e-5)
    differing = sum(int((module.spikes[n] != graph.spikes[n]).sum()) for n in module.spikes)
    assert differing <= 2  # rounding at the threshold


class Vision(nn.Module):
    """Strided, grouped and padded convolutions, both poolings, and a flattened head."""

    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        self.stem = Repeated(4, 6)
        self.grouped = nn.Conv2d(6, 9, (3, 2), stride=(2, 1), padding="valid", groups=3)
        self.padded = nn.Conv2d(9, 8, 3, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.lif = LIF(2.6, 0.8, 0.15, decay_input=False)
        self.head = nn.Linear(8 * 3 * 3, 5)
        self.channels_last = channels_last

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.stem(x).flatten(0, 1), 3, 2, 1, ceil_mode=True)
        x = self.padded(nn.functional.pad(self.grouped(x), (1, 1, 2, 2)))
        x = self.lif(self.bn(x).unflatten(0, (4, -1)))
        x = nn.functional.avg_pool2d(x.flatten(0, 1), 2, 2).unflatten(0, (4, -1))
        x = x.permute(0, 1, 3, 4, 2) if self.channels_last else x
        return self.head(x.flatten(2)).mean(0)


@pytest.mark.parametrize("channels_last", [False, True])
def test_convolutions_pooling_and_flatten(channels_last: bool) -> None:
    net = awkward(Vision(channels_last))
    traced = agree(net, (2, 20, 15))
    grouped = traced.graph["grouped"].op
    assert isinstance(grouped, Conv) and grouped.groups == 3
    padded = traced.graph["padded"].op
    assert isinstance(padded, Conv) and padded.padding == (2, 1)
    head = traced.graph["head"].op
    weight = net.get_submodule("head").weight.detach().numpy()
    assert isinstance(head, Linear) and np.array_equal(head.weight.array(), weight) != channels_last


class Features(nn.Module):
    """Feature vectors, per-channel sLIF, one stateless neuron called twice, and a choice of readout."""

    def __init__(self, readout: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(11, 9), nn.Linear(9, 9)
        self.lif = SLIF(1.7, 0.9, -0.1, channels=9)
        self.head = nn.Linear(9, 3)
        self.readout = readout
        with torch.no_grad():
            self.lif.tau.copy_(torch.linspace(1.2, 3.0, 9))
            self.lif.v_threshold.copy_(torch.linspace(0.4, 1.1, 9))

    def forward(self, x: Tensor) -> object:
        x = torch.stack([x] * 5)
        x = self.lif(self.fc1(x))
        x = self.lif(self.fc2(x))
        return self.readout(self.head(x))


READOUTS: dict[str, tuple[Callable[[Tensor], object], list[str]]] = {
    "mean": (lambda y: y.mean(0), ["B"]),
    "last": (lambda y: y[-1], ["B"]),
    "per step": (lambda y: y, ["TB"]),
    "batch first": (lambda y: y.transpose(0, 1), ["BT"]),
    "several": (lambda y: (y.sum(0), None, y), ["B", "TB"]),
}


@pytest.mark.parametrize("readout", READOUTS)
def test_readouts_and_outputs(readout: str) -> None:
    function, layouts = READOUTS[readout]
    traced = agree(awkward(Features(function)), (11,))
    outputs = [n.op for n in traced.graph.outputs]
    assert [o.layout for o in outputs if isinstance(o, Output)] == layouts
    assert [o.label for o in outputs if isinstance(o, Output)] == ["output", "output.1"][: len(outputs)]
    assert [n.name for n in traced.graph.neurons] == ["lif", "lif.1"]


class Frames(nn.Module):
    """Event frames in the layout that the model asks for; two paths joined by channel."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.conv = nn.Conv2d(2, 5, 3, stride=2)
        self.side = nn.Conv2d(2, 3, 1)
        self.lif, self.side_lif = LIF(1.7, 0.5, -0.1), LIF(2.2, 0.5, None)
        self.mix = nn.Conv2d(8, 4, 1)
        self.out_lif = LIF(1.3, 0.6, 0.0)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(1, 0, 2, 3, 4) if self.batch_first else x
        t, b = x.shape[:2]
        flat = x.reshape(t * b, *x.shape[2:])
        left = self.lif(self.conv(flat).reshape(t, b, 5, 4, 3)).flatten(0, 1)
        right = self.side_lif(self.side(flat).reshape(t, b, 3, 9, 7)).flatten(0, 1)
        right = nn.functional.max_pool2d(right, 3, 2)
        y = self.out_lif(self.mix(torch.cat([left, right], 1)).unflatten(0, (t, b)))
        first, second = y.flatten(0, 1).chunk(2, dim=1)
        y = self.pool(torch.hstack((second, first))).flatten(1).unflatten(0, (t, b))
        return self.head(y.mean(0))


def test_frames_batch_first() -> None:
    traced = agree(awkward(Frames(True)), (5, 2, 9, 7))
    assert traced.graph.inputs[0].op.layout == "BT"  # type: ignore[attr-defined]


def test_frames_time_first_and_one_step() -> None:
    agree(awkward(Frames(False)), (5, 2, 9, 7), layout="TB")
    agree(awkward(Frames(True)), (1, 2, 9, 7), batch=4)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Repeated(3, 6)
        self.lif = LIF(1.7, 0.9, 0.0)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x * 0.75
        y += x
        y = self.lif(y)
        return self.head(y.mean((-1, -2))).mean(0)


def test_in_place_addition() -> None:
    agree(awkward(InPlace()), (2, 5, 4))


class Counting(InPlace):
    """Counts its calls in a buffer, which is no part of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def test_buffers_are_not_written_by_a_trace() -> None:
    net = awkward(Counting())
    traced = trace(net, (2, 5, 4))
    assert float(net.get_buffer("calls")) == 0
    assert len(traced.graph.outputs) == 1
    agree(net, (2, 5, 4))


def test_forced_spikes_reach_the_consumers() -> None:
    net, shape = spikformer()
    traced = trace(net, shape)
    x = random_batch(traced)
    rng = np.random.default_rng(5)
    names = ["patch_embed.lif1", "block.0.attn.k_lif"]
    forced = {
        n: rng.integers(0, 2, (traced.graph.steps, 3, *traced.graph[n].value.shape)).astype(np.uint8)
        for n in names
    }
    free, module, graph = traced.run(x), traced.run(x, forced), interpret(traced.graph, x, forced=forced)
    for name in graph.spikes:
        np.testing.assert_array_equal(module.spikes[name], graph.spikes[name], err_msg=name)
    np.testing.assert_array_equal(module.spikes["patch_embed.lif1"], free.spikes["patch_embed.lif1"])
    assert not np.array_equal(module.outputs["output"], free.outputs["output"])
    np.testing.assert_allclose(module.outputs["output"], graph.outputs["output"], atol=1e-10)


def test_the_module_is_left_as_it_was() -> None:
    net, shape = spikformer()
    x = torch.randn(2, *shape, dtype=torch.float64)
    before, text = net(x), repr(net)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    traced = trace(net, shape, neuron={"v_threshold": 0.6})
    traced.run(x.numpy())
    assert repr(net) == text and not any("forward" in m.__dict__ for m in net.modules())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(net(x), before)
    node = traced.graph.of(Linear)[0]
    with torch.no_grad():
        net.get_parameter("block.0.attn.q_linear.weight").zero_()
    assert isinstance(node.op, Linear) and node.op.weight.nnz > 0


@pytest.mark.parametrize("neuron", ["lif", "slif"])
def test_neuron_settings_reach_graph_and_module(neuron: str) -> None:
    net, shape = spikformer(neuron=neuron)
    settings = {"tau": 1.25, "v_threshold": 0.7, "decay_input": False, "v_reset": None}
    traced = trace(net, shape, neuron=settings)
    for node in traced.graph.neurons:
        op = node.op
        assert isinstance(op, Neuron) and op.tau is not None
        assert (float(op.tau), float(op.v_threshold), op.v_reset, op.decay_input) == (1.25, 0.7, None, False)
    x = random_batch(traced)
    module, graph = traced.run(x), interpret(traced.graph, x)
    for name in graph.spikes:
        np.testing.assert_array_equal(module.spikes[name], graph.spikes[name], err_msg=name)


class Voting(nn.Module):
    """A population of neurons for each class, whose rates are averaged over the channels."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stem, self.fc, self.lif = Repeated(4, 6), nn.Linear(6, 13), LIF(1.6, 0.8, 0.05)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif(self.fc(self.stem(x).mean((-1, -2))))  # [T, B, 13]
        votes = nn.functional.avg_pool1d(x.flatten(0, 1).unsqueeze(1), 3, self.stride).squeeze(1)
        return votes.unflatten(0, x.shape[:2])


@pytest.mark.parametrize("stride", [2, 3])
def test_an_average_over_channels_is_a_linear(stride: int) -> None:
    traced = agree(awkward(Voting(stride)), (2, 4, 3))
    assert kinds(traced)[-2:] == ["Linear", "Output"]


REPEATED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "cat": lambda x, t: torch.cat([x] * t).unflatten(0, (t, -1)),
    "repeat": lambda x, t: x.repeat(t, 1, 1, 1).view(t, -1, *x.shape[1:]),
    "interleaved": lambda x, t: x.repeat_interleave(t, 0).unflatten(0, (-1, t)).transpose(0, 1),
    "batch first": lambda x, t: x.unsqueeze(1).repeat(1, t, 1, 1, 1).transpose(0, 1),
    "stack": lambda x, t: torch.stack([x] * t),
}


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("way", REPEATED)
def test_ways_to_repeat_an_image(way: str, steps: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lif, self.head = nn.Conv2d(2, 6, 3), LIF(1.7, 0.9, -0.1), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(REPEATED[way](x, steps).flatten(0, 1)).unflatten(0, (steps, -1))
            out: Tensor = self.head(self.lif(y).mean((-1, -2))).mean(0)
            return out

    traced = agree(awkward(Net()), (2, 6, 5))
    assert traced.graph["conv"].value.time == "static"


def test_deep_models_hold_each_weight_once() -> None:
    """Nodes grow by the block, and the graph's weights are the model's: neither time nor memory grows faster."""

    def traced(depth: int) -> tuple[int, int, int]:
        config = SpikformerConfig(depth, 12, 18, 2, 3, stem=((6, True), (12, True)), image_size=(12, 8))
        net = Spikformer(config).eval()
        graph = trace(net, (3, 12, 8)).graph
        weights = {id(n.op.weight): n.op.weight for n in graph if isinstance(n.op, Linear | Conv)}
        held = sum(int(np.prod(w.shape)) for w in weights.values())
        own = sum(p.numel() for n, p in net.named_parameters() if p.ndim > 1)
        return len(graph), held, own

    (two, held_two, own_two), (five, held_five, own_five), (twelve, held, own) = map(traced, (2, 5, 12))
    assert (twelve - five) * 3 == (five - two) * 7 > 0
    assert (held_two, held_five, held) == (own_two, own_five, own)
