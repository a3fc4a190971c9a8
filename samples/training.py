"""One resumable training loop for the baseline and for fine-tuning."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

BATCH = 128


def log(path: Path, line: str) -> None:
    """Append a time-stamped line to the log and print it."""
    text = f"{time.strftime('%H:%M:%S')} {line}"
    with path.open("a") as stream:
        stream.write(text + "\n")
    print(text, flush=True)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of `images` that `model` classifies right, in eval mode."""
    model.eval()
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(images.split(250), labels.split(250), strict=True)
    )
    return right / len(labels)


def train(
    model: nn.Module,
    groups: Iterable[dict[str, object]],
    data: tuple[Tensor, Tensor],
    *,
    samples: int,
    seed: int,
    state: Path,
    title: str,
    after_step: Callable[[], None] = lambda: None,
    log_file: Path,
) -> None:
    """Show the model `samples` training images with AdamW and a cosine schedule.

    The state is saved every 20,000 images; a run that finds it goes on from there.
    """
    images, labels = data
    optimiser = torch.optim.AdamW(list(groups), weight_decay=1e-4)
    steps = samples // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    order = torch.cat([_permutation(len(images), seed, e) for e in range(-(-samples // len(images)))])
    start = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        schedule.load_state_dict(saved["schedule"])
        start = saved["step"]
        log(log_file, f"{title}: resumed at step {start} of {steps}")
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeRemainingColumn(),
    )
    mean_loss = 0.0
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(title, total=steps, completed=start, loss="")
        for step in range(start, steps):
            batch = order[step * BATCH : (step + 1) * BATCH]
            model.train()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            after_step()
            mean_loss = 0.98 * mean_loss + 0.02 * loss.item() if step > start else loss.item()
            progress.update(task, advance=1, loss=f"loss {mean_loss:.3f}")
            if (step + 1) % (20_000 // BATCH) == 0:
                log(log_file, f"{title}: {(step + 1) * BATCH} images, loss {mean_loss:.4f}")
                _save(state, model, optimiser, schedule, step + 1)
    state.unlink(missing_ok=True)


def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(1000 * seed + epoch))


def _save(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, schedule: object, step: int
) -> None:
    temporary = path.with_suffix(".part")
    torch.save(
        {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),  # type: ignore[attr-defined]
            "step": step,
        },
        temporary,
    )
    os.replace(temporary, path)
