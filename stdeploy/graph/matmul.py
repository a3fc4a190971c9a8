"""The products of matrix attention: one operator of the catalogue (stdeploy.graph.ops)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from stdeploy.graph.op import Op
from stdeploy.graph.rules import multiplied
from stdeploy.graph.value import Value, join_time


@dataclass(frozen=True, eq=False)
class MatMul(Op):
    """One of the four products of matrix attention; h(c) is the head that channel c belongs to.

    channels  Q K^T    y[h, n, m] = sum_{c in h} a[c, n] b[c, m]       a [C, *n], b [C, *m] -> [H, *n, *m]
    keys      A V      y[c, n] = sum_m a[h(c), n, m] b[c, m]           a [H, *n, *m], b [C, *m] -> [C, *n]
    tokens    K^T V    y[h, d, e] = sum_n a[h:d, n] b[h:e, n]          a [Ca, *n], b [Cb, *n] -> [sum_h da_h db_h]
    pairs     Q (KV)   y[h:e, n] = sum_d a[h:d, n] b[h, d, e]          a [Ca, *n], b [pairs] -> [Cb, *n]

    `heads_a`, `heads_b`: channels of each head, ragged allowed; they sum to Ca and Cb. For `keys`
    `heads_a` is empty. Axis `pair` is ordered head, a's dim, b's dim.
    """

    arity: ClassVar[int] = 2
    over: Literal["channels", "keys", "tokens", "pairs"]
    heads_a: tuple[int, ...]
    heads_b: tuple[int, ...]

    def infer(self, inputs: list[Value], steps: int) -> Value:
        a, b = inputs
        shape, axes, terms = getattr(self, f"_{self.over}")(a, b)
        return Value(shape, axes, join_time([a.time, b.time]), multiplied(a.domain, b.domain, terms))

    def _heads(self, value: Value, heads: tuple[int, ...]) -> None:
        if sum(heads) != value.shape[0]:
            raise ValueError(f"heads {heads} do not sum to the {value.shape[0]} channels")

    def _channels(self, a: Value, b: Value) -> tuple[tuple[int, ...], tuple[str, ...], int]:
        self._heads(a, self.heads_a)
        if self.heads_a != self.heads_b or a.shape[0] != b.shape[0]:
            raise ValueError(f"query heads {self.heads_a} and key heads {self.heads_b} differ")
        axes = ("head", *a.axes[1:], *(f"key.{name}" for name in b.axes[1:]))
        return (len(self.heads_a), *a.shape[1:], *b.shape[1:]), axes, max(self.heads_a, default=0)

    def _keys(self, a: Value, b: Value) -> tuple[tuple[int, ...], tuple[str, ...], int]:
        self._heads(b, self.heads_b)
        tokens = b.shape[1:]
        if a.shape[0] != len(self.heads_b) or not tokens or a.shape[-len(tokens) :] != tokens:
            raise ValueError(
                f"attention map {a.shape} does not fit values {b.shape} of {len(self.heads_b)} heads"
            )
        rest = len(a.shape) - len(tokens)
        return (b.shape[0], *a.shape[1:rest]), ("channel", *a.axes[1:rest]), int(np.prod(tokens))

    def _tokens(self, a: Value, b: Value) -> tuple[tuple[int, ...], tuple[str, ...], int]:
        self._heads(a, self.heads_a)
        self._heads(b, self.heads_b)
        if a.shape[1:] != b.shape[1:] or len(self.heads_a) != len(self.heads_b):
            raise ValueError(f"tokens or heads of {a.shape} and {b.shape} differ")
        pairs = sum(m * n for m, n in zip(self.heads_a, self.heads_b, strict=True))
        return (pairs,), ("pair",), int(np.prod(a.shape[1:]))

    def _pairs(self, a: Value, b: Value) -> tuple[tuple[int, ...], tuple[str, ...], int]:
        self._heads(a, self.heads_a)
        pairs = sum(m * n for m, n in zip(self.heads_a, self.heads_b, strict=True))
        if b.shape != (pairs,):
            raise ValueError(f"{b.shape} are not the {pairs} pairs of heads {self.heads_a} x {self.heads_b}")
        return (sum(self.heads_b), *a.shape[1:]), ("channel", *a.axes[1:]), max(self.heads_a, default=0)
