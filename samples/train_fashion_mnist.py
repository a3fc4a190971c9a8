"""Train the sample: a Spikformer on Fashion-MNIST, pruned with DSP and with L1P, fine-tuned with LIF and sLIF.

Run it again to resume; what is finished in samples/work is not done again. About an hour on two cores.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from statistics import mean

import fashion_mnist
import numpy as np
import torch
import training

from stdeploy.checkpoint import load_checkpoint, save_checkpoint
from stdeploy.compress import apply_masks, keeper, parameter_groups, prune, replace_lif
from stdeploy.models import Spikformer, SpikformerConfig
from stdeploy.models.calibration import firing_rates

HERE = Path(__file__).resolve().parent
WORK = HERE / "work"
LOG = WORK / "train.log"
RESULTS = WORK / "results.json"

CONFIG = SpikformerConfig(
    depth=2,
    embed_dim=48,
    mlp_dim=192,
    num_heads=6,
    steps=4,
    stem=((16, True), (48, True)),
    in_channels=1,
    image_size=(28, 28),
    scale=0.25,
)
BASELINE_SAMPLES, FINETUNE_SAMPLES = 160_000, 16_000
SPARSITY = {"dsp": 0.75, "l1p": 0.9}
SEEDS = (1, 2)
NEURONS = ("lif", "slif")
NAMES = {"lif": "LIF", "slif": "sLIF"}
Data = tuple[torch.Tensor, torch.Tensor]


def read_results() -> dict[str, float]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def record(name: str, value: float) -> None:
    RESULTS.write_text(json.dumps({**read_results(), name: value}, indent=1))
    training.log(LOG, f"{name}: test accuracy {value:.4f}")


def baseline(data: Data, test: Data) -> Path:
    path = WORK / "baseline.pt"
    if not path.exists():
        torch.manual_seed(0)
        model = Spikformer(CONFIG)
        training.train(
            model,
            [{"params": model.parameters(), "lr": 2e-3}],
            data,
            samples=BASELINE_SAMPLES,
            seed=0,
            state=WORK / "baseline.state",
            title="baseline",
            log_file=LOG,
        )
        record("baseline", training.accuracy(model, *test))
        save_checkpoint(path, model)
    return path


def finetune(method: str, neuron: str, seed: int, data: Data, test: Data) -> None:
    name = f"{method}_{neuron}_{seed}"
    path = WORK / f"{name}.pt"
    if path.exists():
        return
    model = load_checkpoint(WORK / "baseline.pt").module
    assert isinstance(model, Spikformer)
    masks, pruning = prune(model, method, SPARSITY[method])
    apply_masks(model, masks)
    if f"{method}_pruned" not in read_results():
        record(f"{method}_pruned", training.accuracy(model, *test))
    if neuron == "slif":
        replace_lif(model)
    training.train(
        model,
        parameter_groups(model, lr=1e-3, intrinsic_lr=5e-3),
        data,
        samples=FINETUNE_SAMPLES,
        seed=seed,
        state=WORK / f"{name}.state",
        title=name,
        after_step=keeper(model, masks),
        log_file=LOG,
    )
    record(name, training.accuracy(model, *test))
    save_checkpoint(path, model, {**pruning.to_dict(), "mode": "mask", "finetuned_images": FINETUNE_SAMPLES})


def ship(test: Data) -> None:
    """Copy what the repository ships and write the model card from the measured numbers."""
    for method in SPARSITY:
        shutil.copy(WORK / f"{method}_slif_{SEEDS[0]}.pt", HERE / f"pruned_{method}.pt")
    shutil.copy(HERE / "pruned_dsp.pt", HERE / "pruned.pt")
    shutil.copy(WORK / "baseline.pt", HERE / "baseline.pt")
    shutil.copy(LOG, HERE / "train.log")
    images, labels = (part[:256].numpy() for part in test)
    np.savez_compressed(HERE / "test_images.npz", images=images, labels=labels)
    (HERE / "MODEL_CARD.md").write_text(card(test))


def card(test: Data) -> str:
    results = read_results()
    rows = [f"| baseline (LIF) | {results['baseline']:.2%} | |"]
    for method, p in SPARSITY.items():
        rows.append(f"| {method.upper()} p = {p:.0%}, not fine-tuned | {results[f'{method}_pruned']:.2%} | |")
        for neuron in NEURONS:
            runs = [results[f"{method}_{neuron}_{seed}"] for seed in SEEDS]
            spread = ", ".join(f"{r:.2%}" for r in runs)
            rows.append(
                f"| {method.upper()} p = {p:.0%}, fine-tuned with {NAMES[neuron]} | {mean(runs):.2%} | {spread} |"
            )
    rates = []
    for method in SPARSITY:
        fired = firing_rates(load_checkpoint(HERE / f"pruned_{method}.pt").module, test[0][:256])
        low, high = min(fired, key=fired.__getitem__), max(fired, key=fired.__getitem__)
        rates.append(
            f"- `pruned_{method}.pt`: all {len(fired)} neuron layers fire; mean rates from {fired[low]:.3f} "
            f"(`{low}`) to {fired[high]:.3f} (`{high}`)."
        )
    return CARD.format(
        rows="\n".join(rows), rates="\n".join(rates), baseline=BASELINE_SAMPLES, tune=FINETUNE_SAMPLES
    )


CARD = """# Model card: Spikformer-2-48-192 on Fashion-MNIST

