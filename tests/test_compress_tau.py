"""Models whose tau are brought to a few levels: checkpoints, any module, graph files, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stdeploy import workflow
from stdeploy.checkpoint import load_checkpoint, save_checkpoint
from stdeploy.cli.app import run
from stdeploy.compress import compress_checkpoint, quantise_tau, replace_lif
from stdeploy.errors import UserError
from stdeploy.exporters.nir import export
from stdeploy.graph import ops
from stdeploy.graph.file import load_graph, save_graph
from stdeploy.models import LIF, SLIF, Spikformer, calibrate_batchnorm
from stdeploy.quantise import Inputs
from stdeploy.runtime.nir_file import NirFile
from stdeploy.runtime.nir_readers import READERS, NirReader
from tests.graphs import every_layer_fires, spikformer_graph
from tests.test_models import SMALL as TWO_BLOCKS
from tests.test_quantise_tau import scattered

SMALL = replace(TWO_BLOCKS, depth=1)
IMAGES = np.random.default_rng(0).normal(size=(9, SMALL.in_channels, *SMALL.image_size)).astype(np.float32)


def per_channel_model(seed: int = 0) -> Spikformer:
    """A calibrated Spikformer whose block neurons have a tau and threshold of their own in each channel."""
    torch.manual_seed(seed)
    model = Spikformer(SMALL)
    images = torch.randn(12, SMALL.in_channels, *SMALL.image_size)
    calibrate_batchnorm(model, images)
    replace_lif(model, per_channel=True)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SLIF):
                module.tau.mul_(torch.exp(0.3 * torch.randn(module.tau.shape))).clamp_(min=1.02)
                module.v_threshold.mul_(torch.exp(0.05 * torch.randn(module.tau.shape)))
    return model.eval()


def test_sLIF_per_channel_starts_as_the_LIF_was() -> None:
    torch.manual_seed(1)
    model = Spikformer(SMALL)
    images = torch.randn(12, SMALL.in_channels, *SMALL.image_size)
    calibrate_batchnorm(model, images)
    with torch.no_grad():
        before = model.eval()(images)
        layers = sum(isinstance(m, LIF) for m in model.block.modules())
        assert replace_lif(model, per_channel=True) == layers
        torch.testing.assert_close(model(images), before, rtol=0, atol=0)
    assert (model.config.neuron, model.config.per_channel) == ("slif", True)
    shapes = {n: tuple(p.shape) for n, p in Spikformer(model.config).named_parameters()}
    assert shapes == {n: tuple(p.shape) for n, p in model.named_parameters()}
    with pytest.raises(UserError, match="sLIF already"):
        replace_lif(model, per_channel=True)


def test_sLIF_per_layer_becomes_per_channel_with_its_learned_values() -> None:
    model = Spikformer(replace(SMALL, neuron="slif"))
    with torch.no_grad():
        model.block[0].attn.q_lif.tau.fill_(3.25)
    replace_lif(model, per_channel=True)
    assert model.block[0].attn.q_lif.tau.tolist() == [3.25] * SMALL.embed_dim
    with pytest.raises(UserError, match="how many channels"):
        replace_lif(nn.Sequential(LIF()), "", per_channel=True)


class _Own(nn.Module):
    """Somebody's neuron with a tau per channel that broadcasts over `[T, B, C, N]`."""

    def __init__(self) -> None:
        super().__init__()
        self.tau = nn.Parameter(torch.linspace(1.2, 3.4, 7).reshape(1, 7, 1))
        self.v_threshold, self.v_reset, self.decay_input = 1.0, 0.0, True

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_any_module_with_a_tau_per_channel_is_quantised_in_place() -> None:
    net = nn.Sequential(_Own(), LIF(), _Own())
    record = quantise_tau(net, 2)
    assert list(record.layers) == ["0", "2"] and net[0].tau.shape == (1, 7, 1)
    assert net[0].tau.unique().numel() == 2 and record.layers["0"].levels == tuple(
        net[0].tau.unique().tolist()
    )


class _Computed(_Own):
    tau = property(lambda self: torch.linspace(1.2, 3.4, 7))

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.v_threshold = 1.0


def test_a_tau_that_is_computed_is_refused_before_anything_changes() -> None:
    net = nn.Sequential(_Own(), _Computed())
    with pytest.raises(UserError, match="tau is computed, not stored, in 1"):
        quantise_tau(net, 2)
    assert net[0].tau.unique().numel() == 7


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_checkpoint("tuned.pt", per_channel_model(), {"method": "dsp", "sparsity": 0.5})
    np.savez("data.npz", images=IMAGES, labels=np.arange(9) % SMALL.num_classes)
    return tmp_path


