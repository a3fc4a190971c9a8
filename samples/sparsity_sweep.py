"""The papers' figure 6, right half: energy ratio against sparsity for DSP and L1P, LIF and sLIF.

python samples/sparsity_sweep.py            (train what is missing, then measure and draw)
python samples/sparsity_sweep.py draw       (only draw, from sparsity_sweep.json)

Starts from samples/baseline.pt; a variant whose checkpoint is there already is not trained again.
Writes sparsity_sweep.json and sparsity_sweep.svg beside this file. About 30 minutes on two cores.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import fashion_mnist
import torch
import training

from stdeploy import accounting, workflow
from stdeploy.checkpoint import load_checkpoint, save_checkpoint
from stdeploy.compress import apply_masks, keeper, parameter_groups, prune, replace_lif
from stdeploy.energy.pictures import Panel, Series, curves
from stdeploy.energy.prices import Choices, dense_macs
from stdeploy.energy.profile import load_profiles
from stdeploy.energy.report import EnergyReport
from stdeploy.models import Spikformer

HERE = Path(__file__).resolve().parent
WORK = HERE / "work" / "sweep"
LOG = WORK / "train.log"
ACCURACY = WORK / "accuracy.json"
RESULT, PICTURE = HERE / "sparsity_sweep.json", HERE / "sparsity_sweep.svg"

SPARSITIES = (0.9, 0.5, 0.99, 0.75)
METHODS = ("dsp", "l1p")
NEURONS = ("lif", "slif")
SEEDS = (1,)
FINETUNE_SAMPLES = 6_016
TEST_SAMPLES, COUNTED_SAMPLES = 5_000, 512
PROFILES = ["45nm-fp32", "45nm-int8", "loihi1"]

COLOURS = {"dsp": "#0072b2", "l1p": "#d55e00"}
MARKERS = {"lif": {"marker": "o", "linestyle": "--"}, "slif": {"marker": "s", "linestyle": "-"}}
PANELS = (
    ("literature_j", "energy / baseline, literature's formula"),
    ("synaptic_j", "energy / baseline, exact synaptic"),
    ("all_parts_j", "energy / baseline, with neurons and memory"),
    ("accuracy", "test accuracy"),
)
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


def measure() -> dict[str, Any]:
    """Counts and energies of the baseline and of every variant, each after the exact passes."""
    accuracy = read_accuracy()
    variants = []
    for seed, sparsity, method, neuron in product(SEEDS, sorted(SPARSITIES), METHODS, NEURONS):
        name = variant(method, sparsity, neuron, seed)
        facts = {"method": method, "sparsity": sparsity, "neuron": neuron, "seed": seed}
        variants.append({**facts, "accuracy": accuracy[name], **measured(WORK / f"{name}.pt")})
        print(json.dumps({**facts, "accuracy": accuracy[name]}), flush=True)
    return {
        "budget": {
            "finetuning_images": FINETUNE_SAMPLES,
            "seeds": len(SEEDS),
            "accuracy_images": TEST_SAMPLES,
            "counted_images": COUNTED_SAMPLES,
            "profiles": PROFILES,
        },
        "baseline": {"accuracy": accuracy["baseline"], **measured(HERE / "baseline.pt")},
        "variants": variants,
    }


def measured(path: Path) -> dict[str, Any]:
    """Synaptic operations, firing rates and joules per image on the first COUNTED_SAMPLES test images."""
    source = workflow.open_source(path)
    images, _ = fashion_mnist.load("t10k")
    ledger = accounting.count(accounting.subject(source), images[:COUNTED_SAMPLES].numpy(), batch=32)
    report = EnergyReport.of(ledger, load_profiles(PROFILES), Choices())
    neurons = ledger.of("neuron")
    synops = [m for name, m in ledger.network.each.items() if "synops." in name]
    return {
        "synops": sum(m.mean for m in synops),
        "dense_macs": dense_macs(ledger),
        "nonzero_weights": sum(layer.constants["nonzero_weights"] for layer in ledger.of("synapse")),
        "firing_rate": ledger.network["neuron.spikes"].mean / sum(n.constant("clocked") for n in neurons),
        "energies": {
            p.profile.name: {
                "literature_j": report.literature.joules(p.profile),
                "synaptic_j": p.total.synaptic.mean,
                "synaptic_ci95_j": p.total.synaptic.ci95,
                "all_parts_j": p.total.total.mean,
                "all_parts_ci95_j": p.total.total.ci95,
            }
            for p in report.priced
        },
    }


def draw(found: dict[str, Any]) -> str:
    """Energy by the literature's formula, exact synaptic energy, energy with memory, accuracy: all by sparsity."""
    sparsities = sorted({v["sparsity"] for v in found["variants"]})
    ticks = [(i, f"{round(100 * p)}%") for i, p in enumerate(sparsities)]
    base = found["baseline"]["energies"][PROFILES[0]]
    panels = []
    for key, title in PANELS:
        series = []
        for method, neuron in product(METHODS, NEURONS):
            runs = [v for v in found["variants"] if (v["method"], v["neuron"]) == (method, neuron)]
            values = [mean(_value(v, key, base) for v in runs if v["sparsity"] == p) for p in sparsities]
            style = {"color": COLOURS[method], **MARKERS[neuron], "linewidth": 1.6, "markersize": 5}
            label = f"{method.upper()}, {neuron.replace('lif', 'LIF')}"
            series.append(Series(label, range(len(sparsities)), values, style))
        line = found["baseline"]["accuracy"] if key == "accuracy" else 1.0
        panels.append(Panel(title, "sparsity p", "", series, ticks, line, key != "accuracy"))
    return curves(panels, page=True)


def _value(run: dict[str, Any], key: str, base: dict[str, float]) -> float:
    return float(run[key] if key in run else run["energies"][PROFILES[0]][key] / base[key])


def main(stage: str = "all") -> int:
    if stage not in ("all", "draw"):
        raise SystemExit(f"no stage {stage!r}: all or draw")
    if stage == "all":
        train_all()
        RESULT.write_text(json.dumps(measure(), indent=1) + "\n")
    PICTURE.write_text(draw(json.loads(RESULT.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
