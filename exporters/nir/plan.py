"""A NIR network as plain data: what the lowering builds, what the emitter writes and the counts are taken from."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from stdeploy.graph.weight import Array

Shape = tuple[int, int, int]
"""(C, H, W): every value of the portable dialect is a map; vectors are (C, 1, 1), tokens (C, N, 1)."""

Pair = tuple[int, int]
Role = Literal["model", "pooling", "attention"]

INPUT, OUTPUT = "input", "output"
UNIT_TAU = 1.0 + 1e-6
"""Steps of the memoryless unit: SpikingJelly's reader wants tau > dt, and 1e-6 forgets all but 1e-6 of h."""


@dataclass(frozen=True, eq=False)
class ConvNode:
    """nir.Conv2d. `weight [O, I / groups, k, k]`, `bias [O]`; square kernel and one group in the portable dialect."""

    weight: Array
    bias: Array
    stride: Pair
    padding: Pair
    dilation: Pair
    in_shape: Shape
    shape: Shape
    groups: int = 1


@dataclass(frozen=True, eq=False)
class PoolNode:
    """nir.AvgPool2d; the padding counts as zeros, so out = sum / (kernel area)."""

    kernel: Pair
    stride: Pair
    padding: Pair
    shape: Shape


@dataclass(frozen=True, eq=False)
class LifNode:
    """nir.LIF with r = 1, v_leak = v_reset = 0 that fires at h >= threshold; `tau` in steps, one or `[C]`.

    `memoryless`: an auxiliary unit or a layer of tau = 1, which a dialect may write as a nir.Threshold.
    """

    tau: float | Array
    threshold: float
    shape: Shape
    memoryless: bool = False


PlanNode = ConvNode | PoolNode | LifNode


@dataclass(frozen=True, eq=False)
class Part:
    """A NIR node that holds channels of a model neuron; `channels` None: all, in order."""

    node: str
    channels: Array | None = None


@dataclass
class Plan:
    """Nodes in topological order with edges; `neurons` maps a model neuron's name to its nodes."""

    nodes: dict[str, PlanNode] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    roles: dict[str, Role] = field(default_factory=dict)
    neurons: dict[str, list[Part]] = field(default_factory=dict)
    taken: set[str] = field(default_factory=lambda: {INPUT, OUTPUT})

    def add(self, name: str, node: PlanNode, sources: list[str], role: Role = "model") -> str:
        """Append a node that reads the sum of `sources`; returns its name in the file."""
        if len(set(sources)) != len(sources):
            raise ValueError(f"{name} reads a node twice: {sources}; NIR has no parallel edges")
        name = self._name(name)
        order = {n: i for i, n in enumerate(self.nodes)}
        # The branch before the skip: readers that walk depth first meet the longer path first.
        ordered = sorted(sources, key=lambda s: order.get(s, -1), reverse=True)
        self.nodes[name] = node
        self.edges += [(source, name) for source in ordered]
        self.roles[name] = role
        return name

    def _name(self, name: str) -> str:
        """A free name that readers accept as a module's: no '/', and '.' where they would see a method."""
        clean = re.sub(r"[^0-9A-Za-z_.]", "_", name)
        if "." not in clean or not clean[0].isalpha():
            clean = f"net.{clean}"
        free, k = clean, 0
        while free.replace(".", "_") in self.taken:
            k += 1
            free = f"{clean}.{k}"
        self.taken.add(free.replace(".", "_"))  # nirtorch replaces '.', so two names must differ after it
        return free

    def counts(self) -> dict[str, int]:
        """Neurons by role, nodes, edges, stored and nonzero weights."""
        neurons: Counter[str] = Counter({"model": 0, "pooling": 0, "attention": 0})
        stored = nonzero = 0
        for name, node in self.nodes.items():
            if isinstance(node, LifNode):
                neurons[self.roles[name]] += math.prod(node.shape)
            elif isinstance(node, ConvNode):
                stored += node.weight.size
                nonzero += int((node.weight != 0).sum())
        return {
            "nodes": len(self.nodes) + 2,
            "edges": len(self.edges),
            **{f"{role}_neurons": count for role, count in neurons.items()},
            "stored_weights": stored,
            "nonzero_weights": nonzero,
        }
