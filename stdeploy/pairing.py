"""Which neuron and which channel of the exported network is which of the model's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from stdeploy.errors import UserError
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.ops import Neuron
from stdeploy.graph.weight import Array


@dataclass(frozen=True, eq=False)
class Pair:
    """A neuron layer of the reference with the exported one; `channels` picks the kept channels (None: all)."""

    source: Node
    exported: Node | None
    channels: Array | None


def pairs(graph: Graph, exported: Graph) -> Iterator[Pair]:
    """Every neuron layer of `graph` with its remains in `exported`, by name.

    UserError where `exported` has a neuron or a channel that `graph` lacks.
    """
    names: Mapping[str, Node] = {n.name: n for n in exported.neurons}
    strange = sorted(set(names) - {n.name for n in graph.neurons})
    if strange:
        raise UserError(f"the artefact has neurons that the model does not have: {', '.join(strange)}")
    for node in graph.neurons:
        other = names.get(node.name)
        yield Pair(node, other, _channels(node, other) if other is not None else None)


def _channels(source: Node, exported: Node) -> Array | None:
    """Channels of `source` that `exported` still has, as indices into `source`'s (None: all, in order)."""
    have, want = neuron_of(source).kept, neuron_of(exported).kept
    total = source.value.shape[0]
    if want is None:
        if source.value.shape != exported.value.shape:
            raise UserError(
                f"{source.name} has shape {source.value.shape}, exported {exported.value.shape}, "
                "and no record of which channels were kept"
            )
        return None
    places = {int(c): i for i, c in enumerate(have if have is not None else range(total))}
    strange = [int(c) for c in want if int(c) not in places]
    if strange:
        raise UserError(f"{exported.name} keeps channels {strange}, which the model's {source.name} lacks")
    chosen = np.array([places[int(c)] for c in want], dtype=np.int64)
    return None if np.array_equal(chosen, np.arange(total)) else chosen


def neuron_of(node: Node) -> Neuron:
    """The node's operator; TypeError where it is no neuron."""
    if not isinstance(node.op, Neuron):
        raise TypeError(f"{node.name} is not a Neuron")
    return node.op


def take(array: Array, channels: Array | None) -> Array:
    """Channels of `[T, B, C, *]`."""
    return array if channels is None else np.take(array, channels, axis=2)


def select(op: Neuron, channels: Array | None) -> Neuron:
    """`op` with only the given channels' parameters."""

    def pick(parameter: Array) -> Array:
        return parameter[channels] if channels is not None and parameter.ndim else parameter

    return replace(
        op,
        tau=None if op.tau is None else pick(op.tau),
        v_threshold=pick(op.v_threshold),
        v_reset=None if op.v_reset is None else pick(op.v_reset),
    )


def threshold_of(op: Neuron, ndim: int) -> Array:
    """The threshold, shaped to broadcast over `[T, B, C, *]` of `ndim` axes, float64."""
    value = np.asarray(op.v_threshold, dtype=np.float64)
    return value.reshape(-1, *([1] * (ndim - 3))) if value.ndim else value
