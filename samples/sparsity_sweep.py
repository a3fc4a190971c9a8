"""The papers' figure 6, right half: energy ratio against sparsity for DSP and L1P, LIF and sLIF.

python samples/sparsity_sweep.py            (train what is missing, then measure and draw)
python samples/sparsity_sweep.py train      (only the first part)

Starts from samples/baseline.pt; a variant whose checkpoint lies in samples/work/sweep is not trained again.
About 40 minutes on two cores.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import product
from pathlib import Path

import fashion_mnist
import torch
import training

from stdeploy.checkpoint import load_checkpoint, save_checkpoint
from stdeploy.compress import apply_masks, keeper, parameter_groups, prune, replace_lif
from stdeploy.models import Spikformer

HERE = Path(__file__).resolve().parent
WORK = HERE / "work" / "sweep"
LOG = WORK / "train.log"
ACCURACY = WORK / "accuracy.json"

SPARSITIES = (0.9, 0.5, 0.99, 0.75)
METHODS = ("dsp", "l1p")
NEURONS = ("lif", "slif")
SEEDS = (1,)
FINETUNE_SAMPLES = 6_016
TEST_SAMPLES = 5_000
Data = tuple[torch.Tensor, torch.Tensor]


def variant(method: str, sparsity: float, neuron: str, seed: int) -> str:
    return f"{method}_{round(100 * sparsity)}_{neuron}_{seed}"


def read_accuracy() -> dict[str, float]:
    return json.loads(ACCURACY.read_text()) if ACCURACY.exists() else {}


def record(name: str, value: float) -> None:
    ACCURACY.write_text(json.dumps({**read_accuracy(), name: value}, indent=1))
    training.log(LOG, f"{name}: accuracy on {TEST_SAMPLES:,} test images {value:.4f}")


def finetune(method: str, sparsity: float, neuron: str, seed: int, data: Data, test: Data) -> None:
    """Prune the baseline, fine-tune it, write checkpoint and accuracy; nothing where that is done."""
    name = variant(method, sparsity, neuron, seed)
    path = WORK / f"{name}.pt"
    if path.exists():
        return
    model = load_checkpoint(HERE / "baseline.pt").module
    assert isinstance(model, Spikformer)
    masks, pruning = prune(model, method, sparsity)
    apply_masks(model, masks)
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


def train_all() -> None:
    WORK.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    data = fashion_mnist.load("train")
    images, labels = fashion_mnist.load("t10k")
    test = images[:TEST_SAMPLES], labels[:TEST_SAMPLES]
    if "baseline" not in read_accuracy():
        model = load_checkpoint(HERE / "baseline.pt").module
        record("baseline", training.accuracy(model, *test))
    for seed, sparsity, method, neuron in product(SEEDS, SPARSITIES, METHODS, NEURONS):
        finetune(method, sparsity, neuron, seed, data, test)


def main(stage: str = "all") -> int:
    train_all()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
