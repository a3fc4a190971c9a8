"""What is known about a tensor of the graph: shape without time and batch, axes, time and domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Time = Literal["static", "step", "final"]
"""`static`: the same at every step; `step`: one tensor per step; `final`: one per sample, after all steps."""


@dataclass(frozen=True, slots=True)
class Domain:
    """Values `scale * k` with an integer `0 <= k <= maximum`, or any real number when `maximum` is None.

    `maximum == 1` is a spike train; `maximum > 1` are counts, as SEW residual sums and attention
    products are. `scale > 0`.
    """

    scale: float = 1.0
    maximum: int | None = None

    @property
    def kind(self) -> Literal["spike", "count", "real"]:
        if self.maximum is None:
            return "real"
        return "spike" if self.maximum <= 1 else "count"

    def __str__(self) -> str:
        if self.maximum is None:
            return "real"
        unit = "" if self.scale == 1.0 else f"{self.scale:g}*"
        return f"{unit}{{0,1}}" if self.maximum <= 1 else f"{unit}{{0..{self.maximum}}}"


REAL = Domain()
SPIKE = Domain(1.0, 1)


def count(scale: float, maximum: int) -> Domain:
    """Domain `scale * {0..maximum}`; a scale that is not positive makes it real."""
    return Domain(scale, maximum) if scale > 0 else REAL


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor: `shape` and `axes` leave out time and batch; axis 0 is the channel (or head) axis.

    Axis names: `channel`, `y`, `x`, `token`, `head`, `pair` (head, query dim, value dim), and
    `key.<name>` for the second token axis of an attention map.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    time: Time
    domain: Domain = REAL

    def __str__(self) -> str:
        dims = ",".join(f"{a}:{n}" for a, n in zip(self.axes, self.shape, strict=True))
        return f"[{dims}] {self.time} {self.domain}"


def join_time(times: list[Time]) -> Time:
    """Time of an elementwise result; raises ValueError where a per-step and a final value meet."""
    if "step" in times and "final" in times:
        raise ValueError("a per-step value meets a value that exists only after all steps")
    if "step" in times:
        return "step"
    return "final" if "final" in times else "static"
