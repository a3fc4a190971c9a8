"""What running a network yields, whichever software runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from stdeploy.errors import UserError
from stdeploy.graph.weight import Array

L = TypeVar("L")


@dataclass(frozen=True, eq=False)
class Execution:
    """Results of one run on a batch.

    `outputs`: by Output label, in that Output's layout (`[B, ...]`, `[T, B, ...]` or `[B, T, ...]`).
    `spikes`: by neuron node name, `[T, B, *value.shape]`, what each neuron computed itself, also where
    its consumers were fed forced spikes.
    `membranes`: where asked for, the charged membrane h before firing, same shape.
    `selections`: by Select node name the token positions it chose itself, int64 `[T, B, count]` (`[1, B, count]`
    where it is not chosen anew at every step).
    """

    outputs: dict[str, Array]
    spikes: dict[str, Array] = field(default_factory=dict)
    membranes: dict[str, Array] = field(default_factory=dict)
    selections: dict[str, Array] = field(default_factory=dict)


class Executor(Protocol):
    """Anything that can run a network: the interpreter, PyTorch, onnxruntime, a NIR reader."""

    @property
    def name(self) -> str:
        """The software and its version."""
        ...

    def run(self, inputs: Array, forced: Mapping[str, Array] | None = None) -> Execution:
        """Run a batch given in the Input's layout.

        `forced` (teacher forcing): spikes `[T, B, *shape]` by neuron name that consumers read instead
        of what the neuron computed, and token positions by Select name that it keeps instead of its own.
        """
        ...


def answers(values: Array, layout: str) -> list[int]:
    """Argmax of every sample's scores, of their mean over the steps where `layout` has steps; [] for other outputs."""
    if values.ndim != (2 if layout == "B" else 3) or values.shape[-1] < 2:
        return []
    scores = values if layout == "B" else values.mean(axis=0 if layout == "TB" else 1)
    return [int(i) for i in scores.argmax(axis=-1)]


def read_out(steps: Array, mode: str, layout: str) -> Array:
    """A model's output from what it yielded at each step, `[T, B, ...]`.

    `mode`: mean, sum or last over the steps, or `each step`, which `layout` (TB, BT) then orders.
    """
    if mode == "each step":
        return steps if layout == "TB" else np.swapaxes(steps, 0, 1)
    if mode == "last":
        return np.asarray(steps[-1])
    return np.asarray(steps.mean(axis=0) if mode == "mean" else steps.sum(axis=0))


def leading(layout: str, batch: L, steps: int) -> list[L | int]:
    """The dimensions of an Input's or Output's layout before one sample's own; `batch` stands for B."""
    orders: dict[str, list[L | int]] = {"B": [batch], "BT": [batch, steps], "TB": [steps, batch]}
    return orders[layout]


def batch_size(inputs: Array, layout: str, shape: Sequence[int], steps: int) -> int:
    """B of a batch in an Input's layout; `shape` is one sample's, without T and B.

    Raises UserError that names the expected shape where `inputs` do not have it.
    """
    wanted = [*leading(layout, None, steps), *shape]
    if len(wanted) != inputs.ndim or any(
        w not in (None, n) for w, n in zip(wanted, inputs.shape, strict=True)
    ):
        got = "x".join(str(n) for n in inputs.shape) or "()"
        takes = "x".join("B" if w is None else str(w) for w in wanted)
        raise UserError(f"the input has shape {got}, the model takes {takes}", hint="B is the batch size")
    return int(inputs.shape[wanted.index(None)])
