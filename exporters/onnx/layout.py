"""How a graph value lies in an ONNX tensor, and the changes from one layout to another.

Batch and time form the outermost axis, time major: `lead` = B for static and final values, T*B for
values per step. A layer then runs once over all steps, and a neuron splits the outermost axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from stdeploy.exporters.onnx.emitter import Emitter
from stdeploy.graph.ops import Constant
from stdeploy.graph.value import Value
from stdeploy.graph.weight import Array

Form = Literal["first", "last", "heads", "maps", "pairs"]
"""`first`: [lead, *shape]. `last`: [lead * positions, C], so a token Linear is one Gemm without any
transpose. `heads`: the channels of equal heads as [lead, H, N, d]. `maps`: an attention map [H, *n, *m] as [lead, H, N, M]. `pairs`: the products of equal
heads as [lead, H, d, e]. Only matrix products, and neurons next to them, make and read the last three."""


@dataclass
class Lowered:
    """A graph value with the tensors that hold it, by form; the first one is its native form."""

    value: Value
    tensors: dict[Form, str] = field(default_factory=dict)
    constant: Constant | None = None
    sizes: tuple[int, ...] = ()
    """Of the native form, behind lead: (H, N, d) of `heads`, (H, N, M) of `maps`, (H, d, e) of `pairs`."""
    parts: tuple[tuple[str, tuple[int, int]], ...] = ()
    """Pairs of ragged heads: [lead, d, e] of each with its (d, e); "" where that is empty."""

    @property
    def native(self) -> Form:
        return next(iter(self.tensors), "first")


class Layouts:
    """Reads lowered values in the form and lead that a consumer wants; every change is made once."""

    def __init__(self, emitter: Emitter, steps: int) -> None:
        self.emitter = emitter
        self.steps = steps
        self.batch = ("", 0)
        """The tensor and its axis to read the batch size off."""
        self._cache: dict[tuple[str, str], str] = {}
        self._vector: str | None = None

    def read(self, x: Lowered, form: Form, name: str, *, step: bool | None = None) -> str:
        """Tensor of `x` in `form`; `step` True repeats a static value for every step."""
        if not x.tensors:
            x.tensors["first"] = self._join(x, name) if x.parts else self._materialise(x, name)
        if form == "last" and len(x.value.shape) == 1:
            form = "first"
        if form not in x.tensors:
            x.tensors[form] = self._convert(x, form, name)
        tensor = x.tensors[form]
        repeat = step is True and x.value.time == "static" and self.steps > 1
        return self._repeat(tensor, name) if repeat else tensor

    def _repeat(self, tensor: str, name: str) -> str:
        key = (tensor, "repeat")
        if key not in self._cache:
            self._cache[key] = self.emitter.op("Concat", [tensor] * self.steps, f"{name}/steps", axis=0)
        return self._cache[key]

    def _convert(self, x: Lowered, form: Form, name: str) -> str:
        if form in ("heads", "maps", "pairs"):
            raise ValueError(f"{name}: the form {form} is set by the operator that reads it")
        em, native = self.emitter, x.native
        tensor, shape = x.tensors[native], x.value.shape
        k = len(shape) - 1
        if native == "heads":
            tensor = self.merge_heads(tensor, shape[0], name)
            return tensor if form == "last" else self._convert(Lowered(x.value, {"last": tensor}), form, name)
        if native == "last":
            tensor = em.reshape(tensor, (-1, *shape[1:], shape[0]), name)
            return em.transpose(tensor, (0, k + 1, *range(1, k + 1)), name)
        if native != "first" and form == "last":
            tensor = self.read(x, "first", name)
        elif native != "first":
            return em.reshape(tensor, (-1, *shape), name)
        tensor = em.transpose(tensor, (0, *range(2, k + 2), 1), name)
        return em.reshape(tensor, (-1, shape[0]), name)

    def split_heads(self, tensor: str, form: Form, sizes: Sequence[int], name: str) -> str:
        """A `first` or `last` tensor as [lead, H, N, d] for the given (H, N, d)."""
        h, n, d = sizes
        if form == "last":
            return self.emitter.transpose(
                self.emitter.reshape(tensor, (-1, n, h, d), name), (0, 2, 1, 3), name
            )
        return self.emitter.transpose(self.emitter.reshape(tensor, (-1, h, d, n), name), (0, 1, 3, 2), name)

    def merge_heads(self, tensor: str, channels: int, name: str) -> str:
        """[lead, H, N, d] as rows [lead * N, C]."""
        return self.emitter.reshape(self.emitter.transpose(tensor, (0, 2, 1, 3), name), (-1, channels), name)

    def _join(self, x: Lowered, name: str) -> str:
        em = self.emitter
        flat = [em.reshape(part, (-1, d * e), name) for part, (d, e) in x.parts if part]
        return em.op("Concat", flat, f"{name}/pairs", axis=1)

    def _materialise(self, x: Lowered, name: str) -> str:
        """A constant repeated over the batch."""
        if x.constant is None:
            raise ValueError(f"{name} is not a constant")
        em, shape = self.emitter, x.value.shape
        outer = (self.steps,) if x.constant.per_step else ()
        values = x.constant.value.reshape(*outer, 1, *shape)
        target: list[str] = [em.integers(outer)] if outer else []
        target.append(self.batch_vector())
        if shape:
            target.append(em.integers(shape))
        wanted = em.op("Concat", target, f"{name}/shape", axis=0) if len(target) > 1 else target[0]
        tensor = em.op("Expand", [em.constant(values, f"{name}/value"), wanted], f"{name}/expand")
        return em.reshape(tensor, (-1, *shape), name) if outer else tensor

    def batch_vector(self) -> str:
        """The batch size as an int64 vector of one element, read off the input."""
        if self._vector is None:
            tensor, axis = self.batch
            self._vector = self.emitter.op("Shape", [tensor], "batch", start=axis, end=axis + 1)
        return self._vector

    def with_steps(
        self, tensor: str, form: Form, shape: Sequence[int], static: bool, values: Array, name: str
    ) -> str:
        """`tensor + values`, where `values [T, ...]` hold one term per step that broadcasts over the rest.

        `values` have the rank of `tensor`'s own axes behind its lead.
        """
        em = self.emitter
        rest = (shape[0],) if form == "last" else tuple(shape)
        view = em.reshape(tensor, (1 if static else self.steps, -1, *rest), name)
        constant = em.constant(np.expand_dims(values, 1), f"{name}/per_step")
        total = em.op("Add", [view, constant], f"{name}/per_step_add")
        return em.reshape(total, (-1, *rest), name)
