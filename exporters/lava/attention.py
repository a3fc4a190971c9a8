"""Q (Kᵀ V) of spikes: one custom process, or stock units.

units: one memoryless unit for each (head, d, e, query n, key m) fires where q[d, n], k[d, m] and v[e, m] all spike;
y[e, n] = sum of them over d and m: H N² d e units. Exact, and for small nets only. The custom process computes the
same integers as matrix products in one step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from stdeploy.exporters.lava import linear_map
from stdeploy.exporters.lava.neuron import dynamics, lower_neuron, unit
from stdeploy.exporters.lava.options import Options
from stdeploy.exporters.lava.plan import HOP, Attention, Part, Population, Synapses, below
from stdeploy.exporters.lava.signal import Signal, Writer
from stdeploy.exporters.refusal import Refusal
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph
from stdeploy.graph.weight import Array
from stdeploy.passes.attention_order import Product


def joined_neurons(graph: Graph, product: Product) -> tuple[str, ...]:
    """q, k and v where all are neurons that only this product reads."""
    names = (product.q, product.k, product.v)
    users = graph.users()
    single = all(isinstance(graph[n].op, ops.Neuron) and len(users[n]) == 1 for n in names)
    return names if single and len(set(names)) == len(names) else ()


def lower_product(
    writer: Writer,
    graph: Graph,
    product: Product,
    signals: Mapping[str, Signal],
    waiting: Mapping[str, Signal],
    options: Options,
) -> Signal:
    """Counts of the product, `[Cv, N]`; the neurons before it where they waited for it."""
    names = (product.q, product.k, product.v)
    shapes = [graph[n].value.shape[1:] for n in names]
    if not shapes[0] == shapes[1] == shapes[2]:
        raise Refusal("queries and keys lie on different maps; only self-attention is lowered")
    tokens = int(np.prod(shapes[0]))
    pairs = sum(a * b for a, b in zip(product.head_q, product.head_v, strict=True))
    units = pairs * tokens * tokens
    if options.attention == "units" and units > options.max_units:
        raise Refusal(
            f"{pairs} pairs x {tokens}² tokens are {units} units, more than {options.max_units}",
            "--attention process, or raise max_units",
        )
    stock = options.attention == "units" or (options.attention == "auto" and units <= options.max_units)
    if not stock and all(n in waiting for n in names):
        together = _one_population(writer, graph, product, [waiting[n] for n in names])
        if together is not None:
            return together
    inputs = [
        lower_neuron(writer, graph[n], waiting[n]) if n in waiting else _spikes(writer, n, graph, signals[n])
        for n in names
    ]
    lower = _units if stock else _process
    return lower(writer, product, inputs, tokens)


def _spikes(writer: Writer, name: str, graph: Graph, signal: Signal) -> Signal:
    """What a port can carry: spikes that have an offset (1 - s) are fired anew."""
    spikes = signal.divided(graph[name].value.domain.scale)
    if spikes.offset is not None and spikes.offset.any():
        return unit(writer, name, [spikes], 0.5, "product")
    return writer.written(name, spikes)


def _process(writer: Writer, product: Product, inputs: list[Signal], tokens: int) -> Signal:
    ready = writer.aligned(inputs)
    ports = {port: signal.ports for port, signal in zip(("q", "k", "v"), ready, strict=True)}
    return _counts(writer, product, ports, ready[0].valid, tokens)


def _counts(
    writer: Writer, product: Product, ports: dict[str, tuple[str, ...]], valid: int, tokens: int
) -> Signal:
    process = Attention(product.head_q, product.head_v, tokens)
    name = writer.plan.add(product.second.name, process, ports, valid + HOP)
    return Signal((sum(product.head_v), tokens), (name,), valid + HOP)


def _one_population(writer: Writer, graph: Graph, product: Product, inputs: list[Signal]) -> Signal | None:
    """q, k, v of one source, one leak and one threshold as one Sparse and one population; None where they differ."""
    names = (product.q, product.k, product.v)
    if len({(s.ports, s.valid, s.scale) for s in inputs}) > 1 or any(s.map is None for s in inputs):
        return None
    if inputs[0].scale <= 0 or len({s.map.positions for s in inputs if s.map is not None}) > 1:
        return None
    rules = []
    for name, signal in zip(names, inputs, strict=True):
        op = graph[name].op
        if not isinstance(op, ops.Neuron):
            return None
        rules.append(dynamics(op, signal.channels, signal.scale))
    leaks = np.unique(np.concatenate([r.leak for r in rules]))
    if leaks.size > 1 or any(r.gain is not None for r in rules) or len({r.threshold for r in rules}) > 1:
        return None
    driven = [s.divided(s.scale) for s in inputs]
    stacked = linear_map.stacked([s.map for s in driven if s.map is not None])
    valid = driven[0].valid + HOP
    name = f"{product.q}+k+v"
    sparse = writer.plan.add(f"{name}.synapses", Synapses(stacked), {"s_in": driven[0].ports}, valid)
    offsets = [np.zeros(s.size) if s.offset is None else s.offset for s in driven]
    bias = np.concatenate(offsets) if any(o.any() for o in offsets) else None
    population = Population(sum(s.size for s in driven), float(leaks[0]), below(rules[0].threshold), bias)
    name = writer.plan.add(name, population, {"a_in": (sparse,)}, valid)
    start = 0
    for neuron, signal in zip(names, driven, strict=True):
        writer.plan.neurons[neuron] = [Part(name, start, start + signal.size)]
        start += signal.size
    return _counts(writer, product, {"qkv": (name,)}, valid, driven[0].positions)


def _units(writer: Writer, product: Product, inputs: list[Signal], tokens: int) -> Signal:
    q, k, v, y = (np.concatenate(parts) for parts in zip(*_triples(product, tokens), strict=True))
    shape = (q.size, 1)
    gates = [
        replace(signal, shape=(signal.size, 1)).mapped(linear_map.select(source, signal.size), shape)
        for signal, source in zip(inputs, (q, k, v), strict=True)
    ]
    fired = unit(writer, product.second.name, gates, 2.5, "attention")
    out = (sum(product.head_v), tokens)
    return fired.mapped(linear_map.total(y, out[0] * out[1]), out)


def _triples(product: Product, tokens: int) -> Iterator[tuple[Array, Array, Array, Array]]:
    """Entries of q, k, v and y that each unit of a head joins."""
    start_q = start_v = 0
    for a, b in zip(product.head_q, product.head_v, strict=True):
        d, e, n, m = (
            g.ravel() for g in np.meshgrid(*(np.arange(s) for s in (a, b, tokens, tokens)), indexing="ij")
        )
        yield (
            (start_q + d) * tokens + n,
            (start_q + d) * tokens + m,
            (start_v + e) * tokens + m,
            (start_v + e) * tokens + n,
        )
        start_q, start_v = start_q + a, start_v + b
