"""The branches of a neuron layer, one LIF node per tau, back into one node with a tau per channel.

stdeploy.exporters.nir writes such a layer as convolutions of some rows each, a LIF after each, one-hot 1x1
convolutions that put the channels in order, and edges into one node that adds them. The rows go back into one
convolution and the LIF nodes into one: channels do not see each other, so nothing else changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import nir
import numpy as np

from stdeploy.errors import UserError
from stdeploy.graph.weight import Array
from stdeploy.importers.nir.contract import Part
from stdeploy.importers.nir.network import Network, ordered


def merge(network: Network, layer: str, parts: Sequence[Part]) -> Network:
    """`network` with `parts` as one LIF node called `layer`; UserError where they are not wired so."""
    nodes, sources = dict(network.nodes), dict(network.sources)
    readers = network.readers()
    branches = [(p.node, np.arange(0) if p.channels is None else p.channels) for p in parts]
    channels = sum(len(rows) for _, rows in branches)
    if sorted(int(c) for _, rows in branches for c in rows) != list(range(channels)) or layer in nodes:
        raise UserError(f"{layer}: its branches do not hold each of its {channels} channels once")
    fed: dict[tuple[Any, ...], tuple[str, Any]] = {}
    for name, rows in branches:
        place = _only(layer, readers[name])
        if not sources[name]:
            raise UserError(f"{layer}: nothing feeds its branch {name}")
        for conv in sources[name]:
            own = isinstance(nodes[conv], nir.Conv2d) and readers[conv] == [name]
            sizes = {len(nodes[conv].weight), len(nodes[conv].bias)} if own else set()
            if sizes != {len(rows)} or nodes[conv].groups != 1:
                raise UserError(
                    f"{layer}: {conv}, which drives its branch {name}, is no convolution of its rows"
                )
            key = (
                tuple(sources[conv]),
                *(str(getattr(nodes[conv], k)) for k in ("stride", "padding", "dilation")),
            )
            first, sum_so_far = fed.get(key, (conv, None))
            fed[key] = (first, _added(sum_so_far, nodes[conv], rows, channels))
        for reader in readers[place]:
            sources[reader] = [s for s in sources[reader] if s != place]
            sources[reader] += [] if layer in sources[reader] else [layer]
    for name, _ in branches:
        for gone in (name, _only(layer, readers[name]), *sources[name]):
            nodes.pop(gone, None)
    nodes |= dict(fed.values())
    nodes[layer] = _lif([(network.nodes[name], rows) for name, rows in branches], channels)
    sources[layer] = [name for name, _ in fed.values()]
    return ordered(nodes, {name: sources[name] for name in nodes})


def _only(layer: str, readers: Sequence[str]) -> str:
    if len(readers) != 1:
        raise UserError(
            f"{layer}: a branch is read by {len(readers)} nodes instead of the one that orders it"
        )
    return readers[0]


def _added(total: Any, conv: Any, rows: Array, channels: int) -> Any:
    """A convolution's rows in their places, added to what is there."""
    weight = np.zeros((channels, *conv.weight.shape[1:]), dtype=conv.weight.dtype)
    bias = np.zeros(channels, dtype=conv.bias.dtype)
    weight[rows], bias[rows] = conv.weight, conv.bias
    if total is not None:
        weight, bias = weight + total.weight, bias + total.bias
    return replace(conv, weight=weight, bias=bias)


def _lif(parts: Sequence[tuple[Any, Array]], channels: int) -> Any:
    fields: Mapping[str, list[Array]] = {
        key: [np.asarray(getattr(lif, key)) for lif, _ in parts]
        for key in ("tau", "r", "v_leak", "v_threshold", "v_reset")
    }
    merged = {}
    for key, arrays in fields.items():
        merged[key] = np.zeros((channels, *arrays[0].shape[1:]), dtype=arrays[0].dtype)
        for array, (_, rows) in zip(arrays, parts, strict=True):
            merged[key][rows] = array
    return nir.LIF(**merged)