Written by `train_fashion_mnist.py` from its own measurements; `train.log` is the log of the run.

| file | what it is |
|---|---|
| `baseline.pt` | the dense model, LIF neurons |
| `pruned_dsp.pt` (also `pruned.pt`) | DSP, p = 75 %: 2 of 8 dimensions a head, 48 of 192 hidden units, sLIF |
| `pruned_l1p.pt` | L1P, p = 90 % of every block matrix, sLIF |
| `test_images.npz` | the first 256 test images, normalised (`images` [256, 1, 28, 28] float32), and `labels` |

**Architecture.** Images 1x28x28, T = 4 steps, stem 28 -> 14 -> 7 (16, 48 channels, LIF before each max-pool),
49 tokens, 2 blocks, d = 48, 6 heads, hidden 192, attention scale 0.25, mean over tokens and steps, linear head.
86,394 parameters before pruning. The pruned models are stored masked: weights of removed dimensions are zero,
their biases and BatchNorm shifts are as training left them.

**Data.** Fashion-MNIST (Xiao et al. 2017; MIT licence), Debian package `dataset-fashion-mnist`: 60,000 training
and 10,000 test images, normalised to mean 0 and deviation 1. No augmentation. The test images chose nothing:
every run has a fixed budget and its last state counts.

**Training.** AdamW, batch 128, cosine schedule. Baseline: {baseline:,} images shown, learning rate 2e-3; its
schedule was laid out for 240,000 images and shortened to {baseline:,} at image 139,776 (the log says where), so a run
from scratch, which lays it out for {baseline:,}, will not give these very weights.
Fine-tuning: {tune:,} images shown for LIF and sLIF alike, learning rate 1e-3, and 5e-3 for the
sLIF's tau and threshold (one of each a layer, in the blocks). Two seeds each; a seed fixes the order of the images.

**Accuracy on the 10,000 test images.**

| model | mean | seeds |
|---|---|---|
{rows}

**Firing on the 256 images.**

{rates}

**Use.** A sample for tools and tests, not a model to deploy. Licence of the weights: Apache-2.0.
"""


def main() -> None:
    WORK.mkdir(exist_ok=True)
    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    data, test = fashion_mnist.load("train"), fashion_mnist.load("t10k")
    baseline(data, test)
    for seed in SEEDS:
        for method in SPARSITY:
            for neuron in reversed(NEURONS):
                finetune(method, neuron, seed, data, test)
    ship(test)


if __name__ == "__main__":
    main()
