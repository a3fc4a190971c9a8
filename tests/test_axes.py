"""The axis algebra against torch: views of an index tensor, followed and taken back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.trace.axes import Atom, Layout, LayoutError, align, arrange, length, positions, restore

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
