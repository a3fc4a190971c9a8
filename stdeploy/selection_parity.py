"""Whether two executors keep the same tokens, and what explains it where they do not.

A selection is judged as a spike is: on the reference's own input to it, against the exact scores and the bound
of what float32 rounding can do to them. It is wrong where no scores within the bounds lead to it. A different
one that is not wrong is a tie, where the scores of what is kept are exactly equal, or rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stdeploy.errors import UserError
from stdeploy.graph.graph import Graph
from stdeploy.graph.ops import Select
from stdeploy.graph.rounding import Bounded
from stdeploy.graph.selection import compared, ranked, score_domain, select_of, shared
from stdeploy.graph.value import Domain
from stdeploy.graph.weight import Array
from stdeploy.parity import SELECTION_KINDS, SelectionMismatch, SelectionReport

LISTED = 1000
"""Mismatches of one selection that a report lists one by one; it counts all of them."""


@dataclass(frozen=True, eq=False)
class Judged:
    """Per step and sample `[T or 1, B]`: which kind of SELECTION_KINDS a selection is, -1 where it follows the rule."""

    kind: Array
    tied: Array


def judge(op: Select, domain: Domain, scores: Bounded, positions: Array) -> Judged:
    """What explains `positions` `[T, B, count]`; `tied`: where the tie rule alone decides the exact selection."""
    keys, error = exact_keys(domain, scores)
    rule = ranked(op, scores.value, domain)
    signed = keys if op.largest else -keys
    valid = _valid(op, positions, keys.shape[-1])
    safe = np.where(valid[..., None], positions, rule)
    follows = np.all(safe == rule, axis=-1)
    equal = np.all(_slots(op, signed, safe) == _slots(op, signed, rule), axis=-1)
    kind = np.where(follows, -1, np.where(equal, SELECTION_KINDS.index("tie"), 0))
    possible = equal | _possible(op, signed, error, safe)
    kind = np.where(valid & possible, kind, SELECTION_KINDS.index("unexplained"))
    return Judged(kind, _tied(op, signed, rule))


def exact_keys(domain: Domain, scores: Bounded) -> tuple[Array, Array]:
    """What is compared, and its bound: integers, which every executor gets right, where the domain counts."""
    if domain.maximum is not None and np.all(scores.error < domain.scale / 2):
        return compared(scores.value, domain), np.zeros_like(scores.value)
    return scores.value, scores.error


def _valid(op: Select, positions: Array, tokens: int) -> Array:
    """Different positions within the tokens, ascending where the order is theirs."""
    ordered = np.sort(positions, axis=-1)
    inside = (ordered[..., 0] >= 0) & (ordered[..., -1] < tokens)
    apart = np.all(np.diff(ordered, axis=-1) > 0, axis=-1)
    in_order = np.all(ordered == positions, axis=-1) if op.order == "index" else True
    return np.asarray(inside & apart & in_order)


def _slots(op: Select, signed: Array, positions: Array) -> Array:
    """Scores of the kept tokens in the order in which they decide."""
    kept = np.take_along_axis(signed, positions, axis=-1)
    return kept if op.order == "score" else -np.sort(-kept, axis=-1)


def _possible(op: Select, signed: Array, error: Array, positions: Array) -> Array:
    """Whether scores within their bounds lead to `positions`.

    They do if no lower end of a score lies above the upper end of one that is ranked before it.
    """
    low = np.take_along_axis(signed - error, positions, axis=-1)
    high = np.take_along_axis(signed + error, positions, axis=-1)
    rest = (signed - error).copy()
    np.put_along_axis(rest, positions, -np.inf, axis=-1)
    ok = rest.max(axis=-1) <= high.min(axis=-1)
    if op.order == "score" and op.count > 1:
        before = np.minimum.accumulate(high, axis=-1)[..., :-1]
        ok &= np.all(low[..., 1:] <= before, axis=-1)
    return np.asarray(ok)


def _tied(op: Select, signed: Array, rule: Array) -> Array:
    """Where equal scores leave the selection, or its order, to the tie rule."""
    kept = _slots(op, signed, rule)
    rest = signed.copy()
    np.put_along_axis(rest, rule, -np.inf, axis=-1)
    tied = rest.max(axis=-1) == kept[..., -1]
    if op.order == "score" and op.count > 1:
        tied |= np.any(np.diff(kept, axis=-1) == 0, axis=-1)
    return np.asarray(tied)


@dataclass
class SelectionTotals:
    """Running totals of one selection of a graph; `name` is its first Select's."""

    graph: Graph
    name: str
    compared: int = 0
    tied: int = 0
    by_kind: Array = field(default_factory=lambda: np.zeros(len(SELECTION_KINDS), dtype=np.int64))
    reference_ties: int = 0
    reference_unexplained: int = 0
    largest_margin: float = 0.0
    mismatches: list[SelectionMismatch] = field(default_factory=list)

    def add(self, scores: Bounded, reference: Array, candidate: Array, start: int) -> Array:
        """Add one batch, whose first sample is number `start`; returns which samples differ `[B]`."""
        if candidate.shape != reference.shape:
            raise UserError(
                f"{self.name} keeps {list(candidate.shape)} tokens, the reference {list(reference.shape)}",
                hint="was the artefact exported from this model, by this version?",
            )
        node = self.graph[self.name]
        op, domain = select_of(node), score_domain(self.graph, node)
        own, other = (judge(op, domain, scores, p) for p in (reference, candidate))
        self.compared += own.kind.size
        self.tied += int(np.count_nonzero(own.tied))
        ties, wrong = (SELECTION_KINDS.index(k) for k in ("tie", "unexplained"))
        self.reference_ties += int(np.count_nonzero(own.kind == ties))
        self.reference_unexplained += int(np.count_nonzero(own.kind == wrong))
        differ = np.any(reference != candidate, axis=-1)
        kinds = _between(own.kind, other.kind)
        self.by_kind += np.bincount(kinds[differ], minlength=len(SELECTION_KINDS))
        self.by_kind[wrong] += int(np.count_nonzero(~differ & (other.kind == wrong)))
        keys, error = exact_keys(domain, scores)
        unit = domain.scale if domain.maximum is not None and not error.any() else 1.0
        for t, b in np.argwhere(differ):
            r, c = reference[t, b], candidate[t, b]
            margin = unit * _distance(keys[t, b], r, c)
            self.largest_margin = max(self.largest_margin, margin)
            if len(self.mismatches) < LISTED:
                bound = float(error[t, b].max())
                lost, gained = (tuple(int(i) for i in np.setdiff1d(x, y)) for x, y in ((r, c), (c, r)))
                kind = SELECTION_KINDS[int(kinds[t, b])]
                self.mismatches.append(
                    SelectionMismatch(self.name, int(t), start + int(b), lost, gained, margin, bound, kind)
                )
        samples: Array = differ.any(axis=0)
        return samples

    def report(self) -> SelectionReport:
        """The finished report."""
        node = self.graph[self.name]
        rounding, tie, unexplained = (int(n) for n in self.by_kind)
        return SelectionReport(
            name=self.name,
            kept=select_of(node).count,
            tokens=self.graph[node.inputs[0]].value.shape[1],
            compared=self.compared,
            tied=self.tied,
            explained=rounding,
            ties=tie,
            unexplained=unexplained,
            reference_ties=self.reference_ties,
            reference_unexplained=self.reference_unexplained,
            largest_margin=self.largest_margin,
        )


def _between(reference: Array, candidate: Array) -> Array:
    """Kind of a difference, from what each of the two is: the worse one; two of which one follows the rule differ
    by what the other is."""
    rounding, tie, unexplained = range(len(SELECTION_KINDS))
    either = [(reference == k) | (candidate == k) for k in (unexplained, rounding, tie)]
    return np.select(either, [unexplained, rounding, tie], rounding)


def _distance(keys: Array, r: Array, c: Array) -> float:
    """The largest difference of scores between what two selections keep in the same place."""
    slots = (
        np.abs(keys[r] - keys[c])
        if len(np.setdiff1d(r, c)) == 0
        else np.abs(np.sort(keys[np.setdiff1d(r, c)]) - np.sort(keys[np.setdiff1d(c, r)]))
    )
    return float(slots.max(initial=0.0))


def selection_totals(graph: Graph) -> dict[str, SelectionTotals]:
    """Totals for every different selection of a graph, by the name of its first Select."""
    return {name: SelectionTotals(graph, name) for name in dict.fromkeys(shared(graph).values())}
