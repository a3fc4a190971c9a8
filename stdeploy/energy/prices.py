"""Counts times prices: what a counted network costs on a profile, per layer and in total.

Linear in the counts, so a total's spread over the data is exact: the covariances of its layers are in the ledger.

| part | arithmetic profile | chip |
|---|---|---|
| binary, count, real | one accumulate a synaptic operation; a multiply-accumulate where the input is real | `synop` |
| attention | one accumulate a pair of nonzero elements | `synop` |
| neurons | an addition and a comparison an update, a multiplication more where the membrane decays | by its own prices |
| other | an addition for every active operation of pools, sums and residuals, and for every bias | not priced |
| weights | a read of the weight, and of its index where it is stored sparse, at every synaptic operation | in `synop` |
| state | a read and a write of the membrane at every update | in `synop` or the neuron's price |

A chip with `scope = "whole chip"` has all of it in its synaptic operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

from stdeploy.energy.ledger import LayerCount, Ledger
from stdeploy.energy.profile import Profile
from stdeploy.energy.statistics import Estimate
from stdeploy.errors import UserError

Part = Literal["binary", "count", "real", "attention", "neurons", "other", "weights", "state"]
PARTS: tuple[Part, ...] = get_args(Part)
SYNAPTIC: tuple[Part, ...] = ("binary", "count", "real", "attention")
MEMORY: tuple[Part, ...] = ("weights", "state")
COMPUTED: tuple[Part, ...] = (*SYNAPTIC, "neurons", "other")

Graded = Literal["ac", "unary", "mac"]
Static = Literal["once", "every-step"]
Memory = Literal["sram_8k", "sram_32k", "sram_1m", "dram"]
CAPACITY: dict[Memory, int] = {"sram_8k": 8 << 10, "sram_32k": 32 << 10, "sram_1m": 1 << 20}
INDEX_BITS = 16
"""Of a sparse weight's position, read beside it: enough for rows of 65,536."""

Terms = dict[str, Fraction]
"""Joules per unit of a counted quantity; the constant under the empty name."""


@dataclass(frozen=True)
class Choices:
    """What the counts leave open.

    `graded`: an event of k units costs one accumulate, k of them, or a multiply-accumulate. `static`: a
    layer that reads the same at every step runs once (and is kept), or at every step, as papers charge it.
    `memory`: where weights and states lie; None: the smallest that holds them all.
    """

    graded: Graded = "ac"
    static: Static = "once"
    memory: Memory | None = None


@dataclass(frozen=True)
class Bill:
    """Energy by part, joules per sample, as exact estimates over the data.

    `unpriced` names what was counted and has no price here.
    """

    parts: Mapping[Part, Estimate]
    synaptic: Estimate
    total: Estimate
    unpriced: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "parts_j": {part: e.mean for part, e in self.parts.items() if e.exact},
            "synaptic": estimate_dict(self.synaptic),
            "total": estimate_dict(self.total),
            "unpriced": list(self.unpriced),
        }


def estimate_dict(estimate: Estimate) -> dict[str, Any]:
    """Mean, deviation and interval in joules."""
    ci = estimate.ci95
    return {
        "mean_j": estimate.mean,
        "sd_j": estimate.sd,
        "ci95_j": None if ci is None else list(ci),
    }


@dataclass(frozen=True)
class Priced:
    """A ledger priced on one profile."""

    profile: Profile
    choices: Choices
    memory: Memory | None
    total: Bill
    layers: Mapping[str, Bill]


def require_prices(profiles: Sequence[Profile]) -> None:
    """UserError where none of them prices spikes."""
    if all(p.kind == "bound" for p in profiles):
        names = ", ".join(p.name for p in profiles)
        raise UserError(f"{names}: only bounds, no price for spikes", hint="add --profile 45nm-fp32")


def price(ledger: Ledger, profile: Profile, choices: Choices | None = None) -> Priced:
    """Energies of a counted network; UserError where the profile prices no synaptic operation."""
    choices = choices or Choices()
    if profile.kind == "bound":
        raise UserError(f"{profile.name} is a bound for dense execution", hint="it has no price for spikes")
    memory = choices.memory or smallest_memory(ledger, profile.bits or 32)
    tariff = Tariff(profile, choices, memory if profile.kind == "arithmetic" else None, ledger.steps)
    layers = {
        layer.name: _bill(layer.total, tariff.layer(layer), ledger.samples)
        for layer in ledger.layers
        if layer.role != "order"
    }
    total = _bill(ledger.network, tariff.network(ledger.layers), ledger.samples, tariff.unpriced(ledger))
    return Priced(profile, choices, tariff.memory, total, layers)


