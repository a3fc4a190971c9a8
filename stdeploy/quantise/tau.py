"""tau of a layer's channels at most k different numbers: an approximation, so a step of its own that is measured.

A neuron charges h = u + (x - u) / tau, with u = v - v_reset (or h = u - u / tau + x where the input does not
decay). Both are linear in b = 1 / tau, so to first order a change of b moves the membrane of channel c by
(b' - b) g, g = x - u (or -u). Distances count in units of the neuron's range from reset to threshold:

    minimise  sum_c w_c (b'_c - b_c)^2    over at most k values of b',    w_c = mean of (g / (v_threshold - v_reset))^2

the mean being over samples, steps and positions of the user's data; without data w = 1. Weighting by the second
moment of what the parameter multiplies is what Hessian-weighted k-means does for weights (Choi et al., "Towards
the limit of network quantization", ICLR 2017). Channels that the exact passes remove, as DSP's silent ones, weigh
nothing: they take the nearest level and claim none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from stdeploy.errors import UserError
from stdeploy.graph.graph import Graph, GraphBuilder, Node, rewrite
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.ops import Neuron
from stdeploy.graph.weight import Array
from stdeploy.pairing import pairs
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.quantise.clusters import best_clusters

_LEAST_WEIGHT = 1e-9
"""Share of the largest weight below which a channel's is raised: sums of weights must not lose it to rounding."""


@dataclass(frozen=True)
class TauLayer:
    """One neuron layer: distinct tau before, the levels after (ascending), and how far tau moved, in steps."""

    distinct: int
    levels: tuple[float, ...]
    largest_change: float
    rms_change: float


@dataclass(frozen=True)
class TauRecord:
    """What a quantisation did; JSON-able. `weighted`: by the user's data. Layers whose tau is one number are absent."""

    levels: int
    weighted: bool
    layers: dict[str, TauLayer]

    @property
    def changed(self) -> list[str]:
        """Layers that had more than `levels` distinct tau."""
        return [name for name, layer in self.layers.items() if layer.distinct > len(layer.levels)]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def level_layer(tau: Array, levels: int, weights: Array | None = None) -> tuple[Array, TauLayer]:
    """`tau` [C] with at most `levels` distinct values, in its own dtype, and the record of it.

    `weights` [C] as in the module's docstring (None: equal). Where the weighing channels have no more distinct tau
    than `levels`, those keep their exact values; channels of weight 0 take the nearest level, unless all fit.
    UserError where levels < 1.
    """
    if levels < 1:
        raise UserError(f"tau cannot have {levels} levels", hint="one or more; NIR takes up to 16")
    distinct, place = np.unique(tau, return_inverse=True)
    if distinct.size <= levels:
        return tau, TauLayer(distinct.size, tuple(map(float, distinct)), 0.0, 0.0)
    given = np.ones(tau.size) if weights is None or not np.any(weights > 0) else weights
    given = np.where(given > 0, np.maximum(given, _LEAST_WEIGHT * given.max()), 0.0)
    mass = np.bincount(place, weights=given)
    live = distinct[mass > 0]
    chosen = _levels(live, mass[mass > 0], levels)
    rates = 1.0 / distinct.astype(np.float64)
    level = chosen[np.abs(rates[:, None] - 1.0 / chosen.astype(np.float64)).argmin(axis=1)]
    new: Array = level[place].reshape(tau.shape)
    moved = new.astype(np.float64) - tau
    kept = tuple(float(value) for value in np.unique(new))
    return new, TauLayer(distinct.size, kept, float(np.abs(moved).max()), float(np.sqrt(np.mean(moved**2))))


def _levels(tau: Array, mass: Array, levels: int) -> Array:
    """The best `levels` values, in tau's dtype, for distinct ascending tau of that mass."""
    rates = 1.0 / tau.astype(np.float64)
    cluster, _ = best_clusters(rates[::-1], mass[::-1], min(levels, tau.size))
    members = [cluster[::-1] == one for one in np.unique(cluster)]
    return np.array(
        [
            tau[m][0] if m.sum() == 1 else tau.dtype.type(1.0 / np.average(rates[m], weights=mass[m]))
            for m in members
        ]
    )


def quantise_graph(
    graph: Graph, levels: int, weights: Mapping[str, Array] | None = None, *, weighted: bool = False
) -> tuple[Graph, TauRecord]:
    """`graph` with at most `levels` distinct tau in every neuron layer.

    `weights`: by neuron name, [C], as `channel_weights` gives them; `weighted` says that data went into them. The
    metadata's "tau_levels" holds the record, so that every artefact of the graph does.
    """
    layers: dict[str, TauLayer] = {}

    def visit(builder: GraphBuilder, node: Node, inputs: tuple[str, ...]) -> str | None:
        if not isinstance(node.op, Neuron) or node.op.tau is None or node.op.tau.ndim == 0:
            return None
        tau, layers[node.name] = level_layer(node.op.tau, levels, (weights or {}).get(node.name))
        op = replace(node.op, tau=tau)
        return builder.add(op, inputs, name=node.name, source=node.source)

    rewritten = rewrite(graph, visit)
    record = TauRecord(levels, weighted, layers)
    return rewritten.with_metadata(tau_levels=record.to_dict()), record


def channel_weights(graph: Graph, batches: Sequence[Array] = ()) -> dict[str, Array]:
    """w_c, up to one factor, of every neuron layer with tau per channel; `batches` of inputs, if any, as data."""
    driven = _sensitivity(graph, batches) if batches else {}
    out = {}
    for pair in pairs(graph, run_pipeline(graph, PIPELINES["nir"]).graph):
        op = pair.source.op
        if isinstance(op, Neuron) and op.tau is not None and op.tau.ndim:
            live = np.ones(op.tau.size)
            if pair.exported is not None and pair.channels is not None:
                live = np.isin(np.arange(op.tau.size), pair.channels).astype(np.float64)
            out[pair.source.name] = live * driven.get(pair.source.name, 1.0)
    return out


def _sensitivity(graph: Graph, batches: Sequence[Array]) -> dict[str, Array]:
    """Sum over the samples of the mean over steps and positions, by layer, [C]."""
    total: dict[str, Array] = {}
    for batch in batches:
        run = interpret(graph, batch, membranes=True)
        for node in graph.neurons:
            if isinstance(node.op, Neuron) and node.op.tau is not None and node.op.tau.ndim:
                spikes = run.spikes[node.name]
                square = _driven(node.op, spikes, run.membranes[node.name])
                total[node.name] = total.get(node.name, 0.0) + square * spikes.shape[1]
    return total


def _driven(op: Neuron, spikes: Array, charged: Array) -> Array:
    """[C]: mean of (x - u)^2, or u^2 where the input does not decay, over (v_threshold - v_reset)^2."""

    def shaped(value: Array | None) -> Array:
        array = np.zeros(()) if value is None else value.astype(np.float64)
        return array.reshape(array.shape + (1,) * (charged.ndim - 3)) if array.ndim else array

    rest, threshold, tau = shaped(op.v_reset), shaped(op.v_threshold), shaped(op.tau)
    after = charged - spikes * threshold if op.v_reset is None else np.where(spikes, rest, charged)
    before = np.concatenate([np.broadcast_to(rest, charged[:1].shape), after[:-1]])
    gain = (charged - before) * tau if op.decay_input else before - rest
    scaled = gain / np.where(threshold > rest, threshold - rest, 1.0)
    mean: Array = np.mean(scaled**2, axis=tuple(i for i in range(charged.ndim) if i != 2))
    return mean
