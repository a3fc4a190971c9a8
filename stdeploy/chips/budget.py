"""What a network needs, population by population, and which limits of a chip that exceeds.

Every bound is a lower one: the limits are taken one at a time, as if the network could be cut anywhere and nothing
else took space. A network that passes may still not fit. The layer that feeds the output is read out outside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stdeploy.chips.network import Network, reaches
from stdeploy.chips.profile import Chip, Limit
from stdeploy.graph.weight import Array


@dataclass(frozen=True)
class Population:
    """One node of neurons as it would be placed.

    `synapses`: pairs of a neuron (or input) and one of these with a nonzero weight; `fan_in`, `fan_out`: the most that
    one neuron has; `destinations`: populations that read it; `weights`: nonzero weights stored for it (each counted
    where it is first read); `values`: distinct weights on the way to it, `bits`: of the narrowest integers that hold
    them exactly up to one factor, with a sign where there is one.
    """

    name: str
    layer: str
    role: str
    kind: str
    neurons: int
    synapses: int
    fan_in: int
    fan_out: int
    destinations: int
    weights: int
    values: int
    bits: int


@dataclass(frozen=True)
class Finding:
    """A limit that is exceeded: `where` ("" for the whole network) needs `need`, the chip has `has`."""

    limit: str
    where: str
    need: str
    has: str
    times: float | None = None


@dataclass(frozen=True)
class Budget:
    """The verdict. `cores`, `chips`: the least that each known limit leaves room for, by resource."""

    chip: str
    populations: tuple[Population, ...]
    totals: dict[str, int]
    cores: dict[str, int]
    chips: dict[str, int]
    findings: tuple[Finding, ...]
    unknown: tuple[str, ...]
    not_checked: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether no known limit is exceeded."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"schema_version": 1, "fits": self.fits, **asdict(self)}


def measure_network(network: Network) -> list[Population]:
    """Counts of every population, in network order; exact integers."""
    into = reaches(network)
    fan_out: dict[str, Array] = {}
    readers: dict[str, int] = {}
    for arriving in into.values():
        for source, relation in arriving.items():
            fan_out[source] = fan_out.get(source, 0) + relation.fan_out
            readers[source] = readers.get(source, 0) + 1
    counted: set[str] = set()
    out = []
    for name, population in network.populations.items():
        fan_in = sum((relation.fan_in for relation in into[name].values()), start=np.zeros(1, np.int64))
        links = _behind(network, name)
        values = [np.ones(1)] if not all(s in network.links for s in network.reads[name]) else []
        stored = 0
        for link in links:
            weight, value = network.links[link].weight, network.links[link].value
            if weight is None:
                values += [np.full(1, value)] if value != 1.0 else []  # 1: a join of several nodes
                continue
            values.append(weight[weight != 0])
            stored += 0 if link in counted else int(np.count_nonzero(weight))
        counted |= set(links)
        distinct = np.unique(np.concatenate([v.ravel().astype(np.float64) for v in values or [np.ones(1)]]))
        out.append(
            Population(
                name=name,
                layer=population.layer,
                role=population.role,
                kind=population.kind,
                neurons=population.neurons,
                synapses=sum(relation.synapses for relation in into[name].values()),
                fan_in=int(fan_in.max()),
                fan_out=int(np.max(fan_out.get(name, 0))),
                destinations=readers.get(name, 0),
                weights=stored,
                values=int(distinct.size),
                bits=exact_bits(distinct),
            )
        )
    return out


def _behind(network: Network, name: str) -> list[str]:
    """Linear nodes between a population and those that it reads."""
    found: dict[str, None] = {}
    waiting = [s for s in network.reads[name] if s in network.links]
    while waiting:
        link = waiting.pop()
        if link not in found:
            found[link] = None
            waiting += [s for s in network.reads[link] if s in network.links]
    return list(found)


def exact_bits(values: Array) -> int:
    """Bits of the narrowest integers n with values = factor * n exactly; a sign bit where signs differ.

    Floats are odd integers times powers of two; the factor takes what those have in common.
    """
    nonzero = values[values != 0].astype(np.float64)
    if not nonzero.size:
        return 0
    mantissa, exponent = np.frexp(np.abs(nonzero))
    whole = np.ldexp(mantissa, 53).astype(np.int64)
    zeros = np.log2((whole & -whole).astype(np.float64)).astype(np.int64)
    odd, power = whole >> zeros, exponent + zeros
    common = int(np.gcd.reduce(odd))
    lowest = int(power.min())
    largest = max(int(o) << int(p - lowest) for o, p in _tops(odd, power)) // common
    return largest.bit_length() + int(bool((nonzero < 0).any() and (nonzero > 0).any()))


def _tops(odd: Array, power: Array) -> list[tuple[int, int]]:
    """The largest odd part of every power: the largest value is among them."""
    return [(int(odd[power == p].max()), int(p)) for p in np.unique(power)]


def judge(chip: Chip, populations: list[Population]) -> Budget:
    """Compare what the populations need with every limit that the chip's profile knows."""
    totals = _totals(chip, populations)
    findings = [
        f for name in ("fan_in", "fan_out", "destinations") for f in _largest(chip, name, populations)
    ]
    findings += [*_bits(chip, populations), *_kinds(chip, populations), *_whole_cores(chip, populations)]
    cores, chips = _least(chip, totals)
    for resource, count in chips.items():
        if count > 1:
            findings.append(_total(chip, resource, totals[resource], cores.get(resource), count))
    return Budget(
        chip.name,
        tuple(populations),
        totals,
        cores,
        chips,
        tuple(findings),
        tuple(chip.unknown),
        chip.not_checked,
    )