def test_every_reader_spikes_as_torch_with_quantised_neurons(folder: Path) -> None:
    done = compress_checkpoint(
        "tuned.pt", None, None, "q.pt", tau_levels=3, data=lambda g: Inputs(IMAGES, None, True)
    )
    assert done.tau is not None and len(done.tau.changed) == 7
    source = workflow.open_source(Path("q.pt"))
    assert every_layer_fires(source.graph, IMAGES)
    lowered = workflow.lower(source.graph, "nir").graph
    export(lowered, "q.nir")
    candidates = [NirReader(Path("q.nir"), reader) for reader in READERS]
    for report in workflow.check_all(source, lowered, candidates, IMAGES):
        assert report.reference.startswith("torch") and report.ok, (report.candidate, report.problems)
        assert report.spike_mismatches <= 2 and report.spikes_compared > 10_000


def test_the_command_measures_and_records_in_the_checkpoint_and_the_artefact(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["compress", "tuned.pt", "--tau-levels", "3", "--data", "data.npz", "-o", "q.pt", "--json=q.json"]
    assert run(line) == 0
    said = json.loads(Path("q.json").read_text())
    text = " ".join(capsys.readouterr().out.split())
    assert "weighted by the data" in text and "% before" in text and "block.0.attn.q_lif" in text
    assert said["effect"]["samples"] == 9 and said["tau_levels"]["levels"] == 3
    assert any(layer["changed"] for layer in said["effect"]["layers"].values())
    loaded = load_checkpoint("q.pt")
    assert loaded.compression is not None and loaded.compression["method"] == "dsp"
    for name, layer in said["tau_levels"]["layers"].items():
        tau = loaded.module.get_submodule(name).tau
        assert sorted(set(tau.tolist())) == layer["levels"] and len(layer["levels"]) <= 3
    assert run(["export", "q.pt", "--target", "nir", "-o", "q.nir", "--reader", "stdeploy", "-q"]) == 0
    assert run(["inspect", "q.pt"]) == 0
    assert "method=dsp sparsity=0.5  tau of at most 3 levels a layer" in capsys.readouterr().out
    stated = NirFile("q.nir").metadata
    assert stated["compression"] == "dsp" and stated["tau_levels"]["layers"] == said["tau_levels"]["layers"]


def test_a_graph_file_is_quantised_without_its_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_graph(scattered(spikformer_graph(steps=2, image=(2, 8, 8))), "net.stg")
    assert run(["compress", "net.stg", "--tau-levels", "2", "-o", "q.stg"]) == 0
    assert "standard normal noise" in capsys.readouterr().err
    taus = [n.op.tau for n in load_graph("q.stg").neurons if isinstance(n.op, ops.Neuron)]
    assert all(tau is not None and np.unique(tau).size == 2 for tau in taus)
    assert run(["export", "q.stg", "--target", "onnx", "-q"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tuned.pt"], "nothing to do"),
        (["tuned.pt", "--neuron", "keep"], "nothing to do"),
        (["tuned.pt", "--method", "l1p"], "go together"),
        (["tuned.pt", "--tau-levels", "17"], "1<=x<=16"),
        (["tuned.pt", "--tau-levels", "0"], "1<=x<=16"),
        (["tuned.pt", "--neuron", "slif", "--data", "data.npz"], "go with --tau-levels"),
        (["tuned.pt", "--tau-levels", "2", "--mode", "remove"], "only DSP removes"),
        (["tuned.pt", "--tau-levels", "2", "--data", "none.npz"], "none.npz does not exist"),
        (["net.stg", "--tau-levels", "2", "--neuron", "slif"], "takes --tau-levels only"),
        (["net.stg", "--tau-levels", "2"], "does not end in .stg"),
        (["weights.pt", "--tau-levels", "2"], "not a stdeploy checkpoint"),
        (["tuned.pt", "--tau-levels", "2", "-o", "no/out.pt"], "its folder does not exist"),
        (["tuned.pt", "--tau-levels", "2", "-o", "."], "is a folder"),
    ],
)
def test_what_does_not_go_together_is_refused_and_nothing_is_written(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_graph(spikformer_graph(steps=1, image=(2, 8, 8)), "net.stg")
    torch.save({"a": torch.ones(2)}, "weights.pt")
    output = [] if "-o" in arguments else ["-o", "out.pt"]
    assert run(["compress", *arguments, *output]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("out.pt").exists()


def test_the_function_refuses_what_the_command_does(folder: Path) -> None:
    for how, message in (({}, "nothing to do"), ({"tau_levels": 3}, "measured step")):
        with pytest.raises(UserError, match=message):
            compress_checkpoint("tuned.pt", None, None, "out.pt", **how)
    with pytest.raises(UserError, match="go together"):
        compress_checkpoint("tuned.pt", "l1p", None, "out.pt")
