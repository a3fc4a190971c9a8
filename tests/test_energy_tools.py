"""Views against the tools themselves, run on the same nets and data, and the terms between formula and count."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter
from spikingjelly.activation_based.op_counter.mac import MACCounter
from torch import Tensor, nn

from stdeploy.energy.counting import count
from stdeploy.energy.ledger import Ledger
from stdeploy.energy.reconcile import reconcile
from stdeploy.energy.views import VIEWS, view
from stdeploy.errors import UserError
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.weight import Array
from stdeploy.models import LIF, Spikformer, SpikformerConfig, calibrate_batchnorm
from stdeploy.trace import trace
from tests.graphs import random_inputs, spikformer_graph

STEPS, BATCH = 3, 2


def pruned(layer: Any, share: float = 0.6, scale: float = 1.0) -> Any:
    """Random weights, most of them zero, and a bias that makes neurons fire."""
    with torch.no_grad():
        fan = layer.weight[0].numel()
        layer.weight.copy_(scale * 2.5 * torch.randn_like(layer.weight) / fan**0.5)
        layer.weight[torch.rand_like(layer.weight) < share] = 0
        if layer.bias is not None:
            layer.bias.copy_(0.5 + 0.5 * torch.randn_like(layer.bias))
    return layer


class Perceptron(nn.Module):
    """Binary frames through three Linears: `[B, T, 12]`."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (
            pruned(nn.Linear(a, b, bias)) for a, b in ((12, 20), (20, 17), (17, 5))
        )
        self.lif1, self.lif2 = LIF(1.7, 0.6, -0.1), LIF(1.7, 0.4, -0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif1(self.fc1(x.transpose(0, 1)))
        return self.fc3(self.lif2(self.fc2(x)))


class Convolutions(nn.Module):
    """An image repeated over the steps; strided, grouped and dilated convolutions, a sum of spikes, a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = pruned(nn.Conv2d(3, 6, 3, 2, 1))
        self.conv2 = pruned(nn.Conv2d(6, 6, 3, 1, 1, groups=2), scale=1.5)
        self.conv3 = pruned(nn.Conv2d(6, 4, (3, 2), (2, 1), (2, 0), (2, 1)), scale=1.5)
        self.fc = pruned(nn.Linear(4 * 3 * 5, 7))
        self.lif1, self.lif2, self.lif3 = (LIF(1.7, 0.5, -0.1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(STEPS, 1, 1, 1, 1)
        t, b = x.shape[:2]
        x = self.lif1(self.conv1(x.flatten(0, 1)).unflatten(0, (t, b)))
        x = x + self.lif2(self.conv2(x.flatten(0, 1)).unflatten(0, (t, b)))
        x = self.lif3(self.conv3(x.flatten(0, 1)).unflatten(0, (t, b)))
        return self.fc(x.flatten(2)).mean(0)


def counted(net: nn.Module, x: Array, **options: Any) -> Ledger:
    layout = options.get("layout", "B")
    traced = trace(net.eval(), x.shape[1:], **options)
    spikes = traced.run(x).spikes
    assert all(0.02 < s.mean() < 0.9 for s in spikes.values())
    return count(traced.graph, x, spikes, input_class="binary" if layout == "BT" else "real")


@pytest.fixture(scope="module")
def nets() -> dict[str, tuple[nn.Module, Array, Ledger]]:
    torch.manual_seed(1)
    rng = np.random.default_rng(0)
    frames = (rng.random((BATCH, STEPS, 12)) < 0.3).astype(np.float32)
    images = rng.standard_normal((BATCH, 3, 9, 11)).astype(np.float32)
    images[rng.random(images.shape) < 0.2] = 0
    perceptron, convolutions = Perceptron(), Convolutions()
    return {
        "perceptron": (perceptron, frames, counted(perceptron, frames, layout="BT")),
        "convolutions": (convolutions, images, counted(convolutions, images)),
    }


@pytest.mark.parametrize("name", ["perceptron", "convolutions"])
def test_neurobench_prints_our_numbers(name: str, nets: dict[str, tuple[nn.Module, Array, Ledger]]) -> None:
    from neurobench.metrics.workload import SynapticOperations
    from neurobench.models import TorchModel

    net, x, ledger = nets[name]
    model, metric, data = TorchModel(net), SynapticOperations(), torch.from_numpy(x)
    model.register_hooks()
    with torch.no_grad():
        preds = model(data)
    found = metric(model, preds, (data, torch.zeros(len(x))))
    model.cleanup_hooks()
    ours = view(ledger, "neurobench").total
    assert {k: Fraction(v).limit_denominator(BATCH) for k, v in found.items()} == ours
    assert ours["Effective_ACs"] > 0 and (ours["Effective_MACs"] > 0) == (name == "convolutions")
    assert ours["Dense"] > 3 * ours["Effective_ACs"]


def counter_totals(net: nn.Module, x: Tensor) -> tuple[int, int]:
    synop, mac = SynOpCounter(), MACCounter()
    with torch.no_grad(), DispatchCounterMode([synop, mac]):
        net(x)
    return synop.get_total(), mac.get_total()


@pytest.mark.parametrize("name", ["perceptron", "convolutions"])
def test_spikingjelly_prints_our_numbers(name: str, nets: dict[str, tuple[nn.Module, Array, Ledger]]) -> None:
    net, x, ledger = nets[name]
    synop, mac = counter_totals(net, torch.from_numpy(x))
    ours = view(ledger, "spikingjelly").total
    assert {"SynOp": Fraction(synop, BATCH), "MAC": Fraction(mac, BATCH)} == ours
    assert (
        ours["SynOp"] > 2 * view(ledger, "neurobench").total["Effective_ACs"]
    )  # it is blind to zero weights


def test_spikingjelly_counts_our_attention() -> None:
    torch.manual_seed(3)
    config = SpikformerConfig(
        2, 24, 36, 3, steps=STEPS, stem=((8, True), (24, True)), image_size=(16, 16), tau=1.7
    )
    net, x = Spikformer(config).eval(), torch.randn(BATCH, 3, 16, 16)
    calibrate_batchnorm(net, x, rate=0.25)
    ledger = counted(net, x.numpy())
    synop, _ = counter_totals(net, x)
    ours = view(ledger, "spikingjelly")
    attention = sum(ours.layers[layer.name]["SynOp"] for layer in ledger.of("attention"))
    assert ours.total["SynOp"] == Fraction(synop, BATCH) and attention > 0


@pytest.fixture
def syops(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """syops asks for class names that SpikingJelly dropped; its counts of Linear and Conv do not need them."""
    from spikingjelly.activation_based import neuron

    for name in ("MultiStepIFNode", "MultiStepLIFNode", "MultiStepParametricLIFNode"):
        monkeypatch.setattr(neuron, name, type(name, (nn.Module,), {}), raising=False)
    import syops

    yield syops
    for name in [n for n in sys.modules if n.split(".")[0] == "syops"]:
        del sys.modules[name]


def test_syops_prints_our_numbers_where_its_formula_is_exact(
    syops: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(2)
    net = Perceptron(bias=False)
    for lif in (net.lif1, net.lif2):
        lif.v_threshold = 0.2
    x = (np.random.default_rng(3).random((BATCH, STEPS, 12)) < 0.4).astype(np.float32)
    ledger = counted(net, x, layout="BT")
    data = [(torch.from_numpy(x), None)]
    found, _ = syops.get_model_complexity_info(
        net, x.shape[1:], data, print_per_layer_stat=False, as_strings=False
    )
    ours = view(ledger, "syops").total
    assert found[1] == pytest.approx(float(ours["ACs"]), rel=1e-6) and found[2] == ours["MACs"] == 0
    blind = sum(Fraction(s.total["blind"].total, BATCH) for s in ledger.of("synapse"))
    assert ours["ACs"] == blind  # a Linear has one fan-out: rate x dense is then exact


def test_sinabs_prints_our_numbers(nets: dict[str, tuple[nn.Module, Array, Ledger]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sinabs.hooks import conv_layer_synops_hook, linear_layer_synops_hook
    net, x, ledger = nets["convolutions"]
    modules = {"conv1": net.conv1, "conv2": net.conv2, "conv3": net.conv3}
    handles = [m.register_forward_hook(conv_layer_synops_hook) for m in modules.values()]
    with torch.no_grad():
        net(torch.from_numpy(x))
    ours = view(ledger, "sinabs").layers
    for name, module in modules.items():
        found = module.hook_data["layer_synops_per_timestep"].item()
        assert found == pytest.approx(float(ours[name]["SynOps_per_timestep"]), rel=1e-5, abs=1e-3), name
    for handle in handles:
        handle.remove()
    net, x, ledger = nets["perceptron"]
    handle = net.fc2.register_forward_hook(linear_layer_synops_hook)
    with torch.no_grad():
        net(torch.from_numpy(x))
    handle.remove()
    found = net.fc2.hook_data["layer_synops_per_timestep"]  # [T, B, C]: its mean is over the first axis, T
    found = float(found) / BATCH
    assert found == pytest.approx(
        float(view(ledger, "sinabs").layers["fc2"]["SynOps_per_timestep"]), rel=1e-6
    )


# --- the formulas that are no installable tool


def test_the_papers_formula_is_rate_times_dense(nets: dict[str, tuple[nn.Module, Array, Ledger]]) -> None:
    net, x, ledger = nets["convolutions"]
    shapes: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        m.register_forward_hook(lambda m, i, o, n=n: shapes.update({n: (i[0], o)}))
        for n, m in net.named_modules()
        if n.startswith(("conv", "fc"))
    ]
    with torch.no_grad():
        net(torch.from_numpy(x))
    for hook in hooks:
        hook.remove()
    papers, norse, keras = (view(ledger, name).layers for name in ("spikformer", "norse", "kerasspiking"))
    for name, (into, out) in shapes.items():
        weight = net.get_submodule(name).weight
        dense = out.numel() * weight[0].numel() / BATCH
        share = 1.0 if name == "conv1" else float((into != 0).double().mean())
        column = "MACs" if name == "conv1" else "SOPs"
        assert float(papers[name][column]) == pytest.approx(share * dense, rel=1e-9), name
        assert float(keras[name]["synaptic_updates"]) == pytest.approx(
            float(into.double().abs().mean()) * dense, rel=1e-6
        )
        groups = getattr(net.get_submodule(name), "groups", 1)
        kernel = weight[0, 0].numel() if weight.ndim == 4 else 1
        assert float(norse[name]["SynOps"]) == pytest.approx(
            float(into.double().abs().sum()) * kernel * weight.shape[0] / groups / BATCH, rel=1e-6
        )
    neurons = view(ledger, "kerasspiking").total["neuron_updates"]
    assert neurons == sum(STEPS * layer.constants["clocked"] for layer in ledger.of("neuron"))


@pytest.mark.parametrize("order", ["qk", "kv"])
def test_spikingformers_attention_is_its_scripts(order: Any) -> None:
    """T H N d^2 (min(r_K, r_V) + r_Q), whichever order is executed."""
    graph = spikformer_graph(5, heads=(3, 3), v_heads=(3, 3), order=order)
    x = random_inputs(graph)
    spikes = interpret(graph, x).spikes
    ledger = count(graph, x, spikes)
    q, k, v = (float(spikes[f"block.0.attn.{c}_lif"].mean()) for c in "qkv")
    tokens = graph["block.0.attn.q_lif"].value.shape[1:]
    expected = 5 * 2 * int(np.prod(tokens)) * 9 * (min(k, v) + q)
    ours = view(ledger, "spikingformer")
    assert float(
        ours.layers["block.0.attn.av.order" if order == "qk" else "block.0.attn.qkv.order"]["SOPs"]
    ) == (pytest.approx(expected, rel=1e-12))
    assert not {layer.name for layer in ledger.of("attention")} & set(ours.layers)


def test_an_unknown_view_is_refused(nets: dict[str, tuple[nn.Module, Array, Ledger]]) -> None:
    with pytest.raises(UserError, match="no view 'excel'") as refused:
        view(nets["perceptron"][2], "excel")
    assert all(name in (refused.value.hint or "") for name in VIEWS)
    assert all(rule.ignores and rule.source for rule in VIEWS.values())


# --- literature = exact + terms


def test_the_terms_between_formula_and_count_close_to_zero(
    nets: dict[str, tuple[nn.Module, Array, Ledger]],
) -> None:
    graph = spikformer_graph(5, masked=0.5, neurons="mixed")
    x = random_inputs(graph)
    ledgers = [count(graph, x, interpret(graph, x).spikes), *(ledger for _, _, ledger in nets.values())]
    for ledger in ledgers:
        rows = reconcile(ledger)
        papers = view(ledger, "spikformer")
        assert [row.layer for row in rows] == list(papers.layers)
        assert all(row.remainder == 0 for row in rows)
        assert sum(row.literature for row in rows) == sum(papers.total.values())
    by_layer = {row.layer: row for row in reconcile(ledgers[2])}
    assert all(by_layer["conv2"].terms[name] != 0 for name in ("padding", "zero weights", "covariance"))
    assert by_layer["conv1"].terms["repetition"] > 0 < by_layer["conv1"].terms["rate"]


def test_the_covariance_term_is_that_of_events_and_fan_out(
    nets: dict[str, tuple[nn.Module, Array, Ledger]],
) -> None:
    """Its own definition: minus the sum over inputs of (rate of the input - mean rate) x its fan-out."""
    net, x, ledger = nets["convolutions"]
    seen: list[Tensor] = []
    hook = net.conv2.register_forward_hook(lambda m, i, o: seen.append(i[0]))
    with torch.no_grad():
        net(torch.from_numpy(x))
    hook.remove()
    events = (seen[0] != 0).double().sum(0) / BATCH  # events of each input, per sample
    weight = (net.conv2.weight != 0).double()
    ones = torch.ones(1, *ledger_shape(net, x), dtype=torch.float64)
    fan_out = torch.nn.functional.conv_transpose2d(ones, weight, None, 1, 1, groups=2)[0]
    covariance = -((events - events.mean()) * fan_out).sum()
    (row,) = (row for row in reconcile(ledger) if row.layer == "conv2")
    assert float(row.terms["covariance"]) == pytest.approx(float(covariance), rel=1e-9)
    assert abs(row.terms["covariance"]) > 1


def ledger_shape(net: nn.Module, x: Array) -> tuple[int, ...]:
    """Shape of one output of conv2."""
    with torch.no_grad():
        return tuple(net.conv2(net.conv1(torch.from_numpy(x))).shape[1:])
