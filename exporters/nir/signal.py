"""A graph value as NIR sees it: a weighted sum of nodes, of convolutions not written yet, and an offset.

NIR adds by letting several edges meet, so an Add costs nothing until something reads it; a convolution is
written when it is read, so that thresholds and scales of its reader fold into its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from stdeploy.exporters.nir.dialect import Rules
from stdeploy.exporters.nir.plan import ConvNode, Pair, Plan, PoolNode, Role, Shape
from stdeploy.exporters.refusal import Refusal
from stdeploy.graph.ops import ReadoutMode
from stdeploy.graph.weight import Array


@dataclass(frozen=True, eq=False)
class Lazy:
    """A convolution of the sum of `inputs` (node names) that no node performs yet; `weight [O, I / groups, k, k]`."""

    name: str
    inputs: tuple[str, ...]
    weight: Array
    bias: Array
    in_shape: Shape
    shape: Shape
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    role: Role = "model"
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Signal:
    """sum_n scale_n node_n + sum_l scale_l lazy_l + offset[c]; `flat`: flattened (C, H, W), row-major.

    `readout`: the value is this over the steps of what the network yields per step.
    """

    shape: Shape
    nodes: Mapping[str, float] = field(default_factory=dict)
    convs: Mapping[Lazy, float] = field(default_factory=dict)
    offset: Array | None = None
    flat: bool = False
    readout: ReadoutMode | None = None

    def scaled(self, factor: float) -> Signal:
        offset = None if self.offset is None else self.offset * factor
        nodes = {n: s * factor for n, s in self.nodes.items()}
        return replace(self, nodes=nodes, convs={c: s * factor for c, s in self.convs.items()}, offset=offset)

    def divided(self, divisor: float) -> Signal:
        """As `scaled(1 / divisor)`, but s / s is 1 exactly."""
        offset = None if self.offset is None else self.offset / divisor
        nodes = {n: s / divisor for n, s in self.nodes.items()}
        return replace(
            self, nodes=nodes, convs={c: s / divisor for c, s in self.convs.items()}, offset=offset
        )

    def plus(self, other: Signal) -> Signal:
        nodes, convs = dict(self.nodes), dict(self.convs)
        for name, scale in other.nodes.items():
            nodes[name] = nodes.get(name, 0.0) + scale
        for conv, scale in other.convs.items():
            convs[conv] = convs.get(conv, 0.0) + scale
        offset = self.offset if other.offset is None else other.offset
        if self.offset is not None and other.offset is not None:
            offset = self.offset + other.offset
        return replace(self, nodes=nodes, convs=convs, offset=offset, readout=self.readout or other.readout)

    @property
    def common_scale(self) -> float:
        """The one positive scale of all terms, else 1."""
        scales = {*self.nodes.values(), *self.convs.values()}
        scale = scales.pop() if len(scales) == 1 else 1.0
        return scale if scale > 0 else 1.0


def ungrouped(weight: Array, groups: int) -> Array:
    """A grouped kernel `[O, I/g, k, k]` as a dense one `[O, I, k, k]`."""
    if groups == 1:
        return weight
    out, inner = weight.shape[:2]
    dense = np.zeros((out, inner * groups, *weight.shape[2:]), dtype=weight.dtype)
    for g in range(groups):
        rows = slice(g * out // groups, (g + 1) * out // groups)
        dense[rows, g * inner : (g + 1) * inner] = weight[rows]
    return dense


def blocks(weight: Array, groups: int) -> Array:
    """A block-diagonal kernel `[O, I, k, k]` as a grouped one: the inverse of `ungrouped`."""
    rows, columns = weight.shape[0] // groups, weight.shape[1] // groups
    parts = [weight[g * rows : (g + 1) * rows, g * columns : (g + 1) * columns] for g in range(groups)]
    return np.concatenate(parts)


class Writer:
    """Writes the convolutions that signals stand for, each once, as the dialect's `rules` have it."""

    def __init__(self, plan: Plan, rules: Rules) -> None:
        self.plan, self.rules = plan, rules
        self._written: dict[tuple[Lazy, bytes], str] = {}

    def edges(
        self,
        name: str,
        signal: Signal,
        gain: Array | None = None,
        rows: Array | None = None,
        role: Role = "model",
    ) -> list[str]:
        """Nodes whose sum is `gain[c] * signal`, on the channels `rows` only where given."""
        channels = signal.shape[0]
        gains = np.ones(channels) if gain is None else gain
        keep = np.arange(channels) if rows is None else rows
        offset = np.zeros(channels) if signal.offset is None else signal.offset * gains
        sources = []
        for lazy, scale in signal.convs.items():
            sources.append(self._write(lazy, gains * scale, offset, keep))
            offset = np.zeros(channels)
        scales: dict[float, list[str]] = {}
        for node, scale in signal.nodes.items():
            scales.setdefault(scale, []).append(node)
        for scale, nodes in scales.items():
            direct = rows is None and bool(np.all(gains * scale == 1.0)) and not offset.any()
            if direct:
                sources += nodes
                continue
            diagonal, groups = self.diagonal(np.ones(channels))
            lazy = Lazy(
                f"{name}.scale",
                tuple(nodes),
                diagonal,
                np.zeros(channels),
                signal.shape,
                signal.shape,
                role=role,
                groups=groups,
            )
            sources.append(self._write(lazy, gains * scale, offset, keep))
            offset = np.zeros(channels)
        if offset.any() or not sources:
            raise Refusal("a constant alone drives it; NIR has no constant source")
        return sources

    def _write(self, lazy: Lazy, gains: Array, offset: Array, keep: Array) -> str:
        key = (lazy, b"|".join(a.tobytes() for a in (gains, offset, keep)))
        if key not in self._written:
            whole = len(keep) == lazy.shape[0]
            groups = lazy.groups if whole else 1
            kernel = lazy.weight if whole else ungrouped(lazy.weight, lazy.groups)
            weight = (kernel * gains[:, None, None, None])[keep]
            bias = (lazy.bias * gains + offset)[keep]
            shape = (len(keep), *lazy.shape[1:])
            node = ConvNode(
                weight, bias, lazy.stride, lazy.padding, lazy.dilation, lazy.in_shape, shape, groups
            )
            self._written[key] = self.plan.add(lazy.name, node, list(lazy.inputs), lazy.role)
        return self._written[key]

    def diagonal(self, values: Array) -> tuple[Array, int]:
        """The 1x1 kernel that scales channel c by `values[c]`, and its groups."""
        if self.rules.groups:
            return values[:, None, None, None], len(values)
        return np.diag(values)[:, :, None, None], 1

    def join(self, name: str, sources: list[str], shape: Shape, role: Role = "model") -> str:
        """One node for a sum: a 1x1 average pool, which stores no weight and changes nothing.

        nirtorch loads a file in time that grows with the square of its edges or faster: what many nodes read had better
        be one.
        """
        pool = PoolNode((1, 1), (1, 1), (0, 0), shape)
        return self.plan.add(name, pool, sources, role)

    def terms(self, name: str, signal: Signal, role: Role = "model") -> dict[float, tuple[str, ...]]:
        """Written nodes by the scale that a linear reader has to apply; the offset is not included."""
        groups: dict[float, list[str]] = {}
        for node, scale in signal.nodes.items():
            groups.setdefault(scale, []).append(node)
        for lazy, scale in signal.convs.items():
            channels = lazy.shape[0]
            node = self._write(lazy, np.ones(channels), np.zeros(channels), np.arange(channels))
            groups.setdefault(scale, []).append(node)
        return {scale: tuple(nodes) for scale, nodes in groups.items() if scale != 0.0}