def smallest_memory(ledger: Ledger, bits: int) -> Memory:
    """The smallest level that holds all nonzero weights (with their indices where sparse) and all membranes."""
    size = 0
    for layer in ledger.layers:
        if layer.role == "synapse":
            index = INDEX_BITS if layer.constants["csr"] else 0
            stored = layer.constants["nonzero_weights" if index else "weights"]
            size += stored * (bits + index)
        elif layer.role == "neuron":
            size += layer.constants["clocked"] * bits
    return next((level for level, capacity in CAPACITY.items() if size <= 8 * capacity), "dram")


@dataclass(frozen=True)
class Tariff:
    """Joules per counted quantity."""

    profile: Profile
    choices: Choices
    memory: Memory | None
    steps: int

    def layer(self, layer: LayerCount) -> dict[Part, Terms]:
        """Terms over a layer's own quantities."""
        times = self._times(layer)
        if layer.role == "synapse":
            part: Part = layer.input_class
            counted = "unary" if layer.input_class == "count" and self.choices.graded == "unary" else "synops"
            reads = self._word() + (self._index() if layer.constants["csr"] else 0)
            return {
                part: {counted: times * self._event(layer.input_class)},
                "weights": {"synops": times * reads},
                "other": {"": self._bias(layer)},
            }
        if layer.role in ("attention", "product"):
            return {"attention": {self._pairs(): times * self._attention()}}
        if layer.role == "neuron":
            return self._neurons([layer], "touched", "spikes")
        return {"other": {"active": times * self._addition()}}

    def network(self, layers: Iterable[LayerCount]) -> dict[Part, Terms]:
        """The same over the ledger's joint quantities: equal to the sum of its layers."""
        layers = list(layers)
        out: dict[Part, Terms] = {part: {} for part in PARTS}
        for prefix, times in (("", 1), ("static.", self._static())):
            for kind in ("binary", "count", "real"):
                unary = kind == "count" and self.choices.graded == "unary"
                name = f"{prefix}{'unary' if unary else 'synops'}.{kind}"
                out[kind][name] = times * self._event(kind)
                out["weights"][f"{prefix}synops.{kind}"] = times * self._word()
            out["weights"][f"{prefix}indexed"] = times * self._index()
            out["attention"][f"{prefix}attention.{self._pairs()}"] = times * self._attention()
            out["other"][f"{prefix}arithmetic.active"] = times * self._addition()
        biases = sum((self._bias(layer) for layer in layers if layer.role == "synapse"), Fraction(0))
        out["other"][""] = biases
        neurons = [layer for layer in layers if layer.role == "neuron"]
        out.update(self._neurons(neurons, "neuron.touched", "neuron.spikes"))
        return out

    def unpriced(self, ledger: Ledger) -> tuple[str, ...]:
        """What the ledger counts and this profile does not price."""
        if self.profile.scope == "whole chip":
            return ()
        if self.profile.kind == "arithmetic":
            return _multiplications(ledger)
        prices = self.profile.constants
        found = [] if "neuron_active" in prices else ["neuron updates"]
        found += [] if "spike" in prices else ["spike delivery"]
        return (*found, *(["pools, sums, residuals and biases"] if _has_other(ledger) else []))

    def _times(self, layer: LayerCount) -> int:
        return self._static() if layer.time == "static" else 1

    def _static(self) -> int:
        return self.steps if self.choices.static == "every-step" else 1

    def _event(self, kind: str) -> Fraction:
        multiplied = kind == "real" or (kind == "count" and self.choices.graded == "mac")
        return Fraction(self.profile.mac if multiplied else self.profile.ac)

    def _pairs(self) -> str:
        return "unary" if self.choices.graded == "unary" else "coincidence"

    def _attention(self) -> Fraction:
        return Fraction(self.profile.mac if self.choices.graded == "mac" else self.profile.ac)

    def _addition(self) -> Fraction:
        return Fraction(self.profile.ac if self.profile.kind == "arithmetic" else 0)

    def _bias(self, layer: LayerCount) -> Fraction:
        return self._times(layer) * layer.constant("outputs") * layer.constants["bias"] * self._addition()

    def _byte(self) -> Fraction:
        return Fraction(0 if self.memory is None else self.profile.joules(self.memory))

    def _word(self) -> Fraction:
        return self._byte() * (self.profile.bits or 0) / 8

    def _index(self) -> Fraction:
        return self._byte() * INDEX_BITS / 8

    def _neurons(self, layers: list[LayerCount], touched: str, spikes: str) -> dict[Part, Terms]:
        updates = sum(layer.constant("clocked") for layer in layers)
        decaying = sum(layer.constant("clocked") for layer in layers if layer.constants["decay"])
        if self.profile.kind == "arithmetic":
            arithmetic = updates * 2 * self._addition() + decaying * Fraction(self.profile.joules("mult"))
            return {"neurons": {"": arithmetic}, "state": {"": updates * 2 * self._word()}}
        prices = self.profile.constants
        terms: Terms = {}
        if "neuron_active" in prices:
            idle = Fraction(prices["neuron_inactive"].si)
            terms = {"": updates * idle, touched: Fraction(prices["neuron_active"].si) - idle}
        if "spike" in prices:
            terms[spikes] = Fraction(prices["spike"].si)
        return {"neurons": terms}


