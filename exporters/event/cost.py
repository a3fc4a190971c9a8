"""Which kernel runs a Linear or Conv: the one that is cheaper by measured costs and the rate of nonzero inputs.

`rows` adds the dense row of weights of every set bit of an input, or of every input that is held as a number, to the sums
of the outputs; WORD rows in which a block of outputs has no weight, as those of other groups, are left out. `columns` adds
every nonzero weight (CSR), under a mask of bits, to LANES positions at once, whatever the rate; a convolution's input is
unfolded into its windows first. A Linear takes any input, a convolution bits: spikes and small counts.

A layer's seconds are its work (how often each thing is done, per step and sample) times `Costs`. Padding is counted as if
it were data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from stdeploy.exporters.event.formats import Layout
from stdeploy.exporters.event.pack import blocks_of, parts_of
from stdeploy.exporters.event.products import takes_columns
from stdeploy.exporters.event.stages import LANES, POSITIONS_TOGETHER, STEPS_TOGETHER, WORD
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.ops import Conv, Linear


class Rate(NamedTuple):
    """Of a layer's input elements at a step: the share that is not zero, and how many bits are set in one (of spikes the same)."""

    nonzero: float
    bits: float


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one thread for each thing that kernels do.

    `row_add`: a weight of a row added to one sum. `row_output`: an output begun with its bias, fired and written.
    `row_visit`: a block of outputs looking at WORD inputs of one position of a window. `row_fetch`: a weight of a row
    fetched from memory, once for all steps; `row_near`: from the second cache, once for POSITIONS_TOGETHER x STEPS_TOGETHER
    sums. `column_add`: a nonzero weight added at one position and bit plane; `column_value_add`: times the number at one
    position. `column_output`: as `row_output`. `column_shift`: WORD bits of an input shifted into a window, at all
    steps at once. `machine`: where they were measured. The defaults are fitted to both kernels of every Linear and Conv of
    Spikformer-4-384-1536 networks at rates from 2 to 20 % (benchmarks/results/event_costs.json).
    """

    row_add: float = 1.0e-11
    row_output: float = 2.1e-10
    row_visit: float = 2.4e-9
    row_fetch: float = 2.6e-10
    row_near: float = 1.8e-11
    column_add: float = 1.8e-11
    column_value_add: float = 2.4e-11
    column_output: float = 2.8e-10
    column_shift: float = 1.2e-8
    machine: str = "AMD EPYC, AVX-512, one thread"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Estimate:
    """One layer at a rate. `work`: by kernel that can run it, how often it does each thing of Costs, per step and sample.

    `products`: connections, zero weights included. `seconds`: by kernel, per step and sample.
    """

    rate: Rate
    density: float
    products: int
    work: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]

    @property
    def kernel(self) -> str:
        """The cheapest; the first of them where they cost the same."""
        return min(self.seconds, key=lambda name: self.seconds[name])


def layers_of(graph: Graph) -> list[Node]:
    """The nodes that have a kernel."""
    return [node for node in graph if isinstance(node.op, Linear | Conv)]


def estimate(graph: Graph, node: Node, rate: Rate, costs: Costs) -> Estimate:
    """The layer's work and cost by kernel; TypeError for a node without one."""
    op = node.op
    if not isinstance(op, Linear | Conv):
        raise TypeError(f"{node.name} is neither Linear nor Conv")
    outputs, *space = node.value.shape
    positions = math.prod(space)
    products = op.weight.size * positions
    value = graph[node.inputs[0]].value
    layout = Layout.of(value)
    blocks, vectors = blocks_of(outputs)
    room = blocks * vectors * LANES
    parts, rows = parts_of(op, layout.channels)
    weights, steps = rows * vectors * LANES, graph.steps if layout.stepped else 1
    bits = rate.bits if layout.planes else 1.0
    work = {
        "rows": {
            "row_add": bits * weights * positions,
            "row_output": float(room * positions),
            "row_visit": float(parts * positions * max(1, layout.planes)),
            "row_fetch": weights * _used(bits, positions * steps) / steps,
            "row_near": weights * sum(_used(bits, sums) for sums in _groups(positions, steps)) / steps,
        }
    }
    if takes_columns(op, layout):
        last = positions % WORD
        padded = positions - last + (0 if not last else LANES if last <= LANES else WORD)
        shifts = 0
        if isinstance(op, Conv):
            shifts = math.prod(op.weight.shape[2:]) * layout.channels * _shifts(op, value.shape[1:], space)
        values = isinstance(op, Linear) and layout.planes != 1
        work["columns"] = {
            "column_add": 0.0 if values else float(op.weight.nnz * padded * layout.planes),
            "column_value_add": float(op.weight.nnz * padded) if values else 0.0,
            "column_output": float(outputs * padded),
            "column_shift": shifts * layout.planes / steps,
        }
    prices = costs.to_dict()
    seconds = {kernel: sum(prices[k] * n for k, n in each.items()) for kernel, each in work.items()}
    return Estimate(rate, op.weight.density, products, work, seconds)


def _shifts(op: Conv, shape: tuple[int, ...], space: list[int]) -> int:
    """Of one tap and channel: WORD outputs each, by how far their inputs lie from them."""
    positions, width = math.prod(space), space[-1]
    if {*op.stride} == {1} and list(shape[1:]) == space[1:]:
        return -(-positions // WORD)
    if op.stride[-1] > 1:
        return positions
    rows = range(0, positions, width)
    return sum((first + width - 1) // WORD - first // WORD + 1 for first in rows)


def _used(bits: float, sums: int) -> float:
    """Share of the rows that any of so many sums adds, where each bit is as likely as the others."""
    return 1 - (1 - min(1.0, bits)) ** sums


def _groups(positions: int, steps: int) -> Iterator[int]:
    """How many sums share the rows that are near, group by group."""
    for p in range(0, positions, POSITIONS_TOGETHER):
        for t in range(0, steps, STEPS_TOGETHER):
            yield min(POSITIONS_TOGETHER, positions - p) * min(STEPS_TOGETHER, steps - t)
