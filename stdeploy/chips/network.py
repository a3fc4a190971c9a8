"""A NIR file as populations of neurons and the linear nodes between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nir
import numpy as np

from stdeploy.chips.connections import (
    Pair,
    Relation,
    Shape,
    identity_relation,
    kernel_relation,
    pool_relation,
)
from stdeploy.errors import UserError
from stdeploy.graph.weight import Array
from stdeploy.runtime.nir_file import NirFile

LONGEST_MEMORY = 2.0**29
"""tau, in steps, from which a LIF forgets nothing and counts as integrate-and-fire."""


@dataclass(frozen=True, eq=False)
class Population:
    """Neurons of one node. `layer`: the model's neuron layer that it is (part of), "" for an auxiliary unit."""

    name: str
    shape: Shape
    kind: str
    layer: str
    role: str

    @property
    def neurons(self) -> int:
        return int(np.prod(self.shape))


@dataclass(frozen=True, eq=False)
class Link:
    """A linear node: its relation, and its stored weights (None: a pool, whose weights are all `value`)."""

    relation: Relation
    weight: Array | None
    value: float = 1.0


@dataclass(eq=False)
class Network:
    """Nodes in topological order with what each reads; `input` and `output` are the ends."""

    populations: dict[str, Population] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)
    reads: dict[str, list[str]] = field(default_factory=dict)
    input: str = ""
    output: str = ""

    def order(self) -> Iterator[str]:
        """Names in the order in which they were added: topological."""
        yield from self.reads


def read_network(path: Path | str) -> Network:
    """The network of a NIR file that stdeploy wrote; UserError for another, or a node that cannot be counted."""
    file = NirFile(path)
    layer_of = {part.node: layer for layer, parts in file.parts.items() for part in parts}
    roles = file.metadata.get("roles", {})
    network = Network()
    shapes: dict[str, Shape] = {}
    for name, node in file.network.nodes.items():
        sources = network.reads[name] = file.network.sources[name]
        if isinstance(node, nir.Input):
            network.input, shapes[name] = name, _shape(node.input_type["input"])
            continue
        source = shapes[sources[0]]
        if isinstance(node, nir.Output):
            network.output, shapes[name] = name, source
        elif isinstance(node, nir.LIF | nir.Threshold):
            shapes[name] = source
            layer = layer_of.get(name, "")
            role = str(roles.get(name, "model"))
            network.populations[name] = Population(name, source, _kind(node, file.dt), layer, role)
        else:
            network.links[name] = _link(name, node, source, file.path)
            shapes[name] = network.links[name].relation.target
    return network


def _link(name: str, node: Any, source: Shape, path: Path) -> Link:
    if isinstance(node, nir.Conv2d):
        nonzero = np.asarray(node.weight) != 0
        stride, padding, dilation = (_pair(getattr(node, k)) for k in ("stride", "padding", "dilation"))
        relation = kernel_relation(nonzero, source, stride, padding, dilation, int(node.groups))
        return Link(relation, np.asarray(node.weight))
    if isinstance(node, nir.AvgPool2d):
        kernel, stride, padding = (_pair(getattr(node, k)) for k in ("kernel_size", "stride", "padding"))
        return Link(
            pool_relation(source, kernel, stride, padding),
            None,
            float(np.float32(1 / (kernel[0] * kernel[1]))),
        )
    raise UserError(
        f"{path}: {name} is a {type(node).__name__}, whose synapses are not counted",
        hint="files of stdeploy export --target nir hold Conv2d, AvgPool2d, LIF and Threshold",
    )


def _kind(node: Any, dt: float) -> str:
    """What a chip has to offer: LIF or IF, with a hard reset. A unit without memory is a LIF of the shortest tau."""
    if isinstance(node, nir.LIF) and float(np.min(node.tau)) >= LONGEST_MEMORY * dt:
        return "if-hard-reset"
    return "lif-hard-reset" if isinstance(node, nir.LIF) else "threshold"


def _pair(value: Any) -> Pair:
    y, x = (int(n) for n in np.broadcast_to(np.asarray(value), (2,)))
    return y, x


def _shape(value: Any) -> Shape:
    full = [*(int(n) for n in np.asarray(value).ravel()), 1, 1][:3]
    return full[0], full[1], full[2]


def reaches(network: Network) -> dict[str, dict[str, Relation]]:
    """For every population, by the population (or the input) that it reads: the synapses between the two."""
    through: dict[str, dict[str, Relation]] = {}
    out: dict[str, dict[str, Relation]] = {}
    for name in network.order():
        arriving: dict[str, Relation] = {}
        for source in network.reads[name]:
            paths = through[source] if source in network.links else {source: None}
            for origin, path in paths.items():
                found = path if path is not None else _own(network, name, source)
                arriving[origin] = arriving[origin].union(found) if origin in arriving else found
        if name in network.links:
            own = network.links[name].relation
            through[name] = {
                o: r if _plain(own) else (own if _plain(r) else own.after(r)) for o, r in arriving.items()
            }
        elif name in network.populations:
            out[name] = arriving
    return out


def _own(network: Network, name: str, source: str) -> Relation:
    """The identity on what `name` reads directly from a population or the input."""
    if source in network.populations:
        return identity_relation(network.populations[source].shape)
    shape = network.links[name].relation.source if name in network.links else network.populations[name].shape
    return identity_relation(shape)


def _plain(relation: Relation) -> bool:
    """Whether a relation connects every neuron with its equal and nothing else."""
    channels, height, width = relation.target
    return (
        relation.target == relation.source
        and relation.synapses == channels * height * width
        and bool((relation.fan_in == 1).all())
        and len(relation.positions) == 1
        and bool((np.diagonal(relation.index) == 0).all())
        and bool((relation.positions[0].keys == np.arange(height * width) * (height * width + 1)).all())
    )
