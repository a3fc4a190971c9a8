"""A model's own topk, sort and argsort while it runs as the reference, with the graph's tie rule.

torch.topk leaves open which of equal scores it takes, and takes another one from size to size; spikes give
equal scores all the time. The run therefore ranks by the rule of stdeploy.graph.ops.Select: the same integers
where the scores count, and of equal ones the lower index first. Every other ranking is torch's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from stdeploy.errors import UserError
from stdeploy.graph import Graph
from stdeploy.graph.interpreter import forced_selection
from stdeploy.graph.selection import arranged, score_domain, select_of
from stdeploy.graph.weight import Array
from stdeploy.trace.axes import Role, arrange, length, restore
from stdeploy.trace.lowering import Ranked
from stdeploy.trace.program import operator_name

RANKINGS = ("topk", "sort", "argsort")
UNLIKE_TRACE = "the model ranks other values when it runs than when it is traced"
UNLIKE_TRACE_HINT = "a neuron that sorts, or a forward that depends on values, cannot be followed"
_LEAD: tuple[Role, ...] = ("time", "batch")


def numbered(program: Any, original: Any) -> dict[fx.Node, int]:
    """Number of each ranking of `program` among the model's own, which `original` has all of, in order.

    Decomposing a program drops what nothing reads; what is left is found again by its place in the user's code.
    """
    out: dict[fx.Node, int] = {}
    calls = list(enumerate(map(_place, rankings_of(original))))
    for node in rankings_of(program):
        while calls and calls[0][1] != _place(node):
            calls.pop(0)
        if calls:
            out[node] = calls.pop(0)[0]
    return out


def rankings_of(program: Any) -> list[fx.Node]:
    """Every ranking of a program, in order."""
    nodes = program.graph_module.graph.nodes
    return [n for n in nodes if n.op == "call_function" and operator_name(n) in RANKINGS]


def _place(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta["val"]
    indices = value[1] if isinstance(value, tuple | list) else value
    return (node.meta.get("stack_trace"), tuple(int(n) for n in indices.shape))


class RankingMode(TorchFunctionMode):
    """While active, rankings that choose a Select's tokens follow its rule; `selections` notes what they chose.

    `forced`: positions `[T or 1, B, count]` by Select name that a ranking yields instead.
    """

    def __init__(
        self, graph: Graph, ranked: Sequence[Ranked], forced: Mapping[str, Array], batch: int
    ) -> None:
        super().__init__()
        self.graph, self.forced, self.batch = graph, forced, batch
        self.selections: dict[str, Array] = {}
        self.uses: dict[int, list[Ranked]] = {}
        for use in ranked:
            if use.name in graph.nodes:
                self.uses.setdefault(use.ranking, []).append(use)
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in RANKINGS:
            return func(*args, **given)
        uses = self.uses.get(self.calls)
        self.calls += 1
        if uses is None:
            return func(*args, **given)
        result = func(*args, **given)  # torch's own, for its type, its size and its errors
        scores: Tensor = args[0] if args else given["input"]
        dim, largest = _direction(name, args, given)
        count = (result if name == "argsort" else result.indices).shape[dim]
        indices = self._ranked(uses, scores, dim, largest, count)
        if name == "argsort":
            return indices
        return type(result)((scores.gather(dim, indices), indices))

    def _ranked(self, uses: Sequence[Ranked], scores: Tensor, dim: int, largest: bool, count: int) -> Tensor:
        """Indices of the `count` best of `scores` along `dim`, by the rule of the Selects in `uses`."""
        domain = score_domain(self.graph, self.graph[uses[0].name])
        keys = scores if domain.maximum is None else torch.round(scores / domain.scale)
        best = torch.sort(keys, dim=dim, descending=largest, stable=True).indices.narrow(dim, 0, count)
        layout = uses[0].layout
        sizes = [None if any(a.role == "batch" for a in d) else length(d) for d in layout.dims]
        if len(sizes) != best.ndim or any(n not in (None, m) for n, m in zip(sizes, best.shape, strict=True)):
            raise UserError(UNLIKE_TRACE, hint=UNLIKE_TRACE_HINT)
        order = arrange(best.cpu().numpy(), layout, _LEAD, self.batch)
        given = order
        for use in uses:
            node = self.graph[use.name]
            op = select_of(node)
            own = arranged(op, order[..., : op.count])
            steps = self.graph.steps if node.value.time == "step" else 1
            self.selections[use.name] = np.broadcast_to(own, (steps, *own.shape[1:]))
            if use.name in self.forced:
                given = _forced_first(forced_selection(node, self.forced[use.name]), given)
        if given is order:
            return best
        return torch.as_tensor(restore(given, layout, _LEAD, self.batch), device=best.device)


def _forced_first(forced: Array, order: Array) -> Array:
    """`order` `[T or 1, B, n]` with the forced positions in front, the others behind as they were."""
    out = order.copy()
    for t, b in np.ndindex(order.shape[:2]):
        rest = order[t, b][~np.isin(order[t, b], forced[t, b])]
        out[t, b] = np.concatenate([forced[t, b], rest])[: order.shape[2]]
    return out


def _direction(name: str, args: tuple[Any, ...], given: Mapping[str, Any]) -> tuple[int, bool]:
    """Dimension, and whether the highest come first, of a call topk(x, k, dim, largest) or sort(x, dim, descending)."""
    first = 2 if name == "topk" else 1
    dim = args[first] if len(args) > first else given.get("dim", -1)
    label, default = ("largest", True) if name == "topk" else ("descending", False)
    largest = args[first + 1] if len(args) > first + 1 else given.get(label, default)
    return int(dim), bool(largest)
