"""The axis algebra: which part of a graph value each dimension of a torch tensor is.

A torch tensor of a spiking transformer is a graph value seen through views. Its elements are indexed by
atoms (time, batch, and factors of the value's axes); a torch dimension is a list of atoms in row-major
order, and so is an axis of the value. Views only regroup and reorder atoms; a reshape may split one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Role = Literal["axis", "time", "batch", "new"]
"""`new`: a dimension made by repeat or expand, along which the value does not change."""


@dataclass(frozen=True, eq=False, slots=True)
class Atom:
    """An index of `size` values; two atoms are the same only if they are the same object."""

    size: int
    role: Role = "axis"


Atoms = tuple[Atom, ...]


class LayoutError(ValueError):
    """A view that the algebra cannot follow; the message says why."""


def length(atoms: Iterable[Atom]) -> int:
    """Number of index values of a list of atoms; 1 where it is empty."""
    return math.prod(atom.size for atom in atoms)


class _Splits:
    """Atoms that were split, and how."""

    def __init__(self) -> None:
        self.parts: dict[Atom, Atoms] = {}

    def split(self, atom: Atom, outer: int) -> tuple[Atom, Atom]:
        """Two atoms in place of one: `outer` values, then the rest."""
        if atom.role in ("time", "batch"):
            raise LayoutError(f"the {atom.role} dimension would be split")
        pair = (Atom(outer, atom.role), Atom(atom.size // outer, atom.role))
        self.parts[atom] = pair
        return pair

    def apply(self, layout: Layout) -> Layout:
        return layout.replace(self.parts) if self.parts else layout


@dataclass(frozen=True, eq=False)
class Layout:
    """`dims[i]`: the atoms of torch dimension i; `axes[k]`: the atoms of axis k of the graph value.

    Atoms of size 1 are left out, but for time. Every atom of `axes` is in `dims`.
    """

    dims: tuple[Atoms, ...]
    axes: tuple[Atoms, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(length(d) for d in self.dims)

    def replace(self, parts: Mapping[Atom, Atoms]) -> Layout:
        """Every atom in `parts` replaced, repeatedly, by the atoms it stands for."""

        def expand(atoms: Atoms) -> Atoms:
            return tuple(leaf for a in atoms for leaf in (expand(parts[a]) if a in parts else (a,)))

        return Layout(tuple(map(expand, self.dims)), tuple(map(expand, self.axes)))

    def with_dims(self, dims: Sequence[Atoms]) -> Layout:
        return Layout(tuple(dims), self.axes)

    def dim(self, index: int, extra: int = 0) -> int:
        """Dimension `index` counted from the front."""
        return index + len(self.dims) + extra if index < 0 else index

    def reshape(self, sizes: Sequence[int]) -> Layout:
        """torch.reshape to `sizes` (one may be -1); LayoutError where atoms would have to be cut unevenly."""
        stack = [a for d in reversed(self.dims) for a in reversed(d)]
        splits = _Splits()
        dims = [self._take(stack, size, splits) for size in _resolve(sizes, length(stack))]
        if stack:  # only atoms of size 1 can be left
            dims = [*dims[:-1], (*dims[-1], *reversed(stack))] if dims else [tuple(reversed(stack))]
        return splits.apply(self).with_dims([_flat(d, splits.parts) for d in dims])

    @staticmethod
    def _take(stack: list[Atom], size: int, splits: _Splits) -> Atoms:
        taken: list[Atom] = []
        need = size
        while stack and (need > 1 or (stack[-1].size == 1 and not taken)):
            atom = stack.pop()
            if need % atom.size == 0:
                taken.append(atom)
                need //= atom.size
            elif atom.size % need == 0:
                outer, inner = splits.split(atom, need)
                taken.append(outer)
                stack.append(inner)
                need = 1
            else:
                raise LayoutError(f"a dimension of {size} would cut across one of {atom.size}")
        if need != 1:
            raise LayoutError(f"there are not enough elements for a dimension of {size}")
        return tuple(taken)

    def permute(self, order: Sequence[int]) -> Layout:
        return self.with_dims([self.dims[self.dim(i)] for i in order])

    def transpose(self, a: int, b: int) -> Layout:
        order = list(range(len(self.dims)))
        a, b = self.dim(a), self.dim(b)
        if order:
            order[a], order[b] = order[b], order[a]
        return self.permute(order)

    def movedim(self, source: Sequence[int], target: Sequence[int]) -> Layout:
        moves = dict(zip([self.dim(t) for t in target], [self.dim(s) for s in source], strict=True))
        rest = iter([i for i in range(len(self.dims)) if i not in moves.values()])
        return self.permute([moves[i] if i in moves else next(rest) for i in range(len(self.dims))])

    def flatten(self, start: int = 0, stop: int = -1) -> Layout:
        if not self.dims:
            return self.with_dims([()])
        start, stop = self.dim(start), self.dim(stop)
        merged = tuple(a for d in self.dims[start : stop + 1] for a in d)
        return self.with_dims([*self.dims[:start], merged, *self.dims[stop + 1 :]])

    def unflatten(self, index: int, sizes: Sequence[int]) -> Layout:
        index = self.dim(index)
        inner = _resolve(sizes, length(self.dims[index]))
        one = Layout((self.dims[index],), self.axes).reshape(inner)
        outer = self.replace(_difference(self.dims[index], [a for d in one.dims for a in d]))
        return outer.with_dims([*outer.dims[:index], *one.dims, *outer.dims[index + 1 :]])

    def unsqueeze(self, index: int) -> Layout:
        index = self.dim(index, 1)
        return self.with_dims([*self.dims[:index], (), *self.dims[index:]])

    def squeeze(self, index: Sequence[int] | None = None) -> Layout:
        """Drop the listed (or all) dimensions of size 1; time, even of one step, has to be read out instead."""
        chosen = range(len(self.dims)) if index is None else [self.dim(i) for i in index]
        gone = {i for i in chosen if not self.dims[i]}
        return self.with_dims([d for i, d in enumerate(self.dims) if i not in gone])

    def expand(self, sizes: Sequence[int]) -> Layout:
        """torch.expand; -1 keeps a dimension."""
        dims = [()] * (len(sizes) - len(self.dims)) + list(self.dims)
        out = [(Atom(n, "new"),) if n not in (-1, length(d)) else d for n, d in zip(sizes, dims, strict=True)]
        return self.with_dims(out)

    def repeat(self, counts: Sequence[int]) -> Layout:
        """torch.repeat: the copies are the outer index of their dimension."""
        dims = [()] * (len(counts) - len(self.dims)) + list(self.dims)
        return self.with_dims([_repeat(n) + d for n, d in zip(counts, dims, strict=True)])

    def without(self, index: Iterable[int]) -> Layout:
        """The listed dimensions, whose atoms are in no axis any more, left out."""
        gone = {self.dim(i) for i in index}
        return self.with_dims([d for i, d in enumerate(self.dims) if i not in gone])


def _repeat(count: int) -> Atoms:
    return (Atom(count, "new"),) if count > 1 else ()


def _flat(atoms: Atoms, parts: Mapping[Atom, Atoms]) -> Atoms:
    return tuple(leaf for a in atoms for leaf in (_flat(parts[a], parts) if a in parts else (a,)))


def _difference(before: Atoms, after: Sequence[Atom]) -> dict[Atom, Atoms]:
    """Which atoms of `before` stand as several in `after` (the same order, refined)."""
    parts: dict[Atom, Atoms] = {}
    rest = list(after)
    for atom in before:
        if rest and rest[0] is atom:
            rest.pop(0)
            continue
        group: list[Atom] = []
        while length(group) < atom.size:
            group.append(rest.pop(0))
        parts[atom] = tuple(group)
    return parts


def _resolve(sizes: Sequence[int], total: int) -> list[int]:
    if -1 not in sizes:
        return list(sizes)
    known = math.prod(n for n in sizes if n != -1)
    return [total // known if n == -1 else n for n in sizes]


Pair = tuple[Atom | None, Atom | None]


def align(a: Layout, b: Layout) -> tuple[Layout, Layout, list[list[Pair]]]:
    """Both layouts with equal ranks and equally split dimensions, and what pairs with what in each.

    Dimensions are aligned from the right, as torch broadcasts; a partner None is a broadcast.
    """
    rank = max(len(a.dims), len(b.dims))
    a = a.with_dims([()] * (rank - len(a.dims)) + list(a.dims))
    b = b.with_dims([()] * (rank - len(b.dims)) + list(b.dims))
    left, right = _Splits(), _Splits()
    pairs = [_pair(x, y, left, right) for x, y in zip(a.dims, b.dims, strict=True)]
    return left.apply(a), right.apply(b), pairs


def _pair(x: Atoms, y: Atoms, left: _Splits, right: _Splits) -> list[Pair]:
    if length(x) != length(y):
        if length(y) == 1:
            return [(atom, None) for atom in x]
        if length(x) == 1:
            return [(None, atom) for atom in y]
        raise LayoutError(f"dimensions of {length(x)} and {length(y)} do not match")
    out: list[Pair] = []
    xs, ys = list(reversed(x)), list(reversed(y))
    while xs or ys:
        p, q = (xs.pop() if xs else None), (ys.pop() if ys else None)
        if p is not None and q is not None and p.size != q.size:
            if p.size == 1:
                ys.append(q)
                q = None
            elif q.size == 1:
                xs.append(p)
                p = None
            else:
                p, q = _even(p, q, xs, ys, left, right)
        out.append((p, q))
    return out


def _even(
    p: Atom, q: Atom, xs: list[Atom], ys: list[Atom], left: _Splits, right: _Splits
) -> tuple[Atom, Atom]:
    if p.size % q.size == 0:
        p, rest = left.split(p, q.size)
        xs.append(rest)
    elif q.size % p.size == 0:
        q, rest = right.split(q, p.size)
        ys.append(rest)
    else:
        raise LayoutError(f"dimensions made of {p.size} and of {q.size} do not match")
    return p, q


def positions(dim: Atoms, axis: Atoms) -> Array | None:
    """[n] position on the axis of each index of the dimension; None where they are not the same atoms."""
    if set(dim) != set(axis) or len(dim) != len(axis):
        return None
    index = np.arange(length(axis)).reshape([a.size for a in axis])
    return index.transpose([axis.index(a) for a in dim]).reshape(-1)


def groups(axis: Atoms, kept: Atoms) -> Array:
    """[n] for each index of the axis the index of the `kept` atoms alone: which head a channel belongs to."""
    index = np.arange(length(kept)).reshape([a.size if a in kept else 1 for a in axis])
    return np.broadcast_to(index, [a.size for a in axis]).reshape(-1)


def arrange(array: Array, layout: Layout, lead: Sequence[Role], batch: int) -> Array:
    """The value `[*lead, *axes]` of a torch tensor with this layout and this batch size.

    A lead dimension that the tensor does not have (the one step of T = 1) gets size 1.
    """
    atoms = [a for d in layout.dims for a in d]
    split = array.reshape([batch if a.role == "batch" else a.size for a in atoms])
    order: list[int] = []
    shape: list[int] = []
    for role in lead:
        found = [i for i, a in enumerate(atoms) if a.role == role]
        order += found
        shape.append(math.prod(split.shape[i] for i in found))
    order += [atoms.index(a) for axis in layout.axes for a in axis]
    shape += [length(axis) for axis in layout.axes]
    if len(order) != len(atoms):
        raise LayoutError("the tensor has dimensions that its value does not have")
    return split.transpose(order).reshape(shape)


def restore(value: Array, layout: Layout, lead: Sequence[Role], batch: int) -> Array:
    """Inverse of `arrange`: the torch tensor of a value `[*lead, *axes]`."""
    index = np.arange(value.size).reshape(
        [math.prod(batch if a.role == "batch" else a.size for a in d) for d in layout.dims]
    )
    flat = np.empty(value.size, dtype=value.dtype)
    flat[arrange(index, layout, lead, batch).reshape(-1)] = value.reshape(-1)
    return flat.reshape(index.shape)
