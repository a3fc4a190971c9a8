"""Rebuild a graph with the channels that must stay, readers holding the numbers of those that go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stdeploy.graph import Graph, GraphBuilder, Node, Weight, rewrite
from stdeploy.graph.ops import (
    Add,
    Affine,
    Constant,
    Conv,
    Linear,
    MatMul,
    Mul,
    Neuron,
    Op,
    Reduce,
    Scale,
    Slice,
)
from stdeploy.graph.weight import Array
from stdeploy.passes.arrays import f64
from stdeploy.passes.channel_facts import head_of, head_slices, pair_trains
from stdeploy.passes.channel_needs import Needs


def slice_channels(graph: Graph, needs: Needs) -> tuple[Graph, list[str]]:
    """`graph` without the channels that `needs` lets go, and notes on the numbers that readers took over."""
    slicer = _Slicer(needs)
    return rewrite(graph, slicer.visit), slicer.notes


def constant_op(train: Array, trailing: tuple[str, ...]) -> Constant:
    """Constant of `train [T, C]` with size-1 axes `trailing[1:]` behind; stored once where it never changes."""
    value = train.reshape(*train.shape, *([1] * (len(trailing) - 1)))
    same = bool(np.all(train == train[:1]))
    return Constant(value[0] if same else value, trailing, per_step=not same)


class _Slicer:
    def __init__(self, needs: Needs) -> None:
        self.needs = needs
        self.notes: list[str] = []
        self.first = {p.first.name: p for p in needs.pairs.values()}
        self.values: dict[str, str] = {}

    def kept(self, name: str) -> Array:
        return np.flatnonzero(self.needs.of[name])

    def visit(self, builder: GraphBuilder, node: Node, inputs: tuple[str, ...]) -> str | None:
        op = node.op
        if isinstance(op, MatMul):
            return self._product(builder, node, op, inputs)
        if isinstance(op, Reduce) and 0 in op.over:
            return self._reduced(builder, node, op, inputs)
        new = self._sliced(node)
        return None if new is None else builder.add(new, inputs, name=node.name, source=node.source)

    def _sliced(self, node: Node) -> Op | None:
        op = node.op
        if isinstance(op, Linear | Conv):
            return self._weighted(node, op)
        keep = self.kept(node.name)
        if isinstance(op, Slice) and op.axis == 0:
            start = int(self.needs.of[node.inputs[0]][: op.start].sum())
            return Slice(0, start, start + keep.size)
        if self.needs.of[node.name].all():
            return None
        if isinstance(op, Affine):
            return Affine(op.scale[keep], op.shift[keep])
        if isinstance(op, Neuron):
            tau, threshold, rest = (
                p if p is None or not p.ndim else p[keep] for p in (op.tau, op.v_threshold, op.v_reset)
            )
            kept = keep if op.kept is None else op.kept[keep]
            return replace(
                op,
                tau=tau,
                v_threshold=op.v_threshold if threshold is None else threshold,
                v_reset=rest,
                kept=kept,
            )
        if isinstance(op, Constant):
            return replace(op, value=op.value[:, keep] if op.per_step else op.value[keep])
        return None

    def _weighted(self, node: Node, op: Linear | Conv) -> Op | None:
        rows, columns = self.needs.of[node.name], self.needs.of[node.inputs[0]]
        if rows.all() and columns.all():
            return None
        values = op.weight.array()[rows]
        bias = None if op.bias is None else op.bias[..., rows]
        if isinstance(op, Conv) and op.groups > 1:
            return replace(op, weight=_like(op.weight, values), bias=bias, groups=int(rows.sum()))
        gone = ~columns & np.any(values.reshape(*values.shape[:2], -1) != 0, axis=(0, 2))
        held = gone & self.needs.held(node)
        merged = np.flatnonzero(gone & ~held)
        if merged.size:
            values = f64(values).copy()
            for j, stand_in in zip(merged, self.needs.stand_in(node)[merged], strict=True):
                values[:, stand_in] += values[:, j]
            self.notes.append(f"{node.name}: {merged.size} weight columns joined those of equal channels")
        if held.any():
            summed = f64(values).reshape(*values.shape[:2], -1).sum(axis=2)[:, held]
            train = self.needs.facts[node.inputs[0]].train[:, held] @ summed.T
            same = bool(np.all(train == train[:1]))
            addend = train[0] if same else train
            bias = addend if bias is None else f64(bias) + addend
            fired = int(self.needs.facts[node.inputs[0]].train[:, held].any(axis=0).sum())
            if fired:
                self.notes.append(
                    f"{node.name}: {fired} constant channels joined the bias{'' if same else ', per step'}"
                )
        return replace(op, weight=_like(op.weight, values[:, columns]), bias=bias)

    def _reduced(self, builder: GraphBuilder, node: Node, op: Reduce, inputs: tuple[str, ...]) -> str | None:
        source, need = node.inputs[0], self.needs.of[node.inputs[0]]
        if need.all():
            return None
        name = builder.add(op, inputs, name=node.name, source=node.source)
        terms = int(np.prod([self.needs.graph[source].value.shape[a] for a in op.over if a != 0]))
        total = terms * self.needs.facts[source].train[:, ~need].sum(axis=1)
        if not total.any():
            return name
        self.notes.append(f"{node.name}: {int((~need).sum())} constant channels joined the sum as a constant")
        rank = len(node.value.shape)
        same = bool(np.all(total == total[0]))
        value = total.reshape(-1, *([1] * rank))
        constant = Constant(value[0] if same else value, node.value.axes, per_step=not same)
        return self._add(builder, node, name, builder.add(constant, name=f"{node.name}.constant"))

    def _add(self, builder: GraphBuilder, node: Node, a: str, b: str) -> str:
        return builder.add(Add(), (a, b), name=f"{node.name}.with_constant", source=node.source)

    def _product(self, builder: GraphBuilder, node: Node, op: MatMul, inputs: tuple[str, ...]) -> str | None:
        of = self.needs.of
        if op.over == "channels":
            return self._scores(builder, node, op, inputs)
        if op.over == "keys":
            live = of[node.inputs[0]]
            heads = tuple(_sizes(op.heads_b, of[node.inputs[1]])[live].tolist())
            return builder.add(replace(op, heads_b=heads), inputs, name=node.name, source=node.source)
        product = self.first.get(node.name) or self.needs.pairs.get(node.name)
        if product is None:
            return None
        sizes_q, sizes_v = _sizes(product.head_q, of[product.q]), _sizes(product.head_v, of[product.v])
        live = (sizes_q > 0) & (sizes_v > 0)
        new = replace(op, heads_a=tuple(sizes_q[live].tolist()), heads_b=tuple(sizes_v[live].tolist()))
        name = builder.add(new, inputs, name=node.name, source=node.source)
        if op.over == "tokens":
            self.values[product.second.name] = inputs[1]
            return name
        counts = self._counts(node, product.q, product.k, product.head_q)[:, head_of(product.head_v)]
        counts = counts[:, of[product.v]]
        if not counts.any():
            return name
        v = self.values[node.name]
        axes = tuple(range(1, len(builder.value(v).shape)))
        total = builder.add(Reduce(axes, False, True), (v,), name=f"{node.name}.values", source=node.source)
        constant = builder.add(constant_op(counts, node.value.axes), name=f"{node.name}.constant")
        term = builder.add(Mul(), (total, constant), name=f"{node.name}.term", source=node.source)
        if product.factor != 1.0:
            term = builder.add(Scale(product.factor), (term,), name=f"{node.name}.term", source=node.source)
        return self._add(builder, node, name, term)

    def _scores(self, builder: GraphBuilder, node: Node, op: MatMul, inputs: tuple[str, ...]) -> str:
        q, k = node.inputs
        live = self.needs.of[node.name]
        heads = tuple(_sizes(op.heads_a, self.needs.of[q])[live].tolist())
        new = replace(op, heads_a=heads, heads_b=heads)
        name = builder.add(new, inputs, name=node.name, source=node.source)
        counts = self._counts(node, q, k, op.heads_a)[:, live]
        if not counts.any():
            return name
        constant = builder.add(constant_op(counts, node.value.axes), name=f"{node.name}.constant")
        return self._add(builder, node, name, constant)

    def _counts(self, node: Node, q: str, k: str, heads: tuple[int, ...]) -> Array:
        """c_h[t] [T, H] of the constant pairs that go."""
        trains = np.nan_to_num(pair_trains(self.needs.facts[q], self.needs.facts[k]))
        trains[:, self.needs.of[q]] = 0.0
        fired = int(trains.any(axis=0).sum())
        if fired:
            self.notes.append(f"{node.name}: {fired} constant q, k pairs joined their heads as a constant")
        return np.stack([trains[:, c].sum(axis=1) for c in head_slices(heads)], axis=1)


def _sizes(heads: tuple[int, ...], need: Array) -> Array:
    """[H] channels of each head that stay."""
    return np.array([int(need[c].sum()) for c in head_slices(heads)], dtype=int)


def _like(weight: Weight, values: Array) -> Weight:
    return Weight.csr(values) if weight.is_csr else Weight.dense(values)
