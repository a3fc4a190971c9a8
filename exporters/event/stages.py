"""The stages of an event program: what each reads in a row of the program's table, and the bits of a neuron's kind.

A stage is one row of int64: its operator's number, then the operator's fields in the order of its class, here or in
bit_stages and float_stages. Fields that name a place hold it as an offset in elements: in the arena (float32 for floats,
uint64 for bits), in the file's `weights` (float32) or in its `indices` (int32); -1 is none.

Formats of a value of C channels, P positions and S steps (1 where it is the same at every step):

    positions, bits     uint64 [planes, S, P, ceil(C / 64)]   bit c of a row is channel c
    positions, floats   float32 [S, P, C]
    channels, bits      uint64 [planes, C, ceil(P / 64), S]   bit p of a row is position p
    channels, floats    float32 [S, C, P]

Plane k holds bit k of a count.
"""

from __future__ import annotations

from typing import NamedTuple

from stdeploy.exporters.event.bit_stages import AddCounts, CopyRows, Gate, Pack, Turn, Unfold, Union, Unpack
from stdeploy.exporters.event.float_stages import (
    Affine,
    Constant,
    Elementwise,
    Fire,
    FirePositions,
    Flip,
    Gather,
    Readout,
    Segments,
    Select,
)

LANES = 16
"""Floats of a vector."""
WORD = 64
"""Bits of a word."""
MOST_VECTORS = 6
"""Vectors of outputs that Rows adds up at once: WORD rows of so many are 24 KiB and stay in the first cache."""
POSITIONS_TOGETHER, STEPS_TOGETHER = 8, 4
"""Rows read WORD rows of weights for so many positions and steps before the next; their sums stay in the cache."""

DECAY_INPUT, DIVIDE, SOFT = 1, 2, 4
"""Bits of a neuron's kind: see ops.Neuron; DIVIDE where 1/tau is not a float32, so that tau is stored, not 1/tau."""


class Rows(NamedTuple):
    """y[p] = sum of the weight rows of the nonzero inputs that position p sees, then the neuron, if there is one.

    x lies by positions: bits, or (`x_floats`) floats. `parts`: in `indices`, blocks + 1 ends, then (tap, first channel, first
    row): runs of WORD channels of a tap from which a block of outputs has nonzero weights. `weight`: [rows, 16 vectors], a
    row for each channel of every part. `nonzero`: int32 [blocks, inputs], of input tap x C + c. `visits`: in `indices`, for
    every POSITIONS_TOGETHER positions and every tap its end, after a 0, then from an even place on pairs (position among
    these, input position). `bias`: [blocks, 16 vectors], `bias_stride` apart from step to step. `neuron`: tau, rest,
    threshold, each [blocks, 16 vectors].
    """

    x: int = 1
    x_floats: int = 2
    planes: int = 3
    x_positions: int = 4
    channels: int = 5
    y: int = 6
    steps: int = 7
    positions: int = 8
    outputs: int = 9
    vectors: int = 10
    blocks: int = 11
    inputs: int = 12
    weight: int = 13
    nonzero: int = 14
    parts: int = 15
    taps: int = 16
    visits: int = 17
    bias: int = 18
    bias_stride: int = 19
    neuron: int = 20
    kind: int = 21
    state: int = 22


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


STAGES: tuple[type[tuple[int, ...]], ...] = (
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
