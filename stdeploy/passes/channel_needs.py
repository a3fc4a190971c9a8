"""Which channels must stay: those that some reader needs and cannot have as a number instead.

A reader does not need a channel that it weighs with zero, or whose constant it can hold itself:

    Linear, Conv   sum_j W[:, j] s_j[t] joins the bias (a convolution that pads: only s_j = 0 does)
    Q K^T          sum_j q_j[t] k_j[t] of constant pairs joins each head as one number c_h[t]
    sum over C     sum_j s_j[t] joins as one number

or that equals another channel whose weights can take its own too. Needs run against the arrows, and along
every operator that works channel by channel both ways: a residual stream keeps a channel in all its parts.
Per head at least one q, k pair stays while its v does, and every tensor keeps at least one channel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from stdeploy.graph import Graph, Node
from stdeploy.graph.ops import (
    Add,
    Affine,
    AvgPool,
    Concat,
    Constant,
    Conv,
    Flatten,
    Input,
    Linear,
    MatMul,
    MaxPool,
    Mul,
    Neuron,
    Output,
    Readout,
    Reduce,
    Scale,
    Select,
    Slice,
)
from stdeploy.graph.weight import Array
from stdeploy.passes.attention_order import Product, products
from stdeploy.passes.channel_facts import Facts, channel_facts, channels, head_of, head_slices, pair_trains

Constants = Literal["fold", "keep"]


@dataclass
class Needs:
    """`of[name]` [C] bool: channels of each value that must stay.

    `constants`: "fold" lets readers hold numbers per step; "keep" only numbers that are the same at every
    step, for targets whose biases cannot change over time.
    """

    graph: Graph
    constants: Constants
    facts: dict[str, Facts] = field(init=False)
    of: dict[str, Array] = field(init=False)
    pairs: dict[str, Product] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.graph
        self.facts = channel_facts(graph)
        self.of = {node.name: np.zeros(channels(node), bool) for node in graph}
        self.pairs = {p.second.name: p for p in products(graph) if _over(p.second) == "pairs"}
        self.inside = {n.name for p in self.pairs.values() for n in (p.first, *p.scales)}
        self._matrices: dict[str, Array] = {}
        self._settle()
        for node in graph:
            if not self.of[node.name].any() and node.name not in self.inside:
                self.of[node.name][:1] = True
                self._settle()

    def held(self, node: Node) -> Array:
        """[C] channels of `node`'s input that it can hold as a number: Linear, Conv and sums over channels."""
        x, op = self.facts[node.inputs[0]], node.op
        known = (
            x.constant if self.constants == "fold" else x.constant & np.all(x.train == x.train[:1], axis=0)
        )
        if isinstance(op, Conv) and (any(op.padding) or op.groups > 1):
            return x.silent
        if isinstance(op, Reduce):  # a target without biases per step has no constants to add either
            return (known if self.constants == "fold" else x.silent) & (not op.mean)
        return known

    def held_pairs(self, q: str, k: str) -> Array:
        """[C] pairs of q and k channels whose product is a number that the scores can hold."""
        trains = pair_trains(self.facts[q], self.facts[k])
        return np.asarray(np.all(trains == 0, axis=0) if self.constants == "keep" else ~np.isnan(trains[0]))

    def stand_in(self, node: Node) -> Array:
        """[C] for each channel of `node`'s input the first needed channel that equals it (-1: none)."""
        name = node.inputs[0]
        label, needed = self.facts[name].label, self.of[name]
        out = np.full(label.size, -1)
        for c in np.flatnonzero(needed)[::-1]:
            out[label == label[c]] = c
        return out

    def _settle(self) -> None:
        nodes = list(reversed(list(self.graph)))
        before = -1
        while (after := sum(int(need.sum()) for need in self.of.values())) != before:
            before = after
            for node in nodes:
                if node.name not in self.inside:
                    self._visit(node)

    def _visit(self, node: Node) -> None:
        op, need = node.op, self.of
        if isinstance(op, Input | Output):
            for name in (node.name, *node.inputs):
                need[name][:] = True
        elif isinstance(op, Linear | Conv):
            self._weighted(node, op)
        elif isinstance(op, Affine | Neuron | MaxPool | AvgPool | Scale | Readout):
            self._tie(node.name, node.inputs[0])
        elif isinstance(op, Add | Mul):
            for name in node.inputs:
                if need[name].size == need[node.name].size:
                    self._tie(node.name, name)
                else:
                    need[name][:] = True
                    need[node.name][:] = True
        elif isinstance(op, Reduce):
            self._reduced(node, op)
        elif isinstance(op, MatMul):
            self._product(node, op)
        elif isinstance(op, Flatten | Slice | Concat):
            self._moved(node, op)
        elif isinstance(op, Select):  # which tokens stay is the same for every channel
            self._tie(node.name, node.inputs[0])
            need[node.inputs[1]][:] = True
        elif not isinstance(op, Constant):
            raise TypeError(f"{node.name}: no rule for {node.kind}")

    def _tie(self, a: str, b: str) -> None:
        either = self.of[a] | self.of[b]
        self.of[a][:] = either
        self.of[b][:] = either

    def _weighted(self, node: Node, op: Linear | Conv) -> None:
        x = self.of[node.inputs[0]]
        if isinstance(op, Conv) and op.groups > 1:
            if op.weight.shape[0] == op.groups == x.size:
                self._tie(node.name, node.inputs[0])  # depthwise: channel by channel
            else:
                x[:] = True
                self.of[node.name][:] = True
            return
        if node.name not in self._matrices:
            weight = op.weight.array()
            self._matrices[node.name] = np.any(weight.reshape(*weight.shape[:2], -1) != 0, axis=2)
        weighs = self._matrices[node.name][self.of[node.name]].any(axis=0) & ~self.held(node)
        label = self.facts[node.inputs[0]].label
        for value in np.setdiff1d(label[weighs], label[x]):
            x[np.flatnonzero(weighs & (label == value))[0]] = True

    def _reduced(self, node: Node, op: Reduce) -> None:
        x = self.of[node.inputs[0]]
        if 0 not in op.over:
            self._tie(node.name, node.inputs[0])
            return
        self.of[node.name][:] = True
        x |= ~self.held(node)

    def _product(self, node: Node, op: MatMul) -> None:
        need = self.of
        a, b = node.inputs
        if op.over == "channels":
            self._query_key(a, b, op.heads_a, need[node.name])
        elif op.over == "keys":
            self._values(b, node.name, op.heads_b, need[a])
        elif op.over == "pairs" and node.name in self.pairs:
            product = self.pairs[node.name]
            heads = np.zeros(len(product.head_v), bool)
            self._values(product.v, node.name, product.head_v, heads)
            self._query_key(product.q, product.k, product.head_q, heads)
            # A head whose q is kept for another reader keeps a v, so that both head lists stay aligned.
            for h, channel in enumerate(head_slices(product.head_q)):
                heads[h] |= bool(need[product.q][channel].any())
            self._values(product.v, node.name, product.head_v, heads)
        else:  # a neuron or another reader between the two products: its channels are pairs
            for name in (a, b, node.name):
                need[name][:] = True

    def _query_key(self, q: str, k: str, heads: tuple[int, ...], wanted: Array) -> None:
        """Needs of q and k where `wanted` [H] are the heads whose scores are read."""
        need, free = self.of, self.held_pairs(q, k)
        need[q] |= wanted[head_of(heads)] & ~free
        self._tie(q, k)
        fires: Array = np.nan_to_num(pair_trains(self.facts[q], self.facts[k])).max(axis=0)
        for h, channel in enumerate(head_slices(heads)):
            if wanted[h] and not need[q][channel].any() and channel.stop > channel.start:
                need[q][channel.start + int(np.argmax(fires[channel]))] = True
            elif need[q][channel].any():
                wanted[h] = True
        self._tie(q, k)

    def _values(self, v: str, out: str, heads: tuple[int, ...], wanted: Array) -> None:
        """Needs of v and of the product's output; marks the heads that are read in `wanted` [H]."""
        self._tie(v, out)
        for h, channel in enumerate(head_slices(heads)):
            if self.of[v][channel].any():
                wanted[h] = True
            elif wanted[h] and channel.stop > channel.start:
                self.of[v][channel.start] = True
        self._tie(v, out)

    def _moved(self, node: Node, op: Flatten | Slice | Concat) -> None:
        need, y = self.of, self.of[node.name]
        if isinstance(op, Flatten) and op.tokens:
            self._tie(node.name, node.inputs[0])
        elif isinstance(op, Flatten):
            x = need[node.inputs[0]]
            x |= y.reshape(x.size, -1).any(axis=1)
            y[:] = np.repeat(x, y.size // x.size)
        elif op.axis != 0:
            for name in node.inputs:
                self._tie(node.name, name)
        elif isinstance(op, Slice):
            x = need[node.inputs[0]]
            x[op.start : op.stop] |= y
            y |= x[op.start : op.stop]
        else:
            start = 0
            for name in node.inputs:
                part = slice(start, start + need[name].size)
                need[name] |= y[part]
                y[part] |= need[name]
                start = part.stop


def _over(node: Node) -> str:
    return node.op.over if isinstance(node.op, MatMul) else ""
