"""How a value lies in memory, and which stages lead from one format to another (see stages)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from stdeploy.exporters.event.stages import WORD
from stdeploy.graph.value import Value

Format = Literal["position bits", "position floats", "channel bits", "channel floats"]
MOST_PLANES = 6
"""Bits of the largest counts that are held as bits: sums of residuals; beyond, floats cost less."""

STEPS_BETWEEN: dict[Format, tuple[Format, ...]] = {
    "position bits": ("channel bits",),
    "channel bits": ("position bits", "channel floats"),
    "channel floats": ("position floats", "channel bits"),
    "position floats": ("channel floats",),
}
"""From each format those that one stage makes of it."""


@dataclass(frozen=True)
class Layout:
    """Sizes of a value: channels, positions, bit planes (0: it cannot be bits), and whether it has steps.

    What follows a readout is never bits: the units of a mean over a stream's steps are not those of a whole run's.
    """

    channels: int
    positions: int
    planes: int
    stepped: bool
    unit: float

    @classmethod
    def of(cls, value: Value) -> Layout:
        most = value.domain.maximum
        planes = 0 if most is None else max(1, most.bit_length())
        return cls(
            channels=value.shape[0] if value.shape else 1,
            positions=int(np.prod(value.shape[1:], dtype=np.int64)),
            planes=planes if planes <= MOST_PLANES and value.time != "final" else 0,
            stepped=value.time == "step",
            unit=value.domain.scale,
        )

    @property
    def size(self) -> int:
        return self.channels * self.positions

    @property
    def channel_words(self) -> int:
        """Words of a position's channels."""
        return -(-self.channels // WORD)

    @property
    def position_words(self) -> int:
        """Words of a channel's positions."""
        return -(-self.positions // WORD)

    def count(self, form: Format) -> int:
        """Elements of one step: uint64 words of bits, or float32."""
        if form == "position bits":
            return self.planes * self.positions * self.channel_words
        if form == "channel bits":
            return self.planes * self.channels * self.position_words
        return self.size


def route(have: list[Format], want: Format, bits: bool) -> list[Format]:
    """The shortest way from a format that there is to the one wanted, both ends included; through bits only if `bits`."""
    ways = [[form] for form in have]
    seen = set(have)
    for way in ways:
        if way[-1] == want:
            return way
        for form in STEPS_BETWEEN[way[-1]]:
            if form not in seen and (bits or not form.endswith("bits")):
                seen.add(form)
                ways.append([*way, form])
    raise ValueError(f"no way from {have} to {want}")
