"""A Lava network as plain data: processes, what feeds them, and the step from which each carries sample 0.

Lava's steps count from 1. A process that is `valid` from step v holds step t of sample i at v + i T + t; samples
follow each other without a gap.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from stdeploy.exporters.lava.linear_map import LinearMap
from stdeploy.graph.weight import Array

Role = Literal["model", "pooling", "attention", "product"]

HOP = 1
"""Steps that a Sparse, DelaySparse or attention process takes; a neuron fires in the step of its input."""


@dataclass(frozen=True, eq=False)
class Source:
    """The input, one entry per step."""

    size: int


@dataclass(frozen=True, eq=False)
class Synapses:
    """lava Sparse: a = W s, one step later; `exponent` (fixed point): times 2^exponent, rounded down."""

    map: LinearMap
    exponent: int = 0

    @property
    def size(self) -> int:
        return int(self.map.matrix.shape[0]) * self.map.positions


@dataclass(frozen=True, eq=False)
class Delay:
    """An identity, `steps` later: Sparse for one step, DelaySparse for more."""

    size: int
    steps: int


@dataclass(frozen=True, eq=False)
class Population:
    """lava LIFReset: v = v (1 - leak) + a + bias, fires at v >= threshold, resets to 0, and to 0 at each sample.

    `leak` 1 is memoryless (a plain LIF). In fixed point leak is in 1/4096 and the bias a mantissa (fixed.py).
    """

    size: int
    leak: float
    threshold: float
    bias: Array | None
    role: Role = "model"
    bias_exponent: int = 0


@dataclass(frozen=True, eq=False)
class Attention:
    """Q (K^T V) per head in one custom process; q, k `[Cq, N]`, v `[Cv, N]`, flattened; counts, one step later."""

    heads_q: tuple[int, ...]
    heads_v: tuple[int, ...]
    tokens: int

    @property
    def size(self) -> int:
        return sum(self.heads_v) * self.tokens


@dataclass(frozen=True)
class InputRange:
    """An input value x becomes round(x / unit), clipped to +-limit."""

    unit: float
    limit: int


Process = Source | Synapses | Delay | Population | Attention


@dataclass(frozen=True, eq=False)
class Part:
    """The entries `start:stop` of a population's output that are the channels `channels` (None: all) of a neuron."""

    process: str
    start: int
    stop: int
    channels: Array | None = None


@dataclass
class Plan:
    """Processes in topological order; `inputs[name][port]` lists the processes whose outputs it sums.

    In fixed point `input_range` turns the input into integers, and `output_unit` the output back.
    """

    processes: dict[str, Process] = field(default_factory=dict)
    inputs: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    valid: dict[str, int] = field(default_factory=dict)
    neurons: dict[str, list[Part]] = field(default_factory=dict)
    output: tuple[str, ...] = ()
    output_offset: Array | None = None
    input_range: InputRange | None = None
    output_unit: float = 1.0

    def add(self, name: str, process: Process, inputs: dict[str, tuple[str, ...]], valid: int) -> str:
        """Append a process under a free name; ValueError where a port would be connected twice, which Lava refuses."""
        if any(len(set(sources)) < len(sources) for sources in inputs.values()):
            raise ValueError(f"{name} is fed twice by one of {inputs}")
        free, k = name, 0
        while free in self.processes:
            k += 1
            free = f"{name}.{k}"
        self.processes[free] = process
        self.inputs[free] = inputs
        self.valid[free] = valid
        return free

    @property
    def latency(self) -> int:
        """Steps from a sample's first input to its first output."""
        return self.valid[self.output[0]] - 1

    def counts(self) -> dict[str, int]:
        """Processes, synapses, and neurons by role."""
        neurons: Counter[str] = Counter()
        synapses = 0
        for process in self.processes.values():
            if isinstance(process, Population):
                neurons[f"{process.role}_neurons"] += process.size
            elif isinstance(process, Synapses):
                synapses += process.map.synapses
            elif isinstance(process, Delay):
                synapses += process.size
        return {
            "processes": len(self.processes),
            **neurons,
            "synapses": synapses,
            "latency_steps": self.latency,
        }


def below(threshold: float) -> float:
    """Lava fires at v > vth, the model at v >= threshold: the float64 just below it."""
    return float(np.nextafter(threshold, -np.inf))
