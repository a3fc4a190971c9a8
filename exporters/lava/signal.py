"""A graph value as Lava sees it: a linear map of a sum of ports that all carry a sample's step at once, and an offset.

Maps compose without a process until a neuron, a sum or a delay needs the numbers. Ports are aligned in time where
they meet: what arrives early goes through a delayed identity, before its map, where it is spikes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stdeploy.exporters.lava.linear_map import LinearMap, channelwise
from stdeploy.exporters.lava.plan import HOP, Attention, Delay, Plan, Population, Source, Synapses
from stdeploy.exporters.refusal import Refusal
from stdeploy.graph.ops import ReadoutMode
from stdeploy.graph.weight import Array


@dataclass(frozen=True, eq=False)
class Signal:
    """scale * map(sum of ports) + offset; `shape` is the graph value's; no ports: a constant.

    `map` None: the identity. `valid`: step from which the ports carry sample 0. `readout`: the value is this over
    the steps of what the network yields per step.
    """

    shape: tuple[int, ...]
    ports: tuple[str, ...] = ()
    valid: int = 0
    map: LinearMap | None = None
    scale: float = 1.0
    offset: Array | None = None
    readout: ReadoutMode | None = None

    @property
    def channels(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def positions(self) -> int:
        return int(np.prod(self.shape[1:]))

    @property
    def size(self) -> int:
        return self.channels * self.positions

    def scaled(self, factor: float) -> Signal:
        offset = None if self.offset is None else self.offset * factor
        return replace(self, scale=self.scale * factor, offset=offset)

    def divided(self, divisor: float) -> Signal:
        """As `scaled(1 / divisor)`, but s / s is 1 exactly."""
        offset = None if self.offset is None else self.offset / divisor
        return replace(self, scale=self.scale / divisor, offset=offset)

    def mapped(self, linear: LinearMap, shape: tuple[int, ...], bias: Array | None = None) -> Signal:
        """`linear` of this, plus `bias` per channel."""
        offset = None if self.offset is None else linear.expanded @ self.offset
        if bias is not None:
            added = np.repeat(bias.astype(np.float64), int(np.prod(shape[1:])))
            offset = added if offset is None else offset + added
        return replace(self, shape=shape, map=linear.after(self.map) if self.ports else None, offset=offset)


@dataclass(frozen=True, eq=False)
class Arrival:
    """What feeds an input port: processes whose outputs sum, from step `valid`."""

    ports: tuple[str, ...]
    valid: int


class Writer:
    """Appends processes to a plan: synapses and delays, each once.

    `fixed`: every model population gets a Sparse of its own, whose weights carry the scale of its fixed point.
    """

    def __init__(self, plan: Plan, fixed: bool = False) -> None:
        self.plan = plan
        self.fixed = fixed
        self._delays: dict[tuple[tuple[str, ...], int], str] = {}

    def delayed(self, signal: Signal, until: int) -> Signal:
        """The same signal, carried by ports that are valid from `until`."""
        late = until - signal.valid
        if late == 0 or not signal.ports:
            return replace(signal, valid=until)
        key = (signal.ports, late)
        if key not in self._delays:
            size = _port_size(self.plan, signal.ports[0])
            name = f"{signal.ports[-1]}.delay{late}"
            self._delays[key] = self.plan.add(name, Delay(size, late), {"s_in": signal.ports}, until)
        return replace(signal, ports=(self._delays[key],), valid=until)

    def written(self, name: str, signal: Signal) -> Signal:
        """The same signal without map and scale: a port carries its numbers."""
        if not signal.ports or (signal.map is None and signal.scale == 1.0):
            return signal
        linear = (signal.map or _identity(signal)).scaled(signal.scale)
        port = self._synapses(f"{name}.synapses", linear, signal)
        return replace(signal, ports=(port,), valid=signal.valid + HOP, map=None, scale=1.0)

    def aligned(self, signals: list[Signal]) -> list[Signal]:
        """The same signals, all valid from the step of the latest."""
        until = max(s.valid for s in signals)
        return [self.delayed(s, until) for s in signals]

    def plus(self, name: str, a: Signal, b: Signal) -> Signal:
        """The sum of two signals of one shape."""
        offset = a.offset if b.offset is None else b.offset if a.offset is None else a.offset + b.offset
        readout = a.readout or b.readout
        if not a.ports or not b.ports:
            return replace(a if a.ports else b, offset=offset, readout=readout)
        a, b = self.written(name, a), self.written(name, b)
        a, b = self.aligned([a, b])
        if set(a.ports) & set(b.ports):  # Lava connects two ports once
            copy = self._synapses(f"{name}.copy", _identity(b), b)
            a, b = self.aligned([a, replace(b, ports=(copy,), valid=b.valid + HOP)])
        return replace(a, ports=(*a.ports, *b.ports), offset=offset, readout=readout)

    def arrivals(
        self,
        name: str,
        signals: list[Signal],
        gain: Array | None = None,
        rows: Array | None = None,
        *,
        weighed: bool = False,
    ) -> Arrival:
        """What to connect to one input so that it gets the sum of gain[c] * signal, on channels `rows` only.

        `weighed`: through a Sparse, also where the ports could be connected as they are.
        """
        waiting = []
        connected: set[str] = set()
        for signal in signals:
            if not signal.ports:
                continue
            linear = self._drive(signal, gain, rows)
            if linear is None and (weighed or connected & set(signal.ports)):
                linear = _identity(signal)
            if linear is None:
                connected |= set(signal.ports)
            waiting.append((signal, linear, signal.valid + (HOP if linear is not None else 0)))
        if not waiting:
            raise Refusal("a constant alone drives it", "run the 'lava' pass pipeline")
        valid = max(arrival for _, _, arrival in waiting)
        ports: list[str] = []
        for signal, linear, arrival in waiting:
            moved = self.delayed(signal, signal.valid + valid - arrival)
            if linear is None:
                ports += moved.ports
            else:
                ports.append(self._synapses(f"{name}.synapses", linear, moved))
        return Arrival(tuple(ports), valid)

    def _drive(self, signal: Signal, gain: Array | None, rows: Array | None) -> LinearMap | None:
        """The map to write before the input; None where the ports can be connected as they are."""
        gains = np.full(signal.channels, signal.scale) if gain is None else gain * signal.scale
        if signal.map is None and rows is None and np.all(gains == 1.0):
            return None
        return (signal.map or _identity(signal)).rows(gains, rows, signal.positions)

    def _synapses(self, name: str, linear: LinearMap, signal: Signal) -> str:
        return self.plan.add(name, Synapses(linear), {"s_in": signal.ports}, signal.valid + HOP)


def _identity(signal: Signal) -> LinearMap:
    return channelwise(np.ones(signal.channels), signal.positions)


def _port_size(plan: Plan, port: str) -> int:
    process = plan.processes[port]
    if not isinstance(process, Source | Synapses | Delay | Population | Attention):
        raise TypeError(f"{port} has no output")
    return process.size