def _totals(chip: Chip, populations: list[Population]) -> dict[str, int]:
    """`memory`: bytes of the nonzero weights alone, at the chip's width or by number in a table of the distinct ones."""
    width = chip.limits["weight_bits"]
    bits = 0
    for p in populations:
        number = max(1, math.ceil(math.log2(p.values))) if p.values else 0
        bits += p.weights * (number if width is None else min(number, width.number))
    sums = {key: sum(getattr(p, key) for p in populations) for key in ("neurons", "synapses", "weights")}
    return {**sums, "memory": -(-bits // 8), "populations": len(populations)}


def _largest(chip: Chip, name: str, populations: list[Population]) -> list[Finding]:
    limit = chip.limits[name]
    if limit is None:
        return []
    return [
        Finding(name, p.name, f"{getattr(p, name):,}", f"{limit.number:,}", getattr(p, name) / limit.number)
        for p in populations
        if getattr(p, name) > limit.number
    ]


def _bits(chip: Chip, populations: list[Population]) -> list[Finding]:
    limit = chip.limits["weight_bits"]
    if limit is None:
        return []
    return [
        Finding(
            "weight_bits", p.name, f"{p.bits} ({p.values:,} values)", str(limit.number), p.bits / limit.number
        )
        for p in populations
        if p.bits > limit.number
    ]


def _kinds(chip: Chip, populations: list[Population]) -> list[Finding]:
    limit = chip.limits["neuron_kinds"]
    kinds: tuple[Any, ...] = limit.value if limit is not None and isinstance(limit.value, tuple) else ()
    if limit is None or "programmable" in kinds:
        return []
    return [
        Finding("neuron_kinds", p.name, p.kind, ", ".join(kinds)) for p in populations if p.kind not in kinds
    ]


def _whole_cores(chip: Chip, populations: list[Population]) -> list[Finding]:
    """Where a core holds whole populations, each has to fit into one."""
    if chip.limits["populations_per_core"] is None:
        return []
    out = []
    for key in ("neurons", "weights"):
        limit = chip.limits[f"{key}_per_core"]
        for p in populations:
            need = getattr(p, key)
            if limit is not None and need > limit.number:
                has = f"{limit.number:,}"
                out.append(Finding(f"{key}_per_core", p.name, f"{need:,}", has, need / limit.number))
    return out


def _least(chip: Chip, totals: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """The least cores and chips by each resource whose limit is known."""
    cores: dict[str, int] = {}
    chips: dict[str, int] = {}
    per_chip = chip.limits["cores_per_chip"]
    for resource, need in totals.items():
        core, whole = chip.limits[f"{resource}_per_core"], chip.limits.get(f"{resource}_per_chip")
        if core is not None:
            cores[resource] = _cores(core, need)
            if per_chip is not None:
                chips[resource] = -(-cores[resource] // per_chip.number)
        if whole is not None:
            chips[resource] = max(chips.get(resource, 1), -(-need // whole.number))
    return cores, chips


def _cores(limit: Limit, need: int) -> int:
    """The least cores that offer `need`, the largest first."""
    offered = sorted(limit.numbers, reverse=True)
    if len(offered) == 1:
        return max(1, -(-need // offered[0]))
    full, rest = divmod(need, sum(offered))
    used = int(np.searchsorted(np.cumsum(offered), rest)) + 1 if rest or not full else 0
    return full * len(offered) + used


def _total(chip: Chip, resource: str, need: int, cores: int | None, chips: int) -> Finding:
    """A resource of which one chip has too little."""
    whole, per_chip = chip.limits.get(f"{resource}_per_chip"), chip.limits["cores_per_chip"]
    if whole is not None and need > whole.number:
        return Finding(f"{resource}_per_chip", "", f"{need:,}", f"{whole.number:,}", need / whole.number)
    if cores is None or per_chip is None:
        raise ValueError(f"{resource} needs {chips} chips by no limit")
    return Finding(
        f"{resource}_per_core", "", f"{cores:,} cores", f"{per_chip.number:,} cores", cores / per_chip.number
    )
