"""The axis algebra against torch: views of an index tensor, followed and taken back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st

from stdeploy.graph import GraphBuilder
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.ops import Input, Output
from stdeploy.graph.weight import Array
from stdeploy.trace.aten_views import cut
from stdeploy.trace.axes import Atom, Layout, LayoutError, align, arrange, length, positions, restore
from stdeploy.trace.lowering import Call, Lowering, Refusal, Traced

LEAD = ("time", "batch")


def start(steps: int, batch: int, axes: list[int]) -> tuple[torch.Tensor, Layout]:
    """An index tensor `[T, B, *axes]` and its layout."""
    atoms = tuple((Atom(n),) if n > 1 else () for n in axes)
    layout = Layout(((Atom(steps, "time"),), (Atom(batch, "batch"),), *atoms), atoms)
    return torch.arange(steps * batch * math.prod(axes)).reshape(steps, batch, *axes), layout


@st.composite
def regrouping(draw: st.DrawFn, shape: tuple[int, ...]) -> list[int]:
    """Sizes that a reshape reaches by merging dimensions and splitting them evenly."""
    factors: list[int] = []
    for n in shape[2:]:
        while n > 1:
            p = next(q for q in range(2, n + 1) if n % q == 0)
            factors.append(p)
            n //= p
    sizes = [shape[0], shape[1]] if draw(st.booleans()) else [shape[0] * shape[1]]
    group = 1
    for p in factors:
        group *= p
        if draw(st.booleans()):
            sizes.append(group)
            group = 1
    if group > 1:
        sizes.append(group)
    for _ in range(draw(st.integers(0, 2))):
        sizes.insert(draw(st.integers(0, len(sizes))), 1)
    return sizes


@st.composite
def chains(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, Layout]:
    """(tensor before, tensor after, layout after) of a random chain of views."""
    steps, batch = draw(st.sampled_from([1, 3, 4])), 7
    axes = draw(st.lists(st.sampled_from([1, 2, 3, 6, 8, 12]), min_size=1, max_size=3))
    first, layout = start(steps, batch, axes)
    x = first
    x, layout = x.reshape(sizes := draw(regrouping(tuple(x.shape)))), layout.reshape(sizes)
    for _ in range(draw(st.integers(0, 6))):
        rank = x.ndim
        kind = draw(
            st.sampled_from(["permute", "transpose", "flatten", "unsqueeze", "squeeze", "move", "split"])
        )
        if kind == "permute":
            order = draw(st.permutations(range(rank)))
            x, layout = x.permute(order), layout.permute(order)
        elif kind == "transpose":
            a, b = (draw(st.integers(-rank, rank - 1)) for _ in range(2))
            x, layout = x.transpose(a, b), layout.transpose(a, b)
        elif kind == "flatten":
            a = draw(st.integers(0, rank - 1))
            b = draw(st.integers(a, rank - 1))
            x, layout = x.flatten(a, b), layout.flatten(a, b - rank)
        elif kind == "unsqueeze":
            a = draw(st.integers(-rank - 1, rank))
            x, layout = x.unsqueeze(a), layout.unsqueeze(a)
        elif kind == "squeeze":
            gone = [i for i, d in enumerate(layout.dims) if not d]
            x, layout = x.squeeze(tuple(gone)), layout.squeeze(gone)
        elif kind == "move":
            a, b = (draw(st.integers(-rank, rank - 1)) for _ in range(2))
            x, layout = x.movedim(a, b), layout.movedim([a], [b])
        else:
            options = [i for i, d in enumerate(layout.dims) if len(d) > 1]
            if options:
                i = draw(st.sampled_from(options))
                cut = draw(st.integers(1, len(layout.dims[i]) - 1))
                sizes = [length(layout.dims[i][:cut]), -1]
                x, layout = x.unflatten(i, sizes), layout.unflatten(i, sizes)
    return first, x, layout


@settings(max_examples=300, deadline=None)
@given(chains())
def test_views_are_followed(chain: tuple[torch.Tensor, torch.Tensor, Layout]) -> None:
    first, x, layout = chain
    assert tuple(x.shape) == layout.shape
    back = arrange(x.numpy(), layout, LEAD, 7)
    np.testing.assert_array_equal(back.reshape(first.shape), first.numpy())


@settings(max_examples=100, deadline=None)
@given(chains())
def test_restore_inverts_arrange(chain: tuple[torch.Tensor, torch.Tensor, Layout]) -> None:
    _, x, layout = chain
    np.testing.assert_array_equal(restore(arrange(x.numpy(), layout, LEAD, 7), layout, LEAD, 7), x.numpy())


@settings(max_examples=200, deadline=None)
@given(chains(), st.data())
def test_any_reshape_is_right_or_refused(
    chain: tuple[torch.Tensor, torch.Tensor, Layout], data: st.DataObject
) -> None:
    """Also sizes that cut across atoms, and splits of time or batch: never a wrong layout."""
    first, x, layout = chain
    divisors = [d for d in range(1, x.numel() + 1) if x.numel() % d == 0]
    outer = data.draw(st.sampled_from(divisors))
    sizes = [outer, x.numel() // outer]
    try:
        after = layout.reshape(sizes)
    except LayoutError:
        return
    back = arrange(x.reshape(sizes).numpy(), after, LEAD, 7)
    np.testing.assert_array_equal(back.reshape(first.shape), first.numpy())


def viewed(value: Array, layout: Layout, lead: tuple[Atom, Atom]) -> Array:
    """The torch tensor that `layout` says a value `[T, B, *axes]` is, index by index: what repeats counts nothing."""
    order = [*lead, *(a for axis in layout.axes for a in axis)]
    strides = {a: math.prod(b.size for b in order[i + 1 :]) for i, a in enumerate(order)}
    atoms = [a for d in layout.dims for a in d]
    index = np.zeros([a.size for a in atoms], dtype=np.int64)
    for i, atom in enumerate(atoms):
        shape = [atom.size if j == i else 1 for j in range(len(atoms))]
        index += strides.get(atom, 0) * np.arange(atom.size).reshape(shape)
    return value.reshape(-1)[index].reshape(layout.shape)


@st.composite
def cutting_chains(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, Traced, Lowering, set[str]]:
    """(input, tensor, the same in the graph, and what was done) of views, repeats, expands, chunks and splits."""
    steps, batch = draw(st.sampled_from([1, 3, 4])), 5
    axes = tuple(draw(st.lists(st.sampled_from([1, 2, 4, 6, 12]), min_size=1, max_size=3)))
    lead = Atom(steps, "time"), Atom(batch, "batch")
    builder = GraphBuilder(steps)
    names = ("channel", "y", "x")[: len(axes)]
    name = builder.add(Input(axes, names, "TB"), name="input")
    ctx = Lowering(builder, {}, steps, {}, *lead)
    atoms = tuple((Atom(n),) if n > 1 else () for n in axes)
    traced = Traced(name, Layout(((lead[0],), (lead[1],), *atoms), atoms))
    first = x = torch.randn(steps, batch, *axes, dtype=torch.float64)
    done: set[str] = set()
    kinds = ["permute", "flatten", "unflatten", "unsqueeze", "repeat", "expand", "chunk", "split"]
    for _ in range(draw(st.integers(1, 7))):
        kind, layout, rank = draw(st.sampled_from(kinds)), traced.layout, x.ndim
        if x.numel() > 20000 and kind in ("repeat", "expand"):
            continue
        i = draw(st.integers(0, rank - 1))
        size = x.shape[i]
        if kind == "permute":
            order = draw(st.permutations(range(rank)))
            x, traced = x.permute(order), traced.view(layout.permute(order))
        elif kind == "flatten" and i >= 2:
            x, traced = x.flatten(i - 1, i), traced.view(layout.flatten(i - 1, i))
        elif kind == "unflatten" and size > 1:
            outer = draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
            try:
                seen = layout.unflatten(i, [outer, -1])
            except LayoutError:
                continue
            x, traced = x.unflatten(i, (outer, -1)), traced.view(seen)
        elif kind == "unsqueeze":
            x, traced = x.unsqueeze(i), traced.view(layout.unsqueeze(i))
        elif kind == "repeat":
            counts = [draw(st.integers(1, 3)) if j == i else 1 for j in range(rank + draw(st.integers(0, 1)))]
            x, traced = x.repeat(counts), traced.view(layout.repeat(counts))
        elif kind == "expand" and size == 1:
            sizes = [3 if j == i else -1 for j in range(rank)]
            x, traced = x.expand(sizes), traced.view(layout.expand(sizes))
        elif kind in ("chunk", "split"):
            width = draw(st.integers(1, size))
            parts = x.chunk(width, i) if kind == "chunk" else x.split(width, i)
            at = draw(st.integers(0, len(parts) - 1))
            begin = sum(p.shape[i] for p in parts[:at])
            call = Call(None, kind, {}, "net", False)  # type: ignore[arg-type]
            try:
                traced = cut(ctx, call, traced, i, begin, begin + parts[at].shape[i])
            except Refusal:
                continue  # a part of time or batch, or of an axis that is not contiguous
            x = parts[at]
        else:
            continue
        done.add(kind)
    return first, x, traced, ctx, done


@settings(max_examples=300, deadline=None)
@given(cutting_chains())
def test_repeats_and_parts_are_followed(
    chain: tuple[torch.Tensor, torch.Tensor, Traced, Lowering, set[str]],
) -> None:
    first, x, traced, ctx, _ = chain
    assert tuple(x.shape) == traced.layout.shape
    out = ctx.builder.add(Output("output", "TB"), (traced.name,), name="output")
    value = interpret(ctx.builder.build(), first.numpy()).outputs[out]
    np.testing.assert_array_equal(viewed(value, traced.layout, (ctx.time, ctx.batch)), x.numpy())


@pytest.mark.parametrize("kind", ["repeat", "expand", "chunk", "split", "flatten", "unflatten"])
def test_the_chains_hold_every_kind(kind: str) -> None:
    *_, done = find(cutting_chains(), lambda chain: kind in chain[-1])
    assert kind in done


def test_uneven_reshapes_are_refused() -> None:
    _, layout = start(3, 7, [6, 4])
    with pytest.raises(LayoutError, match="cut across"):
        layout.reshape([3, 7, 4, 6])
    with pytest.raises(LayoutError, match="batch"):
        start(3, 14, [6])[1].reshape([3, 2, 7, 6])


def test_a_batch_of_another_size() -> None:
    x, _ = start(2, 3, [4, 5])
    _, traced = start(2, 7, [4, 5])
    y, seen = x.flatten(0, 1).transpose(1, 2), traced.flatten(0, 1).transpose(1, 2)
    np.testing.assert_array_equal(arrange(y.numpy(), seen, LEAD, 3), x.numpy())
    np.testing.assert_array_equal(restore(x.numpy(), seen, LEAD, 3), y.numpy())


def test_repeats_are_the_outer_index() -> None:
    x = torch.arange(6).reshape(2, 3)
    a = (Atom(2),), (Atom(3),)
    layout = Layout(a, a).repeat([2, 1, 4])
    assert layout.shape == tuple(x.repeat(2, 1, 4).shape)
    assert [atom.role for atom in layout.dims[2]] == ["new", "axis"]
    assert [atom.role for atom in layout.dims[0]] == ["new"]
    assert Layout(a, a).expand([5, -1, 3]).shape == (5, 2, 3)


def test_alignment_splits_both_sides() -> None:
    left, right = Layout(((Atom(6), Atom(4)),), ()), Layout(((Atom(2), Atom(12)),), ())
    a, b, pairs = align(left, right)
    sizes = [(p.size, q.size) for p, q in pairs[0] if p is not None and q is not None]
    assert sizes == [(2, 2), (3, 3), (4, 4)]
    assert [t.size for t in a.dims[0]] == [t.size for t in b.dims[0]] == [2, 3, 4]


def test_alignment_of_prime_cuts_is_refused() -> None:
    with pytest.raises(LayoutError, match="do not match"):
        align(Layout(((Atom(6), Atom(4)),), ()), Layout(((Atom(4), Atom(6)),), ()))


@given(st.permutations(range(3)))
def test_positions_follow_a_reordered_axis(order: list[int]) -> None:
    atoms = (Atom(2), Atom(3), Atom(5))
    index = torch.arange(30).reshape(2, 3, 5).permute(order).reshape(-1)
    got = positions(tuple(atoms[i] for i in order), atoms)
    assert got is not None
    np.testing.assert_array_equal(got, index.numpy())
    assert positions(atoms[:2], atoms) is None