def _has_other(ledger: Ledger) -> bool:
    return any(layer.role == "arithmetic" or layer.constants.get("bias") for layer in ledger.layers)


def _multiplications(ledger: Ledger) -> tuple[str, ...]:
    """Where additions are charged although the graph multiplies real values (scaled integers are a change of unit)."""
    scaled = [n for n in ledger.of("arithmetic") if n.kind in ("Affine", "Scale") and n.input_class == "real"]
    products = [*ledger.of("attention"), *ledger.of("product")]
    found = ["multiplications of unfolded BatchNorms and scales"] if scaled else []
    real = any(layer.input_class == "real" for layer in products)
    return (*found, *(["multiplications of real-valued attention operands"] if real else []))


def _bill(joint: Any, terms: Mapping[Part, Terms], samples: int, unpriced: tuple[str, ...] = ()) -> Bill:
    def estimate(chosen: Iterable[Part]) -> Estimate:
        summed: Terms = {}
        for part in chosen:
            for name, joules in terms.get(part, {}).items():
                summed[name] = summed.get(name, Fraction(0)) + joules
        constant = summed.pop("", Fraction(0))
        spread = joint.combine({name: joules for name, joules in summed.items() if joules})
        return Estimate(samples, spread.exact + constant, spread.variance)

    return Bill(
        {part: estimate([part]) for part in PARTS if part in terms},
        estimate(SYNAPTIC),
        estimate(PARTS),
        unpriced,
    )


@dataclass(frozen=True)
class Dense:
    """The network of equal shape without spikes: every weight, one pass, one multiply-accumulate each.

    `crossover` is the mean input rate at which the spiking network would cost as much; its own is `rate`.
    Its memory is charged by the same rule: a weight read at every operation, an activation written and read once.
    """

    macs: int
    synaptic_j: float
    total_j: float
    rate: float
    crossover: float | None


def dense(ledger: Ledger, priced: Priced) -> Dense:
    """The equal-shape dense network on the same arithmetic profile."""
    profile, memory = priced.profile, priced.memory
    macs = dense_macs(ledger)
    word = 0.0 if memory is None else profile.joules(memory) * (profile.bits or 0) / 8
    activations = sum(layer.constants["clocked"] for layer in ledger.of("neuron"))
    synaptic = macs * profile.mac
    total = synaptic + macs * word + activations * (profile.ac + 2 * word)
    synapses = ledger.of("synapse")
    connections = sum(layer.constant("dense") for layer in synapses)
    events = sum(layer.mean("blind") for layer in synapses)
    rate = events / connections if connections else 0.0
    moving = priced.total.synaptic.mean + priced.total.parts["weights"].mean
    fixed = priced.total.total.mean - moving
    crossover = rate * (total - fixed) / moving if moving else None
    return Dense(macs, synaptic, total, rate, crossover)


def dense_macs(ledger: Ledger) -> int:
    """Multiply-accumulates of one pass of the equal-shape network, zero weights included, padding left out."""
    roles = ("synapse", "attention", "product")
    return sum(layer.constants["dense"] for layer in ledger.layers if layer.role in roles)


def bound(ledger: Ledger, profile: Profile) -> float:
    """Joules that a processor needs at least for the dense network: rated power at its peak rate."""
    if profile.kind != "bound":
        raise UserError(f"{profile.name} is no bound", hint="h100-fp16, for one")
    return dense_macs(ledger) * profile.mac
