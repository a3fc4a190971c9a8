"""What is known about each channel before the network runs: constant trains and equal channels.

A channel is *constant* where it has one value for all positions and samples at each step: a zero weight row
yields its bias, an Affine of a constant is one, and a neuron with a constant drive fires a fixed train that
its own equation gives (simulated, so every reset, tau and threshold is covered). Two channels are *equal*
where the same equations are applied to the same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from stdeploy.graph import Graph, GraphBuilder, Node
from stdeploy.graph.interpreter import interpret
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
from stdeploy.passes.arrays import f64
from stdeploy.passes.attention_order import Product, products

NEAR_THRESHOLD = 64 * float(np.finfo(np.float32).eps)
"""Relative distance of a membrane from its threshold below which float32 rounding may decide the spike."""


@dataclass(frozen=True, eq=False)
class Facts:
    """Per channel of one value: `constant` [C] bool, its `train` [T, C] (0 elsewhere), `label` [C].

    Channels of one label are equal. `near` [C]: constant drives whose spikes float32 rounding may change;
    they are not taken as constant.
    """

    constant: Array
    train: Array
    label: Array
    near: Array

    @property
    def silent(self) -> Array:
        """[C] constant and zero at every step."""
        return np.asarray(self.constant & ~np.any(self.train != 0, axis=0))

    def take(self, index: Array) -> Facts:
        return Facts(self.constant[index], self.train[:, index], self.label[index], self.near[index])


def head_slices(heads: tuple[int, ...]) -> Iterator[slice]:
    """Channels of each head."""
    for start, stop in pairwise(np.cumsum((0, *heads)).tolist()):
        yield slice(start, stop)


def head_of(heads: tuple[int, ...]) -> Array:
    """[C] head of each channel."""
    return np.repeat(np.arange(len(heads)), heads)


def channel_facts(graph: Graph) -> dict[str, Facts]:
    """Facts on axis 0 of every node's value; nothing is known inside a reordered product's pair axis."""
    facts: dict[str, Facts] = {}
    by_pairs = {p.second.name: p for p in products(graph) if _over(p.second) == "pairs"}
    for node in graph:
        known = _node_facts(graph, node, [facts[n] for n in node.inputs], facts, by_pairs)
        facts[node.name] = _labelled(known, np.where(known.constant, -1, known.label))
    return facts


def _over(node: Node) -> str:
    return node.op.over if isinstance(node.op, MatMul) else ""


def channels(node: Node) -> int:
    return node.value.shape[0] if node.value.shape else 1


def _unknown(graph: Graph, node: Node) -> Facts:
    count = channels(node)
    no = np.zeros(count, bool)
    return Facts(no, np.zeros((graph.steps, count)), np.arange(count), no)


def _constant(constant: Array, train: Array, label: Array | None = None) -> Facts:
    label = np.arange(constant.size) if label is None else label
    return Facts(constant, np.where(constant, train, 0.0), label, np.zeros(constant.size, bool))


def _labelled(facts: Facts, *columns: Array) -> Facts:
    """`facts` with labels that differ where any of `columns` [C] or a constant's train does."""
    trains = np.where(facts.constant, facts.train, 0.0)
    rows = np.stack([*(np.asarray(c, dtype=np.float64) for c in columns), *trains])
    return replace(facts, label=np.unique(rows, axis=1, return_inverse=True)[1].reshape(-1))


