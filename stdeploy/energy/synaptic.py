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
    kind, name = input_class(signals.graph, layer.input), layer.input
    rows = signals.rows(name)
    nonzero = signals.operand(name, rows, signals.nonzero(name))
    events = signals.once(("events", name), lambda: per_sample(nonzero))
    synops, blind = _reached(layer, signals, nonzero, 1)
    if kind == "binary":
        return _quantities(events, np.zeros_like(events), events, synops, synops, blind, blind)
    if kind == "count":
        units = signals.operand(name, rows, signals.units(name))
        largest = signals.once(("largest", name), lambda: int(units.max(initial=0)))
        unary, blind_sum = _reached(layer, signals, units, largest) if largest > 1 else (synops, blind)
        several = signals.once(("several", name), lambda: per_sample(units > 1))
        magnitude = signals.once(("magnitude", name), lambda: per_sample(units))
        return _quantities(events, several, magnitude, synops, unary, blind, blind_sum)
    fixed = _fixed(signals.real(name), layer.constants["dense"] * signals.graph.steps)
    fixed = signals.operand(name, rows, fixed).reshape(*nonzero.shape[:3], *layer.windows.shape)
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


def _reached(layer: Synapses, signals: Signals, x: Array, largest: int) -> tuple[Array, Array]:
    """Sums of `x [rows, B, C, *positions]` over its synapses, and over all connections (zero weights too)."""
    windows, taps = layer.windows, not layer.is_dense
    events, fan = (
        signals.once(
            ("taps" if taps else "sums", layer.input, largest, windows.key),
            lambda: _summed(windows, x, largest, taps),
        ),
        layer.fan.reshape(-1),
    )
    synops = events @ fan if taps else events[..., 0] * layer.full
    return synops, events.sum(-1) * layer.full


def _summed(windows: Windows, x: Array, largest: int, taps: bool) -> Array:
    """`[rows, B, C * taps]` sums of `x` over what each tap reads, or `[rows, B, 1]` over all of them; int64."""
    rows, batch, channels = x.shape[:3]
    kind = float_for(max(1, largest * windows.reach.size * int(windows.reach.max(initial=0))))
    samples = x.reshape(rows * batch, channels, *windows.shape)
    size = max(1, CHUNK // max(1, channels * windows.reach.size))
    parts = []
    for start in range(0, rows * batch, size):
        part = samples[start : start + size].astype(kind)
        if taps:
            parts.append(windows.taps(part).astype(np.int64).reshape(len(part), -1))
        else:
            summed = part.reshape(len(part) * channels, -1) @ windows.reach.reshape(-1).astype(kind)
            parts.append(summed.astype(np.int64).reshape(len(part), channels).sum(1)[:, None])
    return np.concatenate(parts).reshape(rows, batch, -1)


def _fixed(x: Array, terms: int) -> Array:
    """Reals in integers of 1/FIXED; Python integers where a sum of `terms` of them could overflow int64."""
    scaled = np.rint(x * FIXED)
    if float(np.abs(scaled).max(initial=0)) * terms < 2.0**62:
        return np.asarray(scaled.astype(np.int64))
    return np.array([int(v) for v in scaled.reshape(-1)], dtype=object).reshape(x.shape)
