"""The shipped samples: pruned as the card says, exported, and equal to PyTorch in every reader."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stdeploy import running, workflow
from stdeploy.checkpoint import load_checkpoint
from stdeploy.data import load_data
from stdeploy.files import sha256

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
IMAGES = SAMPLES / "test_images.npz"
NAMES = ("pruned_dsp", "pruned_l1p")
COUNT = 24
"""Images a test runs; `make demo` runs all 256."""


@pytest.fixture(scope="module", params=NAMES)
def source(request: pytest.FixtureRequest) -> workflow.Source:
    return workflow.open_source(SAMPLES / f"{request.param}.pt")


def test_every_spike_of_a_sample_is_pytorchs(source: workflow.Source, tmp_path: Path) -> None:
    """In the ONNX runtimes; tests/conformance has the NIR readers."""
    images, labels = load_data(IMAGES, source.graph, COUNT)
    lowered = workflow.lower(source.graph, "onnx")
    path = tmp_path / "sample.onnx"
    artifact = workflow.export(source, lowered, path)
    assert artifact.size_bytes < 1_000_000
    readers = running.executors(path, _installed())
    for report in workflow.check_all(source, lowered.graph, readers, images, labels):
        assert report.ok, report.problems
        (logits,) = report.outputs
        assert logits.argmax_agree == COUNT
        assert logits.candidate_correct == logits.reference_correct
        assert report.spikes_compared > 3_000_000
        assert all(layer.firing_rate > 0.005 for layer in report.layers)
        assert {m.kind for m in report.mismatches} <= {"rounding", "after a flip"}


def _installed() -> tuple[str, ...]:
    return ("onnxruntime", "openvino") if importlib.util.find_spec("openvino") else ("onnxruntime",)


@pytest.mark.parametrize(("name", "method"), [("pruned_dsp", "dsp"), ("pruned_l1p", "l1p")])
def test_a_sample_is_pruned_and_compensated_as_it_says(name: str, method: str) -> None:
    loaded = load_checkpoint(SAMPLES / f"{name}.pt")
    assert loaded.compression is not None and loaded.compression["method"] == method
    attention = loaded.module.get_submodule("block.0.attn")
    q, gone = attention.q_linear.weight, (attention.q_linear.weight == 0).all(1)
    if method == "dsp":
        assert int((~gone).sum()) == 12
        assert not attention.proj_linear.weight[:, gone].any()
        assert (attention.q_bn.bias[gone] != 0).any()  # a masked row still has its BatchNorm shift
    else:
        assert 0.88 < float((q == 0).float().mean()) < 0.91
    tau, threshold = attention.q_lif.tau, attention.q_lif.v_threshold
    assert type(attention.q_lif).__name__ == "SLIF" and tau > 1 and threshold > 0
    assert tau.item() != 2.0 and threshold.item() != 1.0  # learned, not the initial values


def test_the_default_sample_is_the_dsp_one_and_all_are_small() -> None:
    assert sha256(SAMPLES / "pruned.pt") == sha256(SAMPLES / "pruned_dsp.pt")
    assert all(path.stat().st_size < 2_000_000 for path in SAMPLES.iterdir() if path.is_file())


def test_the_card_states_the_accuracies_of_the_log() -> None:
    card, log = (SAMPLES / "MODEL_CARD.md").read_text(), (SAMPLES / "train.log").read_text()
    stated = [float(line.rsplit(" ", 1)[1]) for line in log.splitlines() if "test accuracy" in line]
    assert len(stated) == 1 + 2 * (1 + 4)
    for accuracy in stated:
        assert f"{accuracy:.2%}" in card


def test_the_images_are_what_the_model_takes() -> None:
    with np.load(IMAGES) as data:
        assert data["images"].shape == (256, 1, 28, 28) and data["images"].dtype == np.float32
        assert data["labels"].shape == (256,) and set(data["labels"]) == set(range(10))
        images, labels = torch.from_numpy(data["images"]), torch.from_numpy(data["labels"])
    with torch.no_grad():
        predicted = load_checkpoint(SAMPLES / "pruned.pt").module(images).argmax(1)
    assert float((predicted == labels).float().mean()) > 0.8


def test_compressing_the_baseline_again_prunes_what_the_sample_kept(tmp_path: Path) -> None:
    from stdeploy.compress import compress_checkpoint

    done = compress_checkpoint(SAMPLES / "baseline.pt", "dsp", 0.75, tmp_path / "again.pt")
    sample = load_checkpoint(SAMPLES / "pruned_dsp.pt").compression
    assert sample is not None
    assert json.loads(json.dumps(done.record.layers)) == sample["layers"]
