"""Synaptic operations of Linear and Conv: events times their fan-out, without redoing the layer.

A synaptic operation is a nonzero input event meeting a nonzero weight at an output position. With S[c, k] the
events of channel c that tap k of the window reads (at some valid output) and F[c, k] the nonzero weights
that leave c at k, the layer has sum_{c,k} S[c, k] F[c, k] of them; a Linear has one tap.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stdeploy.energy.ledger import Class
from stdeploy.energy.signals import Signals, float_for
from stdeploy.energy.sums import per_sample
from stdeploy.energy.windows import Windows, conv_windows
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.weight import Array

FIXED = 1 << 24
"""Real inputs are summed as integers of 1/FIXED, so that shards merge exactly."""

CHUNK = 1 << 24
"""Elements that are copied to floats at a time."""


@dataclass(frozen=True, eq=False)
class Synapses:
    """What one Linear or Conv looks like to an event.

    `fan [C, *kernel]`: nonzero weights that leave channel c at a tap; `full`: all weights, zero or not.
    """

    node: Node
    input: str
    windows: Windows
    fan: Array
    full: int
    constants: dict[str, int]

    @cached_property
    def is_dense(self) -> bool:
        return bool(np.all(self.fan == self.full))


def synapses(node: Node, graph: Graph) -> Synapses:
    """Fan-out and constants of a Linear or Conv node."""
    op, shape = node.op, graph[node.inputs[0]].value.shape
    if isinstance(op, ops.Conv):
        windows, groups = conv_windows(op, node, shape[1:]), op.groups
    elif isinstance(op, ops.Linear):
        positions = (int(np.prod(shape[1:])),)
        windows, groups = Windows(positions, positions, (1,), (1,), (0,), (1,)), 1
    else:
        raise TypeError(f"{node.name} is neither Linear nor Conv")
    weight = op.weight
    full = weight.shape[0] // groups
    nonzero = (weight.array() != 0).reshape(groups, full, -1, *windows.kernel)
    fan = nonzero.sum(1, dtype=np.int64).reshape(shape[0], *windows.kernel)
    taps = windows.taps(np.ones(windows.shape, np.int64))
    outputs = int(np.prod(node.value.shape))
    return Synapses(
        node,
        node.inputs[0],
        windows,
        fan,
        full,
        {
            "inputs": int(np.prod(shape)),
            "outputs": outputs,
            "dense": windows.pairs * full * shape[0],
            "dense_padded": outputs * (weight.size // weight.shape[0]),
            "connections": int((fan * taps).sum()),
            "spatial": len(op.stride) if isinstance(op, ops.Conv) else 0,
            "fan_out": full * int(np.prod(windows.kernel)),
            "weights": weight.size,
            "nonzero_weights": weight.nnz,
            "csr": int(weight.is_csr),
            "bias": int(op.bias is not None),
            "weight_bits": 8 * weight.dtype.itemsize,
        },
    )


def count_synapses(layer: Synapses, signals: Signals) -> dict[str, Array]:
    """Every quantity of role "synapse", `[rows, B]` int64; see stdeploy.energy.ledger.QUANTITIES."""
    kind = input_class(signals.graph, layer.input)
    rows = signals.rows(layer.input)
    nonzero = signals.operand(layer.input, rows, signals.nonzero(layer.input))
    events = per_sample(nonzero)
    synops, blind = _reached(layer, nonzero, 1)
    if kind == "binary":
        return _quantities(events, np.zeros_like(events), events, synops, synops, blind, blind)
    if kind == "count":
        units = signals.operand(layer.input, rows, signals.units(layer.input))
        largest = int(units.max(initial=0))
        unary, blind_sum = _reached(layer, units, largest) if largest > 1 else (synops, blind)
        several = per_sample(units > 1)
        return _quantities(events, several, per_sample(units), synops, unary, blind, blind_sum)
    fixed = _fixed(signals.real(layer.input), layer.constants["dense"] * signals.graph.steps)
    fixed = signals.operand(layer.input, rows, fixed).reshape(*nonzero.shape[:3], *layer.windows.shape)
    several, magnitude = per_sample(np.abs(fixed) > FIXED), per_sample(np.abs(fixed))
    blind_sum = per_sample(fixed * layer.windows.reach)
    return _quantities(events, several, magnitude, synops, synops, blind, blind_sum * layer.full)


def _quantities(*arrays: Array) -> dict[str, Array]:
    names = ("events", "several", "magnitude", "synops", "unary", "blind", "blind_sum")
    return dict(zip(names, arrays, strict=True))


def input_class(graph: Graph, name: str) -> Class:
    """How the values of a node are counted."""
    kind = graph[name].value.domain.kind
    return "binary" if kind == "spike" else kind


def _reached(layer: Synapses, x: Array, largest: int) -> tuple[Array, Array]:
    """Sums of `x [rows, B, C, *positions]` over its synapses, and over all connections (zero weights too)."""
    rows, batch, channels = x.shape[:3]
    reach = layer.windows.reach
    kind = float_for(max(1, largest * reach.size * int(reach.max(initial=0))))
    samples = x.reshape(rows * batch, channels, *layer.windows.shape)
    size = max(1, CHUNK // max(1, channels * reach.size))
    parts = [_taps(layer, samples[i : i + size].astype(kind)) for i in range(0, rows * batch, size)]
    synops, blind = (np.concatenate(sums).reshape(rows, batch) for sums in zip(*parts, strict=True))
    return synops, blind


def _taps(layer: Synapses, x: Array) -> tuple[Array, Array]:
    """`[n]` sums of `x [n, C, *positions]` over synapses and over all connections."""
    n, channels = x.shape[:2]
    if layer.is_dense:
        reach = layer.windows.reach.reshape(-1).astype(x.dtype)
        blind = (x.reshape(n * channels, -1) @ reach).astype(np.int64).reshape(n, channels).sum(
            1
        ) * layer.full
        return blind, blind
    taps = layer.windows.taps(x).astype(np.int64).reshape(n, -1)
    return np.asarray(taps @ layer.fan.reshape(-1)), taps.sum(1) * layer.full


def _fixed(x: Array, terms: int) -> Array:
    """Reals in integers of 1/FIXED; Python integers where a sum of `terms` of them could overflow int64."""
    scaled = np.rint(x * FIXED)
    if float(np.abs(scaled).max(initial=0)) * terms < 2.0**62:
        return np.asarray(scaled.astype(np.int64))
    return np.array([int(v) for v in scaled.reshape(-1)], dtype=object).reshape(x.shape)