def _node_facts(
    graph: Graph, node: Node, given: list[Facts], facts: dict[str, Facts], by_pairs: dict[str, Product]
) -> Facts:
    op = node.op
    if isinstance(op, Linear | Conv):
        return _weighted(graph, op, given[0])
    if isinstance(op, Affine):
        (x,) = given
        return _labelled(
            _constant(x.constant, f64(op.scale) * x.train + f64(op.shift)), x.label, op.scale, op.shift
        )
    if isinstance(op, Neuron):
        return _fired(graph, node, op, given[0])
    if isinstance(op, Constant):
        value = f64(op.value if op.per_step else op.value[None])
        flat = value.reshape(value.shape[0], channels(node), -1)
        uniform = np.all(flat == flat[:, :, :1], axis=(0, 2))
        return _constant(uniform, np.broadcast_to(flat[:, :, 0], (graph.steps, flat.shape[1])))
    if isinstance(op, Scale):
        return _constant(given[0].constant, op.factor * given[0].train, given[0].label)
    if isinstance(op, MaxPool | Slice | Concat | Flatten | Select | Output | Readout):
        return _moved(graph, node, given)
    if isinstance(op, AvgPool):
        # Padded zeros or a cut window make a constant vary towards the border.
        even = not op.ceil_mode and not (op.count_include_pad and any(op.padding))
        constant = given[0].constant if even else given[0].silent
        return _constant(constant, given[0].train, given[0].label)
    if isinstance(op, Reduce) and 0 not in op.over:
        terms = int(np.prod([graph[node.inputs[0]].value.shape[a] for a in op.over]))
        return _constant(given[0].constant, given[0].train * (1 if op.mean else terms), given[0].label)
    if isinstance(op, Add | Mul):
        return _elementwise(op, *given)
    if isinstance(op, MatMul):
        return _product(graph, node, op, given, facts, by_pairs)
    return _unknown(graph, node)


def _weighted(graph: Graph, op: Linear | Conv, x: Facts) -> Facts:
    """A row is constant where every input it weighs is, and no padded zero meets a nonzero constant."""
    weight = f64(op.weight.array())
    out = weight.shape[0]
    bias = np.zeros(out) if op.bias is None else f64(op.bias)
    bias = np.broadcast_to(bias, (graph.steps, out))
    usable = x.silent if isinstance(op, Conv) and any(op.padding) else x.constant
    if isinstance(op, Conv) and op.groups > 1:
        return _grouped(op, x, usable, bias)
    sums = weight.reshape(out, weight.shape[1], -1)
    weighs = np.any(sums != 0, axis=2)
    constant = ~np.any(weighs & ~usable, axis=1)
    train = x.train @ np.where(usable, sums.sum(axis=2), 0.0).T
    return _constant(constant, train + bias)


