"""Published numbers: re-derived from their own counts, and printed rows against the digits they print."""

from __future__ import annotations

import copy
import json
from importlib import resources

import pytest

from stdeploy.energy.selfcheck import check_rows, rederive, self_check


def test_the_published_log_of_spikingformer_gives_its_published_energy() -> None:
    log = self_check().log
    assert log.layers == 54 and log.ok
    assert log.gmac == pytest.approx(0.347329512, rel=1e-12)
    assert log.gac == pytest.approx(6.51754094076244, rel=1e-12)
    assert log.mj == pytest.approx(7.463502601886196, rel=1e-12)
    assert log.attention_gac == pytest.approx(0.0278255, rel=1e-5)


@pytest.mark.parametrize("change", ["layer", "rate"])
def test_a_changed_count_is_noticed(change: str) -> None:
    text = (resources.files("stdeploy.energy") / "published" / "spikingformer_8_512.json").read_text()
    log = copy.deepcopy(json.loads(text))
    if change == "layer":
        log["layers"][7]["ops"] *= 1.001
    else:
        log["qkv_rates"][3][0] += 0.001
    assert not rederive(log).ok


def test_the_dense_operations_of_the_log_are_those_of_its_layers() -> None:
    """T x k^2 x outputs positions x in x out: the log's own shapes, so its transcription is checked too."""
    text = (resources.files("stdeploy.energy") / "published" / "spikingformer_8_512.json").read_text()
    layers = {layer["name"]: layer for layer in json.loads(text)["layers"]}
    stem = {"proj_conv": (3, 64, 224), "proj_conv1": (64, 128, 112), "proj_conv2": (128, 256, 56)}
    stem |= {"proj_conv3": (256, 512, 28), "rpe_conv": (512, 512, 14)}
    for name, (inputs, outputs, side) in stem.items():
        assert layers[f"patch_embed.{name}"]["dense"] == 4 * 9 * inputs * outputs * side**2
    for block in range(8):
        assert layers[f"block.{block}.attn.q_conv"]["dense"] == 4 * 196 * 512 * 512
        assert layers[f"block.{block}.mlp.fc1_conv"]["dense"] == 4 * 196 * 2048 * (512 + 1)  # with bias
    assert all(0 < layer["ops"] <= layer["dense"] for layer in layers.values())


def test_rows_that_contradict_themselves_are_found_from_their_digits() -> None:
    verdicts = {row.model: row for row in self_check().rows}
    small, large = verdicts["Spikformer-8-384"], verdicts["Spikformer-8-768"]
    assert "0.399 mJ too high" in small.verdict() and "0.797 mJ too low" in large.verdict()
    assert small.borrowed == large.borrowed == "Spikformer-6-512"
    assert large.expected_mj == pytest.approx(22.274, abs=5e-4)
    for model in ("Spikformer-8-512", "Spikingformer-8-384", "Spikingformer-8-512", "Spikingformer-8-768"):
        assert verdicts[model].verdict() == "consistent: first layer x T"
    assert "once" in verdicts["SEW-ResNet-152"].verdict()
    assert "0.070 mJ too low" in verdicts["Spiking ResNet-50"].verdict()
    assert "too low" in verdicts["Spikformer-8-768, STATA"].verdict()


def test_a_verdict_follows_the_printed_digits() -> None:
    row = {
        "table": "t",
        "model": "m",
        "steps": 3,
        "first": [1, 1, 1000, 100, 100],
        "gops": "1.00",
        "checked": "no",
    }
    own = 4.6e-12 * 1000 * 100 * 100 * 1e3
    rows = [
        {**row, "mj": f"{0.9 + 3 * own:.3f}"},
        {**row, "mj": f"{0.9 + own:.3f}"},
        {**row, "mj": "1.300"},
    ]
    assert [r.charged for r in check_rows(rows)] == [3, 1, None]
