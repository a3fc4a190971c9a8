"""What is decided before anything is emitted: which products merge, which come negated, which spikes go to heads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stdeploy.exporters.onnx.neuron import Unit, is_power_of_two, joined, unit_of
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.ops import Conv, Linear, MatMul, Neuron, Scale


@dataclass(frozen=True, eq=False)
class Group:
    """Linears that read one value and feed one neuron each: one Gemm and one run of neuron steps."""

    linears: tuple[Node, ...]
    neurons: tuple[Node, ...]
    unit: Unit


@dataclass(frozen=True, eq=False)
class Plan:
    """`groups` by the names of their members; `negated`: products emitted as -y, for a mirrored neuron.

    `factors`: what a matrix product is multiplied with where it is made, by name; such a product's
    Scale is `absorbed`. `heads`: (heads, channels of each) of neurons that only matrix products read.
    """

    groups: Mapping[str, Group]
    negated: frozenset[str]
    factors: Mapping[str, float]
    absorbed: frozenset[str]
    heads: Mapping[str, tuple[int, int]]


def plan(graph: Graph) -> Plan:
    """The decisions for `graph`."""
    users = graph.users()
    groups = {
        node.name: group for group in _groups(graph, users) for node in (*group.linears, *group.neurons)
    }
    negated, factors, absorbed = set[str](), dict[str, float](), set[str]()
    for node in graph.neurons:
        group = groups.get(node.name)
        unit = group.unit if group else unit_of(node, graph[node.inputs[0]].value.domain)
        chain = _sole_producers(graph, users, node)
        mirrored = unit is not None and unit.mirrored and graph.steps > 1
        if isinstance(chain[0].op, Linear | Conv) and mirrored:
            negated.add(chain[0].name)
        elif _is_rows(chain[-1]):
            scale = chain[0].op.factor if isinstance(chain[0].op, Scale) else 1.0
            factors[chain[-1].name] = -scale if mirrored else scale
            absorbed |= {n.name for n in chain[:-1]}
            if mirrored:
                negated.add(chain[0].name)
    heads = {n.name: found for n in graph.neurons if (found := _heads(n, users[n.name])) is not None}
    return Plan(groups, frozenset(negated), factors, frozenset(absorbed), heads)


def _sole_producers(graph: Graph, users: Mapping[str, list[Node]], neuron: Node) -> list[Node]:
    """The drive's node, where only the neuron reads it; behind a Scale by a power of two also its matrix product."""
    first = graph[neuron.inputs[0]]
    if len(users[first.name]) != 1:
        return [neuron]
    if isinstance(first.op, Scale) and is_power_of_two(first.op.factor):
        second = graph[first.inputs[0]]
        if _is_rows(second) and len(users[second.name]) == 1:
            return [first, second]
    return [first]


def _is_rows(node: Node) -> bool:
    """Whether it is a matrix product whose result has channels."""
    return isinstance(node.op, MatMul) and node.op.over in ("keys", "pairs")


def _groups(graph: Graph, users: Mapping[str, list[Node]]) -> list[Group]:
    found: dict[tuple[str, bool], list[tuple[Node, Node, Unit]]] = {}
    for node in graph.of(Linear):
        readers = users[node.name]
        per_step = isinstance(node.op, Linear) and node.op.bias is not None and node.op.bias.ndim == 2
        if len(readers) != 1 or not isinstance(readers[0].op, Neuron) or per_step:
            continue
        unit = unit_of(readers[0], node.value.domain)
        if unit is not None:
            found.setdefault((node.inputs[0], unit.hard), []).append((node, readers[0], unit))
    groups = []
    for members in found.values():
        if len(members) > 1:
            linears, neurons, units = zip(*members, strict=True)
            groups.append(Group(linears, neurons, joined(units, [n.value.shape[0] for n in linears])))
    return groups


def _heads(node: Node, readers: list[Node]) -> tuple[int, int] | None:
    """(heads, channels of each) where all readers are matrix products that split the channels so."""
    found = set[tuple[int, ...]]()
    for reader in readers:
        if not isinstance(reader.op, MatMul):
            return None
        sides = (reader.op.heads_a, reader.op.heads_b)
        if any(len(set(side)) > 1 for side in sides):
            return None
        found |= {side for side, name in zip(sides, reader.inputs, strict=True) if name == node.name}
    if len(found) != 1 or len(node.value.shape) < 2:
        return None
    (heads,) = found
    equal = len(set(heads)) == 1 and heads[0] > 0 and math.prod(node.value.shape[1:]) > 0
    return (len(heads), heads[0]) if equal else None
