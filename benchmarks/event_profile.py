"""Where the event engine spends its time: one network, stage by stage, on one thread.

    python -m benchmarks.event_profile out/networks/event-dense-8.pt
    python -m benchmarks.event_profile FILE.pt --kernels rows

Each stage is timed alone, in order, and the median of the rounds is kept. Synaptic operations are counted by the
engine. `faster` (the default kernels) times every product with both kernels and keeps the faster.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.networks import pictures
from stdeploy import workflow
from stdeploy.exporters.event.cost import layers_of
from stdeploy.exporters.event.lower import KERNELS, lower
from stdeploy.graph import Graph, ops
from stdeploy.graph.weight import Array
from stdeploy.runtime.event.machine import Machine

ROUNDS = 9


@dataclass(frozen=True)
class Stage:
    """A stage's median seconds; `synops`: of all steps; `connections`: weights, zeros too, x positions x steps."""

    op: str
    nodes: tuple[str, ...]
    seconds: float
    synops: int
    connections: int
    planes: int

    @property
    def rate(self) -> float:
        """Synaptic operations by connection: input rate x weight density."""
        return self.synops / self.connections if self.connections else 0.0

    @property
    def speed(self) -> float:
        """Synaptic operations by second."""
        return self.synops / self.seconds


def profile(graph: Graph, kernels: Mapping[str, str], image: Array, rounds: int = ROUNDS) -> list[Stage]:
    """Every stage of `graph`'s program on one image, one thread, the state of a fresh call."""
    header, arrays = lower(graph, kernels)
    machine = Machine(header, arrays, graph.steps, 1, stateful=False)
    seconds = np.zeros((rounds, machine.stages))
    for k in range(rounds + 1):  # the first is not kept
        machine.array(header["input"]["buffer"])[:] = image.reshape(-1)
        for i in range(machine.stages):
            start = time.perf_counter()
            machine.run(i, i + 1)
            if k:
                seconds[k - 1, i] = time.perf_counter() - start
    machine.array(header["input"]["buffer"])[:] = image.reshape(-1)
    machine.run(0, machine.stages, counting=True)
    synops = machine.synops.reshape(machine.stages, -1).sum(1)
    return [
        Stage(
            stage["op"],
            tuple(stage["nodes"]),
            float(np.median(seconds[:, i])),
            int(synops[i]),
            _connections(graph, stage["nodes"]),
            stage["fields"].get("planes", 1),
        )
        for i, stage in enumerate(header["stages"])
    ]


def _connections(graph: Graph, nodes: list[str]) -> int:
    """Weights, zeros too, x positions x steps of a product; 0 for other stages."""
    node = graph[nodes[0]] if nodes else None
    if node is None or not isinstance(node.op, ops.Linear | ops.Conv):
        return 0
    steps = graph.steps if graph[node.inputs[0]].value.time == "step" else 1
    return node.op.weight.size * int(np.prod(node.value.shape[1:], dtype=np.int64)) * steps


def products(graph: Graph) -> list[str]:
    """Names of the nodes that have a kernel."""
    return [node.name for node in layers_of(graph)]


def faster_kernels(graph: Graph, image: Array, rounds: int = 5) -> dict[str, str]:
    """For every product the kernel that took less time here."""
    times: dict[str, dict[str, float]] = {name: {} for name in products(graph)}
    for kernel in KERNELS:
        stages = profile(graph, dict.fromkeys(times, kernel), image, rounds)
        for name, seconds in kernel_seconds(graph, kernel, stages).items():
            times[name][kernel] = seconds
    return {name: min(found, key=lambda k: found[k]) for name, found in times.items()}


def unfoldings(graph: Graph, stages: Iterable[Stage]) -> dict[str, float]:
    """Seconds of unfolding the input of every convolution whose input was unfolded, by the convolution's name."""
    seconds = {s.nodes[0]: s.seconds for s in stages if s.op == "Unfold"}
    return {n.name: seconds[n.inputs[0]] for n in graph.of(ops.Conv) if n.inputs[0] in seconds}


def kernel_seconds(graph: Graph, kernel: str, stages: Iterable[Stage]) -> dict[str, float]:
    """Seconds of every product that `kernel` ran, by name, and of unfolding its input, where it was unfolded."""
    unfolding = unfoldings(graph, stages)
    own = {s.nodes[0]: s.seconds for s in stages if s.op.lower() == kernel}
    return {name: seconds + unfolding.get(name, 0.0) for name, seconds in own.items()}


def render(stages: list[Stage]) -> list[str]:
    """A table, slowest first, and sums by operator."""
    total = sum(s.seconds for s in stages)
    lines = [f"{'ms':>8} {'%':>5} {'G/s':>7} {'rate':>7}  stage"]
    for stage in sorted(stages, key=lambda s: -s.seconds):
        if stage.seconds < 0.002 * total:
            continue
        work = f"{stage.speed / 1e9:7.1f}" if stage.synops else f"{'':7}"
        share = f"{stage.rate:7.4f}" if stage.connections else f"{'':7}"
        lines.append(
            f"{1e3 * stage.seconds:8.3f} {100 * stage.seconds / total:5.1f} {work} {share}  "
            f"{stage.op} {' '.join(stage.nodes)} ({stage.planes} planes)"
        )
    by_op: dict[str, float] = {}
    for stage in stages:
        by_op[stage.op] = by_op.get(stage.op, 0.0) + stage.seconds
    sums = ", ".join(f"{op} {1e3 * s:.2f}" for op, s in sorted(by_op.items(), key=lambda kv: -kv[1]))
    return [*lines, f"{1e3 * total:8.3f} ms in {len(stages)} stages: {sums}"]


def main() -> int:
    """Profile one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--kernels", choices=("faster", *KERNELS), default="faster")
    arguments = parser.parse_args()
    graph = workflow.lower(workflow.open_source(arguments.model).graph, "event").graph
    image = pictures(1, 100).numpy()
    if arguments.kernels == "faster":
        kernels = faster_kernels(graph, image)
    else:
        kernels = dict.fromkeys(products(graph), arguments.kernels)
    print("\n".join(render(profile(graph, kernels, image))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
