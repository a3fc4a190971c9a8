"""What the trace refuses, all at once, with the module path and the line of the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stdeploy.errors import UnsupportedError, UserError
from stdeploy.models import LIF, SLIF
from stdeploy.trace import trace
from tests.traced import Repeated, awkward


class Net(nn.Module):
    """A stem, `body` on `[T, B, C, H, W]`, and a head."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.head = Repeated(3, 6), body, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((-1, -2))).mean(0)


def refused(body: nn.Module) -> list[str]:
    with pytest.raises(UnsupportedError) as caught:
        trace(awkward(Net(body)), (2, 4, 5))
    return [str(item) for item in caught.value.items]


class Activations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.norm = nn.GELU(), nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(x)
        z = torch.softmax(x, -1)
        return self.norm(y * 2 + z) + torch.tanh(x)


def test_every_unknown_operator_is_listed_once() -> None:
    items = refused(Activations())
    assert len(items) == 3  # what reads a refused result is not judged: layer_norm is not listed
    assert items[0].startswith("body.act (") and "gelu" in items[0]
    assert "softmax" in items[1] and "test_trace_refusals.py:" in items[1]
    assert items[1].startswith("body (") and "tanh" in items[2]


class Body(nn.Module):
    """A body of one function."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function
        self.lif = LIF(1.7, 0.9, -0.1)
        self.mix = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)  # type: ignore[operator,no-any-return]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: m.lif(x.flatten(0, 1)).unflatten(0, (3, -1)), "leaks from sample to sample"),
        (lambda m, x: m.lif(x.transpose(0, 1)).transpose(0, 1), "first dimension is batch"),
        (lambda m, x: m.lif(x.transpose(0, 2)).transpose(0, 2), "first dimension is axis"),
        (lambda m, x: m.mix(x), "mixes the x axis, not the channels"),
        (lambda m, x: x.flatten(3).gather(3, x.flatten(3).topk(2).indices).mean(3)[..., None, None], "one score a token"),
        (lambda m, x: x.reshape(3, -1, 6, 5, 4), "cut across"),
        (lambda m, x: x - x.mean(1, keepdim=True), "over the batch"),
        (lambda m, x: x[:2].repeat(2, 1, 1, 1, 1)[:3], "part of the time dimension"),
        (lambda m, x: x[0].expand_as(x), "reads step 0 alone"),
        (lambda m, x: x[:, :, ::2].repeat(1, 1, 2, 1, 1), "slices with a stride"),
        (lambda m, x: torch.stack(list(x)), "takes the time steps apart"),
        (lambda m, x: x / (x + 1), "divides by a value of the network"),
        (lambda m, x: torch.nn.functional.pad(x, (1, 1)).mean(-1, keepdim=True), "follows a padding"),
        (lambda m, x: x.float().double(), "data type"),
        (lambda m, x: x.flatten(-2).unflatten(-1, (2, -1)).sum(-1, keepdim=True), "part of an axis"),
    ],
)  # fmt: skip
def test_reasons(function: object, reason: str) -> None:
    assert any(reason in item for item in refused(Body(function))), refused(Body(function))


def test_a_transposed_image_is_not_added_to_itself() -> None:
    with pytest.raises(UnsupportedError, match="do not correspond"):
        trace(awkward(Net(Body(lambda m, x: x + x.transpose(-1, -2)))), (2, 4, 4))


def test_a_neuron_over_time_and_batch_names_its_module() -> None:
    (item,) = refused(Body(lambda m, x: m.lif(x.flatten(0, 1)).unflatten(0, (3, -1))))
    assert item.startswith("body.lif (") and "reshape its input to [T, B, ...]" in item


def test_training_mode() -> None:
    net = awkward(Net(nn.Dropout(0.5)))
    net.get_submodule("body").train()
    with pytest.raises(UserError, match=r"training mode \(body\).*\n.*eval"):
        trace(net, (2, 4, 5))


def test_batch_statistics() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(6, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x.flatten(0, 1)).unflatten(0, (3, -1))

    net = Net(Normed()).eval()
    with pytest.raises(UnsupportedError, match=r"body\.bn .*statistics"):
        trace(net, (2, 4, 5))


def test_a_buffer_that_changes_from_call_to_call_is_refused() -> None:
    class Remembering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("last", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            y = x + self.last
            self.last += 0.25
            return y

    with pytest.raises(UnsupportedError, match=r"body\.last: a buffer: it is written in every call"):
        trace(awkward(Net(Remembering())), (2, 4, 5))


def test_user_errors() -> None:
    net = awkward(Net(nn.Identity()))
    with pytest.raises(UserError, match="runs 3 time steps, not 4"):
        trace(net, (2, 4, 5), steps=4)
    assert trace(net, (2, 4, 5), steps=3).graph.steps == 3
    with pytest.raises(UserError, match=r"shape 7x9x4x5"):
        trace(net, (9, 4, 5))
    with pytest.raises(UserError, match="unknown neuron setting taus"):
        trace(net, (2, 4, 5), neuron={"taus": 2.0})
    with pytest.raises(UserError, match="unknown layout"):
        trace(net, (2, 4, 5), layout="BTC")
    with pytest.raises(UserError, match="does not fit layout BT"):
        trace(net, (5,), layout="BT")
    with pytest.raises(UserError, match="no spiking neuron"):
        trace(nn.Linear(4, 2).eval(), (4,))
    traced = trace(net, (2, 4, 5))
    with pytest.raises(UserError, match="the model takes Bx2x4x5"):
        traced.run(np.zeros((2, 3, 4, 5)))
    with pytest.raises(UserError, match=r"stem\.nothing"):
        traced.run(np.zeros((2, 2, 4, 5)), {"stem.nothing": np.zeros(1)})
    with pytest.raises(UserError, match="have shape"):
        traced.run(np.zeros((2, 2, 4, 5)), {"stem.lif": np.zeros((3, 2, 6, 5, 4))})


class QIF(nn.Module):
    step_mode = "m"

    def __init__(self) -> None:
        super().__init__()
        self.v_threshold, self.v_reset, self.a0 = 1.0, 0.0, 0.5

    def forward(self, x: Tensor) -> Tensor:
        return (x * x * self.a0 >= self.v_threshold).to(x)


class MultiStepLIFNode(nn.Module):
    """The multi-step neuron of SpikingJelly 0.0.0.0.12 by its attributes: no step_mode, a membrane that stays."""

    strict = False

    def __init__(self, tau: float = 1.7, v_threshold: float = 0.9, v_reset: float | None = -0.1) -> None:
        super().__init__()
        self.tau, self.v_threshold, self.v_reset, self.decay_input = tau, v_threshold, v_reset, True
        self.v: Tensor | float = 0.0 if v_reset is None else v_reset

    def reset(self) -> None:
        self.v = 0.0 if self.v_reset is None else self.v_reset

    def forward(self, x_seq: Tensor) -> Tensor:
        spikes = []
        for x in x_seq:
            rest = 0.0 if self.v_reset is None else self.v_reset
            self.v = self.v + (x - (self.v - rest)) / self.tau
            fired = self.v > self.v_threshold if self.strict else self.v >= self.v_threshold
            s = fired.to(x.dtype)
            self.v = self.v - s * self.v_threshold if self.v_reset is None else (1 - s) * self.v + s * rest
            spikes.append(s)
        return torch.stack(spikes)


class StrictLIFNode(MultiStepLIFNode):
    """Fires above the threshold only: right attributes, other equations."""

    step_mode = "m"
    strict = True


class AdaptiveLIFNode(MultiStepLIFNode):
    """Its threshold rises with every spike."""

    def forward(self, x_seq: Tensor) -> Tensor:
        spikes, level = [], torch.zeros_like(x_seq[0])
        for x in x_seq:
            s = (x - level >= self.v_threshold).to(x.dtype)
            level = level + s
            spikes.append(s)
        return torch.stack(spikes)


class Undecayed(MultiStepLIFNode):
    """Says that it decays its input, and does not."""

    step_mode = "m"

    def forward(self, x_seq: Tensor) -> Tensor:
        return super().forward(x_seq * self.tau)


def neurons_refused(*neurons: nn.Module) -> list[str]:
    net = awkward(Net(nn.Sequential(*neurons)))
    with pytest.raises(UnsupportedError) as caught:
        trace(net, (2, 4, 5))
    return [str(item) for item in caught.value.items]


def test_neurons_are_refused_together() -> None:
    single = LIF(1.7, 0.9, 0.0)
    single.step_mode = "s"
    recording = LIF(1.7, 0.9, 0.0)
    recording.store_v_seq = True  # type: ignore[assignment]
    carried = MultiStepLIFNode()
    carried.v = torch.ones(3)
    items = neurons_refused(QIF(), single, recording, carried, LIF(1.7, 0.9, 0.0))
    expected = ["equations are not known", "single-step", "store_v_seq", "membrane from an earlier call"]
    assert len(items) == 4
    for i, (item, reason) in enumerate(zip(items, expected, strict=True)):
        assert item.startswith(f"body.{i}: ") and reason in item


@pytest.mark.parametrize("neuron", [StrictLIFNode, AdaptiveLIFNode, Undecayed])
def test_a_probe_tells_other_equations(neuron: type[MultiStepLIFNode]) -> None:
    (item,) = neurons_refused(neuron())
    assert item.startswith("body.0: ") and "its spikes are not those of its tau" in item


def test_the_probe_reaches_the_threshold_of_the_usual_settings() -> None:
    for settings in ((2.0, 1.0, 0.0), (2.0, 0.5, 0.0), (1.5, 1.0, None), (1.7, 0.9, -0.1)):
        (item,) = neurons_refused(StrictLIFNode(*settings))
        assert "its spikes are not those" in item


def test_a_membrane_that_goes_on_is_refused_and_a_stateless_neuron_is_not() -> None:
    def twice(m: Body, x: Tensor) -> Tensor:
        return m.lif(m.lif(x) + x)  # type: ignore[no-any-return]

    body = Body(twice)
    body.lif = MultiStepLIFNode()  # type: ignore[assignment]
    (item,) = refused(body)
    assert "called twice" in item and item.startswith("body.lif")
    traced = trace(awkward(Net(Body(twice))), (2, 4, 5))
    assert [n.name for n in traced.graph.neurons] == ["stem.lif", "body.lif", "body.lif.1"]


def test_per_channel_parameters_have_to_be_on_the_channels() -> None:
    neuron = SLIF(1.7, 0.9, -0.1, channels=5)
    (item,) = refused(nn.Sequential(neuron))
    assert item.startswith("body.0") and "do not belong to the channels" in item
    traced = trace(awkward(Net(SLIF(1.7, 0.9, -0.1, channels=6, channel_dim=2))), (2, 4, 5))
    assert traced.graph["body"].op.tau.shape == (6,)  # type: ignore[attr-defined]


def test_the_line_of_a_neuron_is_the_models() -> None:
    (item,) = refused(Body(lambda m, x: m.lif(x.flatten(0, 1)).unflatten(0, (3, -1))))
    assert "test_trace_refusals.py:" in item and "opaque.py" not in item


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_that_are_no_numbers(value: float) -> None:
    net = awkward(Net(nn.Identity()))
    with torch.no_grad():
        net.get_parameter("head.weight")[1, 2] = value
    with pytest.raises(UserError, match="head: weight is not finite"):
        trace(net, (2, 4, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=f"weight is {str(dtype)[6:]}") as caught:
        trace(awkward(Net(nn.Identity())).to(dtype), (2, 4, 5))
    assert caught.value.hint is not None and ".float()" in caught.value.hint


def test_a_tau_below_one() -> None:
    with pytest.raises(UserError, match="body: tau < 1"):
        trace(awkward(Net(SLIF(0.5, 0.9, 0.0))), (2, 4, 5))


def test_control_flow_on_values_names_its_line_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="cannot be traced") as caught:
        trace(awkward(Net(Body(lambda m, x: x if x.sum() > 3 else -x))), (2, 4, 5))
    assert caught.value.where is not None and "test_trace_refusals.py:" in caught.value.where
    assert capfd.readouterr() == ("", "")


def test_a_batchnorm_without_running_statistics_is_not_blamed_on_the_mode() -> None:
    body = Body(lambda m, x: m.norm(x.flatten(0, 1)).unflatten(0, (3, -1)))
    net = awkward(Net(body))
    body.norm = nn.BatchNorm2d(6, track_running_stats=False).double().eval()
    with pytest.raises(UnsupportedError, match="track_running_stats=False"):
        trace(net, (2, 4, 5))
