"""The products of matrix attention, recognised by which axes they contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stdeploy.graph.ops import MatMul, Scale
from stdeploy.trace.aten_layers import pointwise
from stdeploy.trace.axes import Atom, Atoms, Layout, LayoutError, align, length
from stdeploy.trace.lowering import Call, Lowering, Refusal, Traced, lowers


@lowers("matmul", "bmm", "mm", "__matmul__")
def matmul(ctx: Lowering, call: Call) -> Traced:
    arguments = list(call.arguments.values())
    a, b = arguments[0], arguments[1]
    if isinstance(b, Tensor):
        return _by_constant(ctx, call, ctx.tensor(a), b, -1, transposed=True)
    if isinstance(a, Tensor):
        return _by_constant(ctx, call, ctx.tensor(b), a, -2, transposed=False)
    return product(ctx, call, ctx.tensor(a), ctx.tensor(b))


def _by_constant(ctx: Lowering, call: Call, x: Traced, weight: Tensor, dim: int, transposed: bool) -> Traced:
    while weight.ndim > 2 and weight.shape[0] == 1:
        weight = weight[0]
    if weight.ndim != 2 or len(x.layout.dims) < -dim:
        raise Refusal("a product with a constant that is not a matrix over the channels")
    return pointwise(ctx, call, x, dim, weight, None, transposed)


@dataclass(frozen=True, eq=False)
class _Operand:
    """One factor: `kept` and `summed` are its atoms along the two matrix dimensions; `heads` those that both share."""

    traced: Traced
    layout: Layout
    kept: Atoms
    summed: Atoms
    heads: Atoms

    @property
    def inner(self) -> Atoms:
        """Atoms of axis 0 within a head; LayoutError where the heads are not its outer index."""
        axis = self.layout.axes[0]
        if axis[: len(self.heads)] != self.heads:
            raise LayoutError("the heads are not contiguous groups of channels")
        return axis[len(self.heads) :]

    @property
    def tokens(self) -> Atoms:
        return tuple(a for axis in self.layout.axes[1:] for a in axis)


def product(ctx: Lowering, call: Call, x: Traced, y: Traced) -> Traced:
    """x @ y, where both are values of the network."""
    if len(x.layout.dims) < 2 or len(y.layout.dims) < 2:
        raise Refusal("a product with a vector")
    outer_x, outer_y = x.layout.dims[:-2], y.layout.dims[:-2]
    xs = Layout((*outer_x, x.layout.dims[-1]), x.layout.axes)
    ys = Layout((*outer_y, y.layout.dims[-2]), y.layout.axes)
    left, right, pairs = align(xs, ys)
    dims: list[Atoms] = []
    heads_x: list[Atom] = []
    heads_y: list[Atom] = []
    for group in pairs[:-1]:
        dim = []
        for p, q in group:
            if p is not None and q is not None and (p.role == "axis") == (q.role == "axis"):
                dim.append(p if p.role != "new" else q)
                if p.role == "axis":
                    heads_x.append(p)
                    heads_y.append(q)
            elif p is None or q is None or {p.role, q.role} & {"axis"}:
                if (p or q).role == "axis":  # type: ignore[union-attr]
                    raise Refusal("one factor has heads (or windows) that the other one has not")
                dim.append(p or q)  # type: ignore[arg-type]
            else:
                dim.append(p if p.role != "new" else q)
        dims.append(tuple(dim))
    kept_x = _refined(x.layout.dims[-2], x.layout, left)
    kept_y = _refined(y.layout.dims[-1], y.layout, right)
    a = _Operand(x, left, kept_x, left.dims[-1], tuple(heads_x))
    b = _Operand(y, right, kept_y, right.dims[-1], tuple(heads_y))
    return _classified(ctx, call, a, b, dims)


def _refined(dim: Atoms, before: Layout, after: Layout) -> Atoms:
    """Atoms that were not aligned stay whole: only those of the other dimensions were split."""
    present = {t for axis in after.axes for t in axis}
    if any(t.role == "axis" and t not in present for t in dim):
        raise LayoutError("a matrix dimension shares an index with the heads")
    return dim


def _form(ctx: Lowering, operand: _Operand) -> str:
    axes = ctx.value(operand.traced).axes
    if axes == ("pair",):
        return "pairs"
    return "map" if axes and axes[0] == "head" else "features"


def _classified(ctx: Lowering, call: Call, a: _Operand, b: _Operand, dims: list[Atoms]) -> Traced:
    forms = (_form(ctx, a), _form(ctx, b))
    if forms == ("features", "features"):
        contracts_channels = _matches(a, a.inner, a.tokens, "channels")
        other = _matches(b, b.inner, b.tokens, "channels")
        if contracts_channels and other:
            return _scores(ctx, call, a, b, dims)
        if _matches(a, a.inner, a.tokens, "tokens") and _matches(b, b.inner, b.tokens, "tokens"):
            return _key_values(ctx, call, a, b, dims)
        raise Refusal("a product that sums neither over the channels of a head nor over all tokens")
    if forms == ("map", "features"):
        return _attended(ctx, call, a, b, dims, map_first=True)
    if forms == ("features", "map"):
        return _attended(ctx, call, b, a, dims, map_first=False)
    if forms == ("features", "pairs"):
        return _queried(ctx, call, a, b, dims, pairs_first=False)
    if forms == ("pairs", "features"):
        return _queried(ctx, call, b, a, dims, pairs_first=True)
    raise Refusal(f"a product of {forms[0]} and {forms[1]}")


def _matches(operand: _Operand, inner: Atoms, tokens: Atoms, summed: str) -> bool:
    if summed == "channels":
        return operand.summed == inner and operand.kept == tokens
    return operand.summed == tokens and operand.kept == inner


def _heads(operand: _Operand) -> tuple[int, ...]:
    return (length(operand.inner),) * length(operand.heads)


def _scores(ctx: Lowering, call: Call, a: _Operand, b: _Operand, dims: list[Atoms]) -> Traced:
    """Q K^T: [h, n, d] @ [h, d, m]."""
    op = MatMul("channels", _heads(a), _heads(b))
    name = ctx.add(op, [a.traced.name, b.traced.name], call, "matmul")
    axes = (a.heads, *a.layout.axes[1:], *_copied(b, keep=False))
    kept = tuple(t for axis in axes[len(a.layout.axes) :] for t in axis)
    return Traced(name, Layout((*dims, a.kept, kept), axes))


def _copied(operand: _Operand, keep: bool) -> tuple[Atoms, ...]:
    """The token axes with atoms of their own: q and k may be the same tensor."""
    if keep:
        return operand.layout.axes[1:]
    return tuple(tuple(Atom(t.size) for t in axis) for axis in operand.layout.axes[1:])


def _key_values(ctx: Lowering, call: Call, a: _Operand, b: _Operand, dims: list[Atoms]) -> Traced:
    """K^T V: [h, d, n] @ [h, n, e]; one axis ordered head, d, e."""
    op = MatMul("tokens", _heads(a), _heads(b))
    name = ctx.add(op, [a.traced.name, b.traced.name], call, "matmul")
    first, second = tuple(Atom(t.size) for t in a.inner), tuple(Atom(t.size) for t in b.inner)
    return Traced(name, Layout((*dims, first, second), ((*a.heads, *first, *second),)))


def _attended(
    ctx: Lowering, call: Call, scores: _Operand, values: _Operand, dims: list[Atoms], map_first: bool
) -> Traced:
    """A V: [h, n, m] @ [h, m, d], or V^T A^T: [h, d, m] @ [h, m, n]."""
    if scores.layout.axes[0] != scores.heads:
        raise Refusal("an attention map whose heads are not the batch of the product")
    if not _matches(values, values.inner, values.tokens, "tokens"):
        raise Refusal("an attention map that is not applied to all tokens of each head's channels")
    count = len(scores.layout.axes) - 1
    queries = len(values.layout.axes) - 1
    name = scores.traced.name
    groups = scores.layout.axes[1:]
    first, last = groups[: count - queries], groups[count - queries :]
    if _joined(last) != scores.summed or _joined(first) != scores.kept:
        first, last = groups[queries:], groups[:queries]
        if _joined(last) != scores.summed or _joined(first) != scores.kept:
            raise Refusal("an attention map that is summed over neither of its token axes")
        name = swapped(ctx, call, name)
    op = MatMul("keys", (), _heads(values))
    out = ctx.add(op, [name, values.traced.name], call, "matmul")
    heads = scores.heads
    inner = tuple(Atom(t.size) for t in values.inner)
    matrix = (scores.kept, inner) if map_first else (inner, scores.kept)
    return Traced(out, Layout((*_with_heads(dims, values.heads, heads), *matrix), ((*heads, *inner), *first)))


def _joined(axes: tuple[Atoms, ...]) -> Atoms:
    return tuple(t for axis in axes for t in axis)


def _with_heads(dims: list[Atoms], old: Atoms, new: Atoms) -> list[Atoms]:
    """The batch dimensions with the heads of the map, whichever factor came first."""
    stands = dict(zip(old, new, strict=True))
    return [tuple(stands.get(t, t) for t in d) for d in dims]


def _queried(
    ctx: Lowering, call: Call, query: _Operand, pairs: _Operand, dims: list[Atoms], pairs_first: bool
) -> Traced:
    """Q (K^T V): [h, n, d] @ [h, d, e], or (V^T K) Q^T: [h, e, d] @ [h, d, n]."""
    if not _matches(query, query.inner, query.tokens, "channels"):
        raise Refusal("a product with keys and values that does not sum over the channels of a head")
    name = pairs.traced.name
    if pairs.inner == (*pairs.kept, *pairs.summed) and pairs.inner != (*pairs.summed, *pairs.kept):
        name = swapped(ctx, call, name)
    elif pairs.inner != (*pairs.summed, *pairs.kept):
        raise Refusal("keys and values whose axes are arranged differently")
    width = length(pairs.kept)
    op = MatMul("pairs", _heads(query), (width,) * length(query.heads))
    out = ctx.add(op, [query.traced.name, name], call, "matmul")
    inner = tuple(Atom(t.size) for t in pairs.kept)
    matrix = (inner, query.kept) if pairs_first else (query.kept, inner)
    layout = Layout(
        (*_with_heads(dims, pairs.heads, query.heads), *matrix),
        ((*query.heads, *inner), *query.layout.axes[1:]),
    )
    return Traced(out, layout)


def swapped(ctx: Lowering, call: Call, name: str) -> str:
    """The product `name` (perhaps scaled) with its factors exchanged: a transposed map, or pairs in the other order."""
    node: Any = ctx.builder.nodes[name]
    if isinstance(node.op, Scale):
        inner = swapped(ctx, call, node.inputs[0])
        return ctx.builder.add(node.op, (inner,), name=name, source=node.source)
    if not isinstance(node.op, MatMul) or node.op.over not in ("channels", "tokens"):
        raise Refusal("it reads a transposed product that is not computed just before")
    op = MatMul(node.op.over, node.op.heads_b, node.op.heads_a)
    return ctx.builder.add(op, tuple(reversed(node.inputs)), name=name, source=node.source)
