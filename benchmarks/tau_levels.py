"""What quantising tau changes in a network that learned one per channel: spikes, outputs and accuracy against levels.

Fine-tunes the shipped DSP sample with an sLIF per channel on Fashion-MNIST (Debian package `dataset-fashion-mnist`),
then brings its tau to k levels, with channels weighed by 256 training images and equally, and compares 2,000 test images
with the model before. Writes results/tau_levels.json.

    python benchmarks/tau_levels.py [IMAGES_TO_FINE_TUNE_ON]
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "samples"))

import fashion_mnist
import training

from stdeploy.checkpoint import load_checkpoint
from stdeploy.compress import keeper, parameter_groups, quantise_tau, replace_lif
from stdeploy.models import SLIF, Spikformer
from stdeploy.quantise import batches, channel_weights, measure
from stdeploy.trace import trace

LEVELS = (1, 2, 4, 8, 16)
TUNE, WEIGH, TEST = 8_000, 256, 2_000
RATE, INTRINSIC_RATE = 5e-4, 3e-2


def tuned(images: int) -> Spikformer:
    """The DSP sample with a tau and a threshold per channel, fine-tuned on `images` training images."""
    model = load_checkpoint(HERE.parent / "samples" / "pruned_dsp.pt").module
    assert isinstance(model, Spikformer)
    replace_lif(model, per_channel=True)
    masks = {
        name: parameter.detach() != 0
        for name, parameter in model.block.named_parameters(prefix="block")
        if name.endswith("_linear.weight")
    }
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        training.train(
            model,
            parameter_groups(model, lr=RATE, intrinsic_lr=INTRINSIC_RATE),
            fashion_mnist.load("train"),
            samples=images,
            seed=0,
            state=Path(folder) / "state",
            title="sLIF per channel",
            after_step=keeper(model, masks),
            log_file=Path(folder) / "log",
        )
    return model.eval()


def main() -> None:
    images = int(sys.argv[1]) if len(sys.argv) > 1 else TUNE
    model = tuned(images)
    original = trace(deepcopy(model), model.config.input_shape)
    train, (test, labels) = fashion_mnist.load("train")[0], fashion_mnist.load("t10k")
    test, labels = test[:TEST].numpy(), labels[:TEST].numpy()
    measured = channel_weights(original.graph, batches(original.graph, train[-WEIGH:].numpy()))
    taus = torch.cat([m.tau.detach() for m in model.modules() if isinstance(m, SLIF)])
    rows = []
    for weighted, weights in ((True, measured), (False, channel_weights(original.graph))):
        for k in LEVELS:
            changed = deepcopy(model)
            quantise_tau(changed, k, weights, weighted=weighted)
            effect = measure(original, trace(changed, model.config.input_shape), original.graph, test, labels)
            output = next(iter(effect.outputs.values()))
            spikes = sum(layer.spikes for layer in effect.layers.values())
            rows.append(
                {
                    "levels": k,
                    "weighted": weighted,
                    "spikes_changed": sum(layer.changed for layer in effect.layers.values()) / spikes,
                    "output_rms": output.rms_change,
                    "argmax_same": output.agree / output.answers,
                    "accuracy_before": (output.correct_before or 0) / output.answers,
                    "accuracy_after": (output.correct_after or 0) / output.answers,
                }
            )
            print(rows[-1], flush=True)
    document = {
        "fine_tuned_images": images,
        "weighing_images": WEIGH,
        "test_images": TEST,
        "tau": {"channels": taus.numel(), "smallest": float(taus.min()), "largest": float(taus.max())},
        "tau_deviation": float(taus.std()),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "rows": rows,
    }
    (HERE / "results" / "tau_levels.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
