"""Sums, products and constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from stdeploy.graph.ops import Add, Affine, Constant, Linear, Mul, Reduce, Scale
from stdeploy.graph.weight import Array, Weight
from stdeploy.trace.aten_select import shifted_positions
from stdeploy.trace.axes import Atom, Atoms, Layout, LayoutError, Pair, align, groups, length
from stdeploy.trace.lowering import Call, Chosen, Lowering, Refusal, Traced, lowers, safe_name, to_numpy


def scaled(ctx: Lowering, call: Call, x: Traced, factor: float) -> Traced:
    return x if factor == 1 else Traced(ctx.add(Scale(float(factor)), [x.name], call, "scale"), x.layout)


def _number(value: Any, x: Traced | None = None) -> float | None:
    """The number that an argument is, whatever holds it: also a tensor of one number that does not enlarge `x`."""
    if isinstance(value, Tensor):
        if value.numel() == 1:
            return float(value)
        if x is None or value.numel() == 0 or not bool((value == value.flatten()[0]).all()):
            return None
        shape = x.layout.shape
        same = np.broadcast_shapes(tuple(value.shape), shape) == shape
        return float(value.flatten()[0]) if same else None
    return float(value) if isinstance(value, int | float) else None


def _pick(ctx: Lowering, a: Any, b: Any) -> tuple[Traced, Any]:
    """The traced operand first."""
    return (ctx.tensor(a), b) if isinstance(a, Traced) else (ctx.tensor(b), a)


@lowers("add", "__radd__")
def add(ctx: Lowering, call: Call) -> Traced:
    for x, other in ((call["self"], call["other"]), (call["other"], call["self"])):
        if isinstance(x, Chosen) and call.get("alpha", 1) == 1:
            return shifted_positions(x, other)
    return _sum(ctx, call, call["self"], call["other"], float(call.get("alpha", 1)))


@lowers("sub", "subtract")
def sub(ctx: Lowering, call: Call) -> Traced:
    return _sum(ctx, call, call["self"], call["other"], -float(call.get("alpha", 1)))


@lowers("rsub")
def rsub(ctx: Lowering, call: Call) -> Traced:
    return _sum(ctx, call, call["other"], call["self"], -float(call.get("alpha", 1)))


def _sum(ctx: Lowering, call: Call, a: Any, b: Any, alpha: float) -> Traced:
    """a + alpha b."""
    if isinstance(a, Traced) and isinstance(b, Traced):
        return binary(ctx, call, Add(), ctx.tensor(a), scaled(ctx, call, ctx.tensor(b), alpha))
    x, other = _pick(ctx, a, b)
    number = _number(other, x)
    if x is b and number is not None and number != 0 and alpha != 1:
        count = _channels(ctx, x)
        return _affine(ctx, call, x, np.full(count, alpha), np.full(count, number))
    if x is b:
        x = scaled(ctx, call, x, alpha)
    elif alpha != 1:
        other = other * alpha
        number = _number(other, x)
    if number is not None:
        return x if number == 0 else _affine(ctx, call, x, None, np.full(_channels(ctx, x), number))
    return binary(ctx, call, Add(), x, other)


@lowers("mul", "multiply", "__rmul__")
def mul(ctx: Lowering, call: Call) -> Traced:
    a, b = call["self"], call["other"]
    if isinstance(a, Traced) and isinstance(b, Traced):
        return binary(ctx, call, Mul(), ctx.tensor(a), ctx.tensor(b))
    x, other = _pick(ctx, a, b)
    number = _number(other, x)
    return scaled(ctx, call, x, number) if number is not None else binary(ctx, call, Mul(), x, other)


@lowers("div", "divide", "true_divide")
def div(ctx: Lowering, call: Call) -> Traced:
    if call.get("rounding_mode"):
        raise Refusal("a division that rounds")
    x, other = ctx.tensor(call["self"]), call["other"]
    if isinstance(other, Traced):
        raise Refusal("it divides by a value of the network")
    number = _number(other, x)
    if number is not None:
        return scaled(ctx, call, x, 1.0 / number)
    return binary(ctx, call, Mul(), x, 1.0 / other)


@lowers("abs", "absolute", "relu")
def magnitude(ctx: Lowering, call: Call) -> Traced:
    """Of what is never negative: nothing."""
    x = ctx.tensor(call["self"])
    if ctx.value(x).domain.maximum is None:
        raise Refusal(
            f"{call.operator} of values that may be negative", "the graph's nonlinearity is the neuron"
        )
    return x


@lowers("neg", "negative")
def neg(ctx: Lowering, call: Call) -> Traced:
    return scaled(ctx, call, ctx.tensor(call["self"]), -1.0)


def _channels(ctx: Lowering, x: Traced) -> int:
    return ctx.value(x).shape[0]


def _affine(ctx: Lowering, call: Call, x: Traced, scale: Array | None, shift: Array) -> Traced:
    factor = np.ones(shift.shape) if scale is None else scale
    return Traced(ctx.add(Affine(factor, shift), [x.name], call, "affine"), x.layout)


def binary(ctx: Lowering, call: Call, op: Add | Mul, x: Traced, other: Any) -> Traced:
    """x op other, both as torch broadcasts them; `other` is traced or a constant tensor."""
    suffix = type(op).__name__.lower()
    if isinstance(other, Tensor):
        array, x, per_step = arranged_constant(ctx, x, other)
        if not per_step and array.size == array.shape[0]:  # one number a channel
            flat = array.reshape(-1).astype(np.float64)
            if array.shape[0] == _channels(ctx, x):
                zeros = np.zeros(flat.shape)
                return _affine(ctx, call, x, *((flat, zeros) if isinstance(op, Mul) else (None, flat)))
        label = ctx.names.get(other, "")
        name = ctx.builder.add(
            Constant(array, ctx.value(x).axes, per_step),
            name=safe_name(label or f"{call.path or call.operator}.constant"),
            source=label or call.path,
        )
        return Traced(ctx.add(op, [x.name, name], call, suffix), x.layout)
    surplus = len(x.layout.axes) - len(other.layout.axes)
    x, other = _squeezed(ctx, call, x, surplus), _squeezed(ctx, call, other, -surplus)
    a, b, pairs = align(x.layout, other.layout)
    names = [x.name, other.name]
    layout = merged(ctx, call, names, a, b, pairs)
    return Traced(ctx.add(op, names, call, suffix), layout)


def _squeezed(ctx: Lowering, call: Call, x: Traced, surplus: int) -> Traced:
    """`x` without its last `surplus` axes of size 1 (one token taken of many), where it has as many."""
    single = [k for k, axis in enumerate(x.layout.axes) if k and not axis]
    if surplus <= 0 or len(single) < surplus:
        return x
    gone = tuple(single[-surplus:])
    name = ctx.add(Reduce(gone, False), [x.name], call, "squeeze")
    axes = tuple(a for k, a in enumerate(x.layout.axes) if k not in gone)
    return Traced(name, Layout(x.layout.dims, axes))


def merged(
    ctx: Lowering, call: Call, names: list[str], a: Layout, b: Layout, pairs: list[list[Pair]]
) -> Layout:
    """Layout of an elementwise result; LayoutError where the values' axes do not correspond.

    Where one operand (in `names`) has one number for each head, it is first given one for each channel.
    """
    dims: list[tuple[Atom, ...]] = []
    stands: dict[Atom, Atom] = {}
    for group in pairs:
        dim = []
        for p, q in group:
            atom = _joined(ctx, p, q)
            dim.append(atom)
            stands.update({other: atom for other in (p, q) if other is not None})
        dims.append(tuple(dim))
    left = [tuple(stands[t] for t in axis) for axis in a.axes]
    right = [tuple(stands[t] for t in axis) for axis in b.axes]
    if left and right:
        left[0] = _spread(ctx, call, names, 0, left[0], right[0])
        right[0] = _spread(ctx, call, names, 1, right[0], left[0])
    if len(left) != len(right) or any(m and n and m != n for m, n in zip(left, right, strict=True)):
        raise LayoutError("its operands' axes are arranged differently")
    axes = tuple(m or n for m, n in zip(left, right, strict=True))
    held = {t for axis in axes for t in axis}
    loose = [t for d in dims for t in d if t.role == "axis" and t not in held]
    if loose:
        raise LayoutError("its operands' axes do not correspond")
    return Layout(tuple(dims), axes)


def _spread(ctx: Lowering, call: Call, names: list[str], operand: int, own: Atoms, other: Atoms) -> Atoms:
    """The operand's channel axis, spread over the other's by a Linear of ones and zeros where it has a part of it."""
    if not own or own == other or own != tuple(a for a in other if a in own):
        return own
    head = groups(other, own)
    values = np.zeros((head.size, length(own)))
    values[np.arange(head.size), head] = 1.0
    names[operand] = ctx.add(Linear(Weight.dense(values)), [names[operand]], call, "spread")
    return other


def _joined(ctx: Lowering, p: Atom | None, q: Atom | None) -> Atom:
    """The atom that two paired atoms become: a real one before one that only repeats."""
    known = [t for t in (p, q) if t is not None]
    kinds = {t.role for t in known} - {"new"}
    if len(kinds) > 1:
        raise LayoutError(f"its operands mix {' and '.join(sorted(kinds))} in one dimension")
    return next((t for t in known if t.role != "new"), known[0])


def arranged_constant(ctx: Lowering, x: Traced, tensor: Tensor) -> tuple[Array, Traced, bool]:
    """A constant that torch broadcasts against `x`, as `[*axes of x]` (1 where equal) or `[T, *axes]`."""
    array = to_numpy(tensor)
    layout = x.layout
    if array.ndim > len(layout.dims):
        for _ in range(array.ndim - len(layout.dims)):
            layout = layout.unsqueeze(0)
    array = array.reshape([1] * (len(layout.dims) - array.ndim) + list(array.shape))
    split = array.reshape(_split_shape(array.shape, layout))
    atoms = [a for d in layout.dims for a in d]
    index: list[Any] = []
    steps: Atom | None = None
    for i, atom in enumerate(atoms):
        if atom.role == "batch" and split.shape[i] > 1:
            split = _equal_along(split, i)
        if atom.role in ("time", "new") and split.shape[i] > 1:
            first = np.take(split, [0], axis=i)
            split = first if np.array_equal(np.broadcast_to(first, split.shape), split) else split
        if atom.role == "new" and split.shape[i] > 1:
            if atom.size != ctx.steps or steps is not None:
                raise Refusal("a constant differs along a repeated dimension that is not time")
            layout = layout.replace({atom: (ctx.time,)})
            atoms[i] = atom = ctx.time
        if atom.role == "time" and split.shape[i] > 1:
            steps = atom
        index.append(atom)
    return _by_axes(split, index, layout, steps), x.view(layout), steps is not None


def _split_shape(shape: Sequence[int], layout: Layout) -> list[int]:
    out: list[int] = []
    for size, dim in zip(shape, layout.dims, strict=True):
        if size == length(dim):
            out += [a.size for a in dim]
        elif size == 1:
            out += [1] * len(dim)
        else:
            raise Refusal(f"a constant has {size} where the value has {length(dim)}")
    return out


def _equal_along(array: Array, axis: int) -> Array:
    first = np.take(array, [0], axis=axis)
    if not np.all(array == first):
        raise Refusal("a constant differs from sample to sample")
    return first


def _by_axes(split: Array, atoms: list[Atom], layout: Layout, steps: Atom | None) -> Array:
    order = [atoms.index(a) for axis in layout.axes for a in axis]
    lead = [] if steps is None else [atoms.index(steps)]
    rest = [i for i in range(len(atoms)) if i not in order and i not in lead]
    array = split.transpose([*lead, *order, *rest])
    array = array.reshape(tuple(array.shape)[: len(lead) + len(order)])
    shape: list[int] = [array.shape[0]] if lead else []
    position = len(lead)
    for axis in layout.axes:
        present: tuple[int, ...] = tuple(array.shape)[position : position + len(axis)]
        if any(n > 1 for n in present) and any(n != a.size for n, a in zip(present, axis, strict=True)):
            whole = (*array.shape[:position], *(a.size for a in axis), *array.shape[position + len(axis) :])
            array = np.broadcast_to(array, whole)
            present = tuple(a.size for a in axis)
        shape.append(int(np.prod(present, dtype=np.int64)))
        position += len(axis)
    return np.array(array.reshape(shape), copy=True)
