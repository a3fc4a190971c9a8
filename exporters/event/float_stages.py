"""Stages of floats, element by element: what each reads in its row (see stages)."""

from __future__ import annotations

from typing import NamedTuple


class Flip(NamedTuple):
    """The same floats by positions from those by channels (`to_positions`), or back."""

    x: int = 1
    y: int = 2
    steps: int = 3
    channels: int = 4
    positions: int = 5
    to_positions: int = 6


class Fire(NamedTuple):
    """A neuron of its own: floats by channels to bits by channels."""

    x: int = 1
    x_steps: int = 2
    y: int = 3
    steps: int = 4
    channels: int = 5
    positions: int = 6
    neuron: int = 7
    kind: int = 8
    state: int = 9


class FirePositions(NamedTuple):
    """A neuron of its own: floats by positions to bits by positions; `size`: the channels' room in `neuron`."""

    x: int = 1
    x_steps: int = 2
    y: int = 3
    steps: int = 4
    channels: int = 5
    positions: int = 6
    neuron: int = 7
    kind: int = 8
    state: int = 9
    size: int = 10


class Elementwise(NamedTuple):
    """y[t, i] = a[t, ia(i)] + or x b[t, ib(i)], floats; `a_index`, `b_index` in `indices`, -1: i itself."""

    a: int = 1
    a_steps: int = 2
    a_size: int = 3
    a_index: int = 4
    b: int = 5
    b_steps: int = 6
    b_size: int = 7
    b_index: int = 8
    y: int = 9
    steps: int = 10
    size: int = 11
    multiply: int = 12


class Affine(NamedTuple):
    """y = scale[c] x + shift[c], floats by channels or by positions; `shift` -1: none."""

    x: int = 1
    y: int = 2
    steps: int = 3
    outer: int = 4
    channels: int = 5
    inner: int = 6
    scale: int = 7
    shift: int = 8


class Gather(NamedTuple):
    """y[t, to(i)] = x[t, source(i)], floats; `to` -1: i itself."""

    x: int = 1
    x_steps: int = 2
    x_size: int = 3
    y: int = 4
    y_size: int = 5
    steps: int = 6
    size: int = 7
    source: int = 8
    to: int = 9


class Segments(NamedTuple):
    """y[t, i] = max, or sum / divisor[i], of x[t] over a segment of `table`: size + 1 ends, then places."""

    x: int = 1
    x_size: int = 2
    y: int = 3
    steps: int = 4
    size: int = 5
    table: int = 6
    divisor: int = 7


class Select(NamedTuple):
    """The `kept` best of n tokens by their scores; positions int32 [S, kept] at `chosen` (ops.Select).

    `unit`: in `weights`, of scores that count; -1 for others.
    """

    x: int = 1
    x_steps: int = 2
    scores: int = 3
    score_steps: int = 4
    y: int = 5
    steps: int = 6
    channels: int = 7
    tokens: int = 8
    kept: int = 9
    largest: int = 10
    by_index: int = 11
    unit: int = 12
    chosen: int = 13
    forced: int = 14


class Readout(NamedTuple):
    """y = mean (0), sum (1) or last (2) of x over the steps; `steps` of the whole run, 0 of them in x: static."""

    x: int = 1
    x_steps: int = 2
    y: int = 3
    size: int = 4
    mode: int = 5
    total: int = 6
    state: int = 7


class Constant(NamedTuple):
    """y[t] = the constant in `weights`; `stride` apart from step to step."""

    y: int = 1
    steps: int = 2
    size: int = 3
    value: int = 4
    stride: int = 5
