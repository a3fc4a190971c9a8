"""Stages that move and combine bits: what each reads in its row (see stages)."""

from __future__ import annotations

from typing import NamedTuple


class Turn(NamedTuple):
    """The same bits by positions (`to_positions`) or by channels."""

    x: int = 1
    y: int = 2
    planes: int = 3
    steps: int = 4
    channels: int = 5
    positions: int = 6
    to_positions: int = 7


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
    """Bits by channels of every (tap, channel): y[k C + c, p] = x[c, p + far] for the shifts of tap k that hold p, else 0.

    `shifts`: in `indices`, of each tap and every 64 positions its end, after a 0, then (far, which of the 64: low half, high
    half).
    """

    x: int = 1
    y: int = 2
    planes: int = 3
    steps: int = 4
    channels: int = 5
    x_positions: int = 6
    positions: int = 7
    taps: int = 8
    shifts: int = 9


class Union(NamedTuple):
    """Spikes by positions: y[p] = or of x at the positions that p's window holds.

    `windows`: in `indices`, for every position its end, after a 0, then from an even place on pairs (tap, input position).
    """

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