def _grouped(op: Conv, x: Facts, usable: Array, bias: Array) -> Facts:
    """_weighted where row o reads the inputs of its own group only."""
    out, size = op.weight.shape[:2]
    columns = (np.arange(out) // (out // op.groups))[:, None] * size + np.arange(size)
    kernel = f64(op.weight.array()).reshape(out, size, -1)
    constant = ~np.any(np.any(kernel != 0, axis=2) & ~usable[columns], axis=1)
    held = np.where(usable[columns], kernel.sum(axis=2), 0.0)
    return _constant(constant, np.einsum("toi,oi->to", x.train[:, columns], held) + bias)


def _fired(graph: Graph, node: Node, op: Neuron, x: Facts) -> Facts:
    count = channels(node)
    spread = [
        np.broadcast_to(f64(p), (count,)) for p in (op.tau, op.v_threshold, op.v_reset) if p is not None
    ]
    train = np.zeros((graph.steps, count))
    near = np.zeros(count, bool)
    index = np.flatnonzero(x.constant)
    if index.size:
        train[:, index], near[index] = _simulate(op, x.train[:, index], index)
    fired = _labelled(_constant(x.constant & ~near, train), x.label, *spread)
    return replace(fired, near=near)


def _simulate(op: Neuron, drive: Array, index: Array) -> tuple[Array, Array]:
    """Spikes [T, n] of constant drives [T, n], and [n] where float32 rounding may change one."""
    tau, threshold, rest = (
        None if p is None else p[index] if p.ndim else p for p in (op.tau, op.v_threshold, op.v_reset)
    )
    if threshold is None:
        raise TypeError("a Neuron has a threshold")
    builder = GraphBuilder(drive.shape[0])
    x = builder.add(Input((index.size,), ("channel",), "TB"), name="drive")
    s = builder.add(Neuron(tau, threshold, rest, op.decay_input), (x,), name="spikes")
    builder.add(Output("output", "TB"), (s,), name="output")
    graph = builder.build()
    exact = interpret(graph, drive[:, None], membranes=True)
    rounded = interpret(graph, drive[:, None], dtype=np.float32)
    spikes, h = exact.spikes["spikes"][:, 0], exact.membranes["spikes"][:, 0]
    size = np.maximum(np.maximum(np.abs(h), np.abs(drive)), np.abs(threshold))
    near = np.any(np.abs(h - threshold) <= NEAR_THRESHOLD * size, axis=0)
    near |= np.any(spikes != rounded.spikes["spikes"][:, 0], axis=0)
    return spikes.astype(np.float64), near


def _moved(graph: Graph, node: Node, given: list[Facts]) -> Facts:
    """Operators that only move channels or keep a constant as it is."""
    op, x = node.op, given[0]
    if isinstance(op, Readout):
        over = x.train if op.mode != "last" else x.train[-1:]
        value = over.sum(axis=0) if op.mode == "sum" else over.mean(axis=0)
        return _constant(x.constant, np.broadcast_to(value, x.train.shape), x.label)
    if isinstance(op, Slice) and op.axis == 0:
        return x.take(np.arange(op.start, op.stop))
    if isinstance(op, Concat) and op.axis == 0:
        train = np.concatenate([g.train for g in given], axis=1)
        return _constant(np.concatenate([g.constant for g in given]), train)
    if isinstance(op, Concat):
        same = np.all([g.constant & np.all(g.train == x.train, axis=0) for g in given], axis=0)
        return _constant(same, x.train)
    if isinstance(op, Flatten) and not op.tokens:
        index = np.repeat(np.arange(x.constant.size), channels(node) // x.constant.size)
        return _constant(x.constant[index], x.train[:, index])  # positions of one channel differ
    return _constant(x.constant, x.train, x.label)


def _elementwise(op: Add | Mul, a: Facts, b: Facts) -> Facts:
    count = max(a.constant.size, b.constant.size)
    a, b = (x.take(np.zeros(count, int)) if x.constant.size != count else x for x in (a, b))
    if isinstance(op, Add):
        known = _constant(a.constant & b.constant, a.train + b.train)
    else:
        known = _constant((a.constant & b.constant) | a.silent | b.silent, a.train * b.train)
    return _labelled(known, a.label, b.label)


def _product(
    graph: Graph,
    node: Node,
    op: MatMul,
    given: list[Facts],
    facts: dict[str, Facts],
    by_pairs: dict[str, Product],
) -> Facts:
    a, b = given
    if op.over == "channels":
        train, constant = pair_trains(a, b), np.zeros(len(op.heads_a), bool)
        for h, channel in enumerate(head_slices(op.heads_a)):
            constant[h] = bool(np.all(~np.isnan(train[0, channel])))
        sums = np.stack([train[:, c].sum(axis=1) for c in head_slices(op.heads_a)], axis=1)
        return _constant(constant, np.nan_to_num(sums))
    if op.over == "keys":
        head = head_of(op.heads_b)
        return _labelled(_constant(b.silent | a.silent[head], 0.0 * b.train), b.label, head)
    if op.over == "pairs" and node.name in by_pairs:
        product = by_pairs[node.name]
        zero = np.all(pair_trains(facts[product.q], facts[product.k]) == 0, axis=0)
        empty = np.array([bool(np.all(zero[c])) for c in head_slices(product.head_q)])
        v, head = facts[product.v], head_of(product.head_v)
        return _labelled(_constant(v.silent | empty[head], 0.0 * v.train), v.label, head)
    return _unknown(graph, node)


def pair_trains(q: Facts, k: Facts) -> Array:
    """[T, C] products q_j[t] k_j[t] where they are constant (also where one of the two is silent), else NaN."""
    known = (q.constant & k.constant) | q.silent | k.silent
    return np.where(known, q.train * k.train, np.nan)
