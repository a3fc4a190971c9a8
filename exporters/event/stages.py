"""The stages of an event program: what each reads in a row of the program's table, and the bits of a neuron's kind.

A stage is one row of int64: its operator's number, then the operator's fields in the order below. Fields that
name a place hold it as an offset in elements: in the arena (float32 for floats, uint64 for bits), in the file's
`weights` (float32) or in its `indices` (int32); -1 is none.

Formats of a value of C channels, P positions and S steps (1 where it is the same at every step):

    positions, bits     uint64 [planes, S, P, ceil(C / 64)]   bit c of a row is channel c
    positions, floats   float32 [S, P, C]
    channels, bits      uint64 [planes, C, ceil(P / 64), S]   bit p of a row is position p
    channels, floats    float32 [S, C, P]

Plane k holds bit k of a count. A third way by positions is a list of events (Events).
"""

from __future__ import annotations

from typing import NamedTuple

STEPS_TOGETHER = 4
"""Steps whose events share a list: an input that is active in any of them has its weights read once."""

DECAY_INPUT, DIVIDE, SOFT = 1, 2, 4
"""Bits of a neuron's kind: see ops.Neuron; DIVIDE where 1/tau is not a float32, so that tau is stored, not 1/tau."""


class Events(NamedTuple):
    """Of every position the channels that are not zero in any of four steps, from bits or floats by positions.

    int32 `counts` [S / 4, P], `rows` [S / 4, P, C]: the channels; `places` [S / 4, P, C]: where the four factors of each
    lie: for spikes in `patterns`, float32 [16, 4], else in `values`, float32 [S / 4, P, C, 4].
    """

    x: int = 1
    x_floats: int = 2
    planes: int = 3
    steps: int = 4
    channels: int = 5
    positions: int = 6
    counts: int = 7
    rows: int = 8
    places: int = 9
    values: int = 10
    patterns: int = 11


class Rows(NamedTuple):
    """y[p] = sum of the weight rows of the active inputs that position p sees, then the neuron, if there is one.

    The inputs are those of an Events stage (`places` point into `values`, so it is named). `taps`: in `indices`, P + 1 ends, then pairs (tap, input position); a
    weight row is tap x C + c. `weight`: [blocks, rows, 16 vectors]; `nonzero`: int32 [blocks, rows]. `bias`:
    [blocks, 16 vectors], `bias_stride` apart from step to step. `neuron`: tau, rest, threshold, each [blocks, 16 vectors].
    """

    counts: int = 1
    events: int = 2
    places: int = 3
    x_positions: int = 4
    channels: int = 5
    y: int = 6
    steps: int = 7
    positions: int = 8
    outputs: int = 9
    vectors: int = 10
    blocks: int = 11
    rows: int = 12
    weight: int = 13
    nonzero: int = 14
    bias: int = 15
    bias_stride: int = 16
    taps: int = 17
    neuron: int = 18
    kind: int = 19
    state: int = 20
    values: int = 21


class Columns(NamedTuple):
    """y[o] = sum of row o's nonzero weights, each over the positions where its input is set, then the neuron.

    x lies by channels: bits, or (`x_floats`) floats, which cost less than two planes of bits.
    `ends`: in `indices`, outputs + 1; `columns`: int32 input row by nonzero; `data`: float32 by nonzero;
    `fan_out`: int32 nonzeros by input row. `neuron`: tau, rest, threshold by output.
    """

    x: int = 1
    planes: int = 2
    inputs: int = 3
    y: int = 4
    steps: int = 5
    positions: int = 6
    outputs: int = 7
    ends: int = 8
    columns: int = 9
    data: int = 10
    fan_out: int = 11
    bias: int = 12
    bias_stride: int = 13
    neuron: int = 14
    kind: int = 15
    state: int = 16
    x_floats: int = 17


class Turn(NamedTuple):
    """The same bits by positions (`to_positions`) or by channels."""

    x: int = 1
    y: int = 2
    planes: int = 3
    steps: int = 4
    channels: int = 5
    positions: int = 6
    to_positions: int = 7


class Flip(NamedTuple):
    """The same floats by positions from those by channels (`to_positions`), or back."""

    x: int = 1
    y: int = 2
    steps: int = 3
    channels: int = 4
    positions: int = 5
    to_positions: int = 6


class Unpack(NamedTuple):
    """Floats by channels, unit x count, from bits by channels; `unit` in `weights`."""

    x: int = 1
    y: int = 2
    planes: int = 3
    steps: int = 4
    channels: int = 5
    positions: int = 6
    unit: int = 7


