"""Selection of tokens: TopK over the scores, GatherND of the rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from stdeploy.exporters.onnx.layout import Layouts, Lowered
from stdeploy.graph.graph import Node
from stdeploy.graph.ops import Select
from stdeploy.graph.value import Domain

EXACT_IN_FLOAT32 = 2**24


@dataclass
class Selections:
    """Emits Selects; those that keep the same tokens share one TopK.

    `tensors`: by node name the int64 tensor [lead, 1, count] of the kept positions, and whether lead has steps.
    """

    layouts: Layouts
    tensors: dict[str, tuple[str, bool]] = field(default_factory=dict)
    _chosen: dict[tuple[str, int, bool, str], str] = field(default_factory=dict)

    def emit(self, node: Node, op: Select, x: Lowered, scores: Lowered) -> Lowered:
        """Rows [lead * count, C] of the kept tokens."""
        em, name, step = self.layouts.emitter, node.name, node.value.time == "step"
        channels, tokens = x.value.shape
        positions = self._positions(node, op, scores, tokens, step)
        self.tensors[name] = (positions, step)
        rows = self.layouts.read(x, "last", name, step=step)
        rows = em.reshape(rows, (-1, tokens, channels), name)
        index = em.reshape(positions, (-1, op.count, 1), f"{name}/index")
        kept = em.op("GatherND", [rows, index], name, batch_dims=1)
        return Lowered(node.value, {"last": em.reshape(kept, (-1, channels), name)})

    def _positions(self, node: Node, op: Select, scores: Lowered, tokens: int, step: bool) -> str:
        """[lead, 1, count] int64."""
        em, name = self.layouts.emitter, node.name
        tensor = self.layouts.read(scores, "first", name, step=step)
        key = (tensor, op.count, op.largest, op.order)
        if key not in self._chosen:
            # [lead, N] would do, but OpenVINO 2026.4 fuses what follows a reduction along the wrong axis.
            flat = em.reshape(tensor, (-1, 1, tokens), name)
            flat = self._distinct(flat, op, scores.value.domain, tokens, name)
            positions = em.topk(flat, op.count, name, largest=op.largest)[1]
            if op.order == "index":
                positions = em.topk(positions, op.count, f"{name}/by_index", largest=False)[0]
            self._chosen[key] = positions
        return self._chosen[key]

    def _distinct(self, scores: str, op: Select, domain: Domain, tokens: int, name: str) -> str:
        """Scores that count, as integers n * N +- position: no two are equal, so no runtime has a tie to break.

        ONNX's TopK takes the lower index of two equal ones; not every runtime does.
        """
        em = self.layouts.emitter
        if domain.maximum is None or (domain.maximum + 1) * tokens > EXACT_IN_FLOAT32:
            return scores
        exact = math.frexp(domain.scale)[0] == 0.5
        if not exact:
            unit = em.constant(np.asarray(domain.scale), f"{name}.unit")
            scores = em.op("Round", [em.op("Div", [scores, unit], f"{name}/counts")], f"{name}/whole")
        factor = tokens / domain.scale if exact else tokens
        scores = em.op("Mul", [scores, em.constant(np.asarray(factor), f"{name}.spread")], f"{name}/spread")
        order = np.arange(tokens)[::-1] if op.largest else np.arange(tokens)
        return em.op("Add", [scores, em.constant(order, f"{name}.ties")], f"{name}/distinct")
