"""The four products of matrix attention; equal heads in one batched MatMul, ragged heads one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stdeploy.exporters.onnx.layout import Layouts, Lowered
from stdeploy.graph.graph import Node
from stdeploy.graph.ops import Constant, MatMul
from stdeploy.graph.value import Value


def emit_matmul(
    layouts: Layouts, node: Node, op: MatMul, a: Lowered, b: Lowered, factor: float | None
) -> Lowered:
    """Product of `a` and `b` as maps, pairs, or token rows.

    With `factor`, which multiplies it, only a neuron reads it: what has equal heads stays split into them.
    """
    return getattr(_Product(layouts, node, op, a, b, factor), op.over)()  # type: ignore[no-any-return]


def _equal(heads: tuple[int, ...]) -> bool:
    return len(set(heads)) == 1 and heads[0] > 0


class _Product:
    def __init__(
        self, layouts: Layouts, node: Node, op: MatMul, a: Lowered, b: Lowered, factor: float | None
    ) -> None:
        self.layouts, self.em, self.name = layouts, layouts.emitter, node.name
        self.node, self.op, self.a, self.b, self.factor = node, op, a, b, factor
        self.step = node.value.time == "step"

    def channels(self) -> Lowered:
        heads = self.op.heads_a
        n, m = math.prod(self.a.value.shape[1:]), math.prod(self.b.value.shape[1:])
        if _equal(heads):
            q, k = self.all_heads(self.a, heads, "a"), self.all_heads(self.b, heads, "b", swap=True)
            y = self.em.op("MatMul", [q, k], self.name)
        else:
            qs, ks = self.each_head(self.a, heads, "a"), self.each_head(self.b, heads, "b", swap=True)
            maps = [self.product(q, k, (n, m), h) for h, (q, k) in enumerate(zip(qs, ks, strict=True))]
            maps = [self.em.reshape(x, (-1, 1, n, m), self.name) for x in maps]
            y = self.join(maps, 1)
        return Lowered(self.node.value, {"maps": y}, sizes=(len(heads), n, m))

    def keys(self) -> Lowered:
        heads = self.op.heads_b
        m = math.prod(self.b.value.shape[1:])
        n = math.prod(self.a.value.shape[1:]) // m
        maps = self.grouped(self.a, "maps", (len(heads), n, m))
        if _equal(heads):
            return self.rows(
                self.em.op("MatMul", [maps, self.all_heads(self.b, heads, "b")], self.name), heads
            )
        each = self.em.split(maps, [1] * len(heads), 1, f"{self.name}/maps")
        each = [self.em.reshape(x, (-1, n, m), self.name) for x in each]
        values = self.each_head(self.b, heads, "b")
        pairs = zip(each, values, heads, strict=True)
        return self.ragged_rows([self.product(x, v, (n, e), h) for h, (x, v, e) in enumerate(pairs) if e])

    def tokens(self) -> Lowered:
        heads_a, heads_b = self.op.heads_a, self.op.heads_b
        if _equal(heads_a) and _equal(heads_b):
            k, v = self.all_heads(self.a, heads_a, "a", swap=True), self.all_heads(self.b, heads_b, "b")
            y = self.em.op("MatMul", [k, v], self.name)
            return Lowered(self.node.value, {"pairs": y}, sizes=(len(heads_a), heads_a[0], heads_b[0]))
        ks, vs = self.each_head(self.a, heads_a, "a", swap=True), self.each_head(self.b, heads_b, "b")
        shapes = list(zip(heads_a, heads_b, strict=True))
        heads = enumerate(zip(ks, vs, shapes, strict=True))
        parts = [self.product(k, v, (d, e), h) if d and e else "" for h, (k, v, (d, e)) in heads]
        return Lowered(self.node.value, parts=tuple(zip(parts, shapes, strict=True)))

    def pairs(self) -> Lowered:
        heads_a, heads_b = self.op.heads_a, self.op.heads_b
        n = math.prod(self.a.value.shape[1:])
        if _equal(heads_a) and _equal(heads_b):
            matrix = self.grouped(self.b, "pairs", (len(heads_a), heads_a[0], heads_b[0]))
            y = self.em.op("MatMul", [self.all_heads(self.a, heads_a, "a"), matrix], self.name)
            return self.rows(y, heads_b)
        queries = self.each_head(self.a, heads_a, "a")
        heads = enumerate(zip(queries, self.matrices(), heads_b, strict=True))
        return self.ragged_rows([self.product(q, x, (n, e), h) for h, (q, x, e) in heads if e])

    def matrices(self) -> list[str]:
        """[lead, d, e] of every head; "" where that is empty."""
        shapes = list(zip(self.op.heads_a, self.op.heads_b, strict=True))
        static = self.step and self.b.value.time == "static"
        if self.b.parts and not static and [shape for _, shape in self.b.parts] == shapes:
            return [part for part, _ in self.b.parts]
        flat = self.layouts.read(self.b, "first", self.name, step=self.step)
        parts = self.pick(flat, [d * e for d, e in shapes], 1, f"{self.name}/pairs")
        pairs = zip(parts, shapes, strict=True)
        return [self.em.reshape(x, (-1, *shape), self.name) if x else "" for x, shape in pairs]

    def all_heads(self, x: Lowered, heads: tuple[int, ...], label: str, *, swap: bool = False) -> str:
        """[lead, H, N, d], or [lead, H, d, N] with `swap`."""
        h, d, n = len(heads), heads[0], math.prod(x.value.shape[1:])
        name = f"{self.name}/{label}"
        if x.native == "heads" and x.sizes == (h, n, d):
            tensor = self.layouts.read(x, "heads", name, step=self.step)
            return self.em.transpose(tensor, (0, 1, 3, 2), name) if swap else tensor
        if x.native == "last" or "last" in x.tensors:
            tensor = self.layouts.read(x, "last", name, step=self.step)
            tensor = self.em.reshape(tensor, (-1, n, h, d), name)
            return self.em.transpose(tensor, (0, 2, 3, 1) if swap else (0, 2, 1, 3), name)
        tensor = self.layouts.read(x, "first", name, step=self.step)
        tensor = self.em.reshape(tensor, (-1, h, d, n), name)
        return tensor if swap else self.em.transpose(tensor, (0, 1, 3, 2), name)

    def each_head(self, x: Lowered, heads: tuple[int, ...], label: str, *, swap: bool = False) -> list[str]:
        """[lead, N, d] of every head ([lead, d, N] with `swap`); "" for a head without channels."""
        n, name = math.prod(x.value.shape[1:]), f"{self.name}/{label}"
        tensor = self.layouts.read(x, "last", name, step=self.step)
        tensor = self.em.reshape(tensor, (-1, n, sum(heads)), name)
        if swap:
            tensor = self.em.transpose(tensor, (0, 2, 1), name)
        return self.pick(tensor, heads, 1 if swap else 2, name)

    def pick(self, tensor: str, sizes: Sequence[int], axis: int, name: str) -> list[str]:
        """Parts of the given sizes along `axis`; "" where a size is 0."""
        found = iter(self.em.split(tensor, [s for s in sizes if s], axis, name))
        return [next(found) if s else "" for s in sizes]

    def grouped(self, x: Lowered, form: str, sizes: tuple[int, ...]) -> str:
        """`x` as [lead, *sizes]."""
        if x.native == form and x.sizes == sizes:
            return self.layouts.read(x, x.native, self.name, step=self.step)
        tensor = self.layouts.read(x, "first", self.name, step=self.step)
        return self.em.reshape(tensor, (-1, *sizes), self.name)

    def product(self, a: str, b: str, shape: tuple[int, ...], head: int) -> str:
        """[lead, *shape]; a sum over no channels is zero."""
        if a and b:
            return self.em.op("MatMul", [a, b], f"{self.name}/head{head}")
        zeros = Constant(np.zeros(shape, np.float32), tuple(f"axis{i}" for i in range(len(shape))))
        value = Value(shape, zeros.axes, "static")
        name = f"{self.name}/head{head}"
        return self.layouts.read(Lowered(value, constant=zeros), "first", name, step=self.step)

    def join(self, parts: list[str], axis: int) -> str:
        return self.em.op("Concat", parts, self.name, axis=axis) if len(parts) > 1 else parts[0]

    def rows(self, y: str, heads: tuple[int, ...]) -> Lowered:
        """[lead, H, N, e], as it is or as token rows [lead * N, C]."""
        if self.factor is None or len(self.node.value.shape) < 2:
            return self.token_rows(self.layouts.merge_heads(self.scaled(y), sum(heads), self.name))
        sizes = (len(heads), math.prod(self.node.value.shape[1:]), heads[0])
        return Lowered(self.node.value, {"heads": self.scaled(y)}, sizes=sizes)

    def scaled(self, y: str) -> str:
        """y times the factor; right behind the product, so that runtimes take both as one."""
        if self.factor is None or self.factor == 1.0:
            return y
        return self.em.op(
            "Mul",
            [y, self.em.constant(np.asarray(self.factor), f"{self.name}.factor")],
            f"{self.name}/factor",
        )

    def ragged_rows(self, parts: list[str]) -> Lowered:
        y = self.em.reshape(self.join(parts, 2), (-1, sum(self.op.heads_b)), self.name)
        return self.token_rows(self.scaled(y))

    def token_rows(self, y: str) -> Lowered:
        return Lowered(self.node.value, {"last" if len(self.node.value.shape) > 1 else "first": y})