class Pack(NamedTuple):
    """Bits by channels from floats by channels, unit x count each; `unit` in `weights`."""

    x: int = 1
    y: int = 2
    planes: int = 3
    steps: int = 4
    channels: int = 5
    positions: int = 6
    unit: int = 7


class Unfold(NamedTuple):
    """Bits by channels of every (tap, channel): y[k C + c, dst : dst + n] = x[c, src : src + n] for the runs of tap k.

    `runs`: in `indices`, taps + 1 ends, then triples (dst, src, n), n at most 64.
    """

    x: int = 1
    y: int = 2
    planes: int = 3
    steps: int = 4
    channels: int = 5
    x_positions: int = 6
    positions: int = 7
    taps: int = 8
    runs: int = 9


class Union(NamedTuple):
    """Spikes by positions: y[p] = or of x at the positions that p's window holds; `windows` as Rows.taps."""

    x: int = 1
    y: int = 2
    steps: int = 3
    channels: int = 4
    x_positions: int = 5
    positions: int = 6
    windows: int = 7


class AddCounts(NamedTuple):
    """z = x + y, bit planes of either orientation, `words` a plane and step."""

    x: int = 1
    x_planes: int = 2
    y: int = 3
    y_planes: int = 4
    z: int = 5
    z_planes: int = 6
    words: int = 7
    steps: int = 8


class Gate(NamedTuple):
    """z = x y, bits by channels, one of them spikes; an operand of one channel or one position is spread."""

    x: int = 1
    x_planes: int = 2
    x_steps: int = 3
    x_channels: int = 4
    x_positions: int = 5
    y: int = 6
    y_planes: int = 7
    y_steps: int = 8
    y_channels: int = 9
    y_positions: int = 10
    z: int = 11
    steps: int = 12
    channels: int = 13
    positions: int = 14


class CopyRows(NamedTuple):
    """`length` words a step, from word `first` of each of x's planes to word `to` of y's; planes are so many words apart."""

    x: int = 1
    y: int = 2
    steps: int = 3
    length: int = 4
    planes: int = 5
    first: int = 6
    to: int = 7
    x_plane: int = 8
    y_plane: int = 9


class Tokens(NamedTuple):
    """K^T V of spikes by channels: y[h, d, e] = how many positions a[h:d] and b[h:e] share; floats [S, pairs].

    `table`: in `indices`, for every channel of a: first channel of b, how many, first pair.
    """

    a: int = 1
    b: int = 2
    y: int = 3
    steps: int = 4
    a_channels: int = 5
    positions: int = 6
    pairs: int = 7
    table: int = 8


class Pairs(NamedTuple):
    """Q (K^T V): y[h:e] = scale x sum over d of pair (h, d, e) where a[h:d] is set, then the neuron.

    `table`: in `indices`, for every output: first channel of a, how many, first pair, pairs from d to d + 1.
    """

    a: int = 1
    pair: int = 2
    y: int = 3
    steps: int = 4
    positions: int = 5
    outputs: int = 6
    pairs: int = 7
    table: int = 8
    scale: int = 9
    neuron: int = 10
    kind: int = 11
    state: int = 12


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


class Product(NamedTuple):
    """A product of attention in floats by channels; `over`: 0 channels, 1 keys, 2 tokens, 3 pairs (ops.MatMul).

    `table`: in `indices`, for each head: its first channel and how many, of a and of b, its first pair.
    """

    a: int = 1
    a_steps: int = 2
    a_size: int = 3
    b: int = 4
    b_steps: int = 5
    b_size: int = 6
    y: int = 7
    steps: int = 8
    size: int = 9
    over: int = 10
    heads: int = 11
    table: int = 12
    n: int = 13
    m: int = 14


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


STAGES: tuple[type[tuple[int, ...]], ...] = (
    Events,
    Rows,
    Columns,
    Turn,
    Flip,
    Unpack,
    Pack,
    Unfold,
    Union,
    AddCounts,
    Gate,
    CopyRows,
    Tokens,
    Pairs,
    Fire,
    FirePositions,
    Elementwise,
    Affine,
    Gather,
    Segments,
    Product,
    Select,
    Readout,
    Constant,
)
"""Every operator; a stage's number is its place here."""
NUMBER = {kind.__name__: number for number, kind in enumerate(STAGES)}
WIDTH = 1 + max(len(kind()) for kind in STAGES)
"""Columns of a program's table."""
