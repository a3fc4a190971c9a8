"""Which kernel runs a Linear or Conv: the cheaper one by measured costs and the rate of nonzero inputs.

`rows`: every nonzero input adds its dense row of weights to the outputs that it reaches. Work per step: rate x products.
`columns`: every nonzero weight (CSR) is added, under a mask, to 16 output positions at a time. Work per step:
density x products x bit planes of the inputs, whatever the rate. Only for inputs that are held as bits: spikes
and small counts.

`products` are the layer's connections, zero weights included. Padding is counted as if it were data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from stdeploy.exporters.event.formats import Layout
from stdeploy.exporters.event.pack import LANES
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.ops import Conv, Linear


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one thread: `row_add` for one weight of a row, `column_add` for one weight at one position, and
    `row_layer`, `column_layer` for a layer's step whatever it holds. `machine`: where they were measured."""

    row_add: float = 1 / 25e9
    column_add: float = 1 / 58e9
    row_layer: float = 0.0
    column_layer: float = 0.0
    machine: str = "AMD EPYC, AVX-512"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Estimate:
    """One layer at a rate of nonzero inputs: seconds per step and sample by kernel, of those that can run it."""

    rate: float
    density: float
    products: int
    seconds: Mapping[str, float]

    @property
    def kernel(self) -> str:
        """The cheapest; the first of them where they cost the same."""
        return min(self.seconds, key=lambda name: self.seconds[name])


def layers_of(graph: Graph) -> list[Node]:
    """The nodes that have a kernel."""
    return [node for node in graph if isinstance(node.op, Linear | Conv)]


def estimate(graph: Graph, node: Node, rate: float, costs: Costs) -> Estimate:
    """The layer's cost by kernel; TypeError for a node without one."""
    op = node.op
    if not isinstance(op, Linear | Conv):
        raise TypeError(f"{node.name} is neither Linear nor Conv")
    positions, per_output = math.prod(node.value.shape[1:]), op.weight.size // op.weight.shape[0]
    products = node.value.shape[0] * per_output * positions
    density = op.weight.density
    seconds = {"rows": costs.row_layer + costs.row_add * rate * products}
    planes = Layout.of(graph[node.inputs[0]].value).planes
    if planes:
        adds = density * products * planes * (-(-positions // LANES) * LANES / positions)
        seconds["columns"] = costs.column_layer + costs.column_add * adds
    return Estimate(rate, density, products, seconds)


def choose(graph: Graph, rates: Mapping[str, float], costs: Costs) -> dict[str, str]:
    """The cheaper kernel of every Linear and Conv; `rates`: share of nonzero inputs of each, by name."""
    return {node.name: estimate(graph, node, rates[node.name], costs).kernel for node in layers_of(graph)}
