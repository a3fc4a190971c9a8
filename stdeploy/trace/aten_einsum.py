"""Einsum of two values of the network, as the batched matrix product that it is."""

from __future__ import annotations

from torch import Tensor

from stdeploy.trace.aten_matmul import product
from stdeploy.trace.axes import length
from stdeploy.trace.lowering import Call, Lowering, Refusal, Traced, lowers


@lowers("einsum")
def einsum(ctx: Lowering, call: Call) -> Traced:
    equation, tensors = str(call["equation"]).replace(" ", ""), list(call["tensors"])
    if len(tensors) != 2 or any(isinstance(t, Tensor) for t in tensors) or "." in equation:
        raise Refusal(f"{equation}: only einsum of two values with named dimensions is known", "use matmul")
    a, b = (ctx.tensor(t) for t in tensors)
    left, right = equation.split("->")[0].split(",")
    once = sorted(c for c in left + right if (left + right).count(c) == 1)
    out = equation.split("->")[1] if "->" in equation else "".join(once)
    if any(len(set(names)) != len(names) for names in (left, right, out)):
        raise Refusal(f"{equation}: a diagonal")
    batch = [c for c in out if c in left and c in right]
    kept_a = [c for c in left if c in out and c not in right]
    kept_b = [c for c in right if c in out and c not in left]
    summed = [c for c in left if c in right and c not in out]
    if {*left, *right} != {*batch, *kept_a, *kept_b, *summed}:
        raise Refusal(f"{equation}: it sums over a dimension of one factor alone")
    sizes = {
        c: length(d)
        for names, x in ((left, a), (right, b))
        for c, d in zip(names, x.layout.dims, strict=True)
    }
    result = product(
        ctx, call, _matrix(a, left, batch, kept_a, summed), _matrix(b, right, batch, summed, kept_b)
    )
    layout = (
        result.layout.unflatten(-1, [sizes[c] for c in kept_b]) if kept_b else result.layout.squeeze([-1])
    )
    first = len(batch)
    layout = layout.unflatten(first, [sizes[c] for c in kept_a]) if kept_a else layout.squeeze([first])
    order = [*batch, *kept_a, *kept_b]
    return result.view(layout.permute([order.index(c) for c in out]))


def _matrix(x: Traced, names: str, batch: list[str], rows: list[str], columns: list[str]) -> Traced:
    """`x` as [*batch, rows, columns]."""
    layout = x.layout.permute([names.index(c) for c in (*batch, *rows, *columns)])
    first = len(batch)
    for group in (rows, columns):
        layout = layout.flatten(first, first + len(group) - 1) if group else layout.unsqueeze(first)
        first += 1
    return x.view(layout)
