"""What the event target can be told, and the plan that comes of it: a kernel for every Linear and Conv."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stdeploy.errors import UserError
from stdeploy.exporters.event.cost import Costs, Estimate, Rate, estimate, layers_of
from stdeploy.exporters.event.lower import KERNELS
from stdeploy.exporters.options import known_options
from stdeploy.graph.graph import Graph, Node

ASSUMED_RATE = 0.15
"""Share of nonzero inputs where none was measured, one bit of each being set; real-valued inputs are all nonzero."""


@dataclass(frozen=True, eq=False)
class Rates:
    """Rates of the inputs of every Linear and Conv by name, over samples, and of which data."""

    layers: Mapping[str, Rate]
    data: str
    samples: int


@dataclass(frozen=True, eq=False)
class Fixed:
    """Kernels by layer that the user's plan fixes, and the file that it was read from; UserError where one is none."""

    kernels: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = None

    def __post_init__(self) -> None:
        for layer, kernel in self.kernels.items():
            if kernel not in KERNELS:
                raise UserError(
                    f"{self} gives {layer} the kernel {kernel!r}", hint=f"kernels: {', '.join(KERNELS)}"
                )

    def __str__(self) -> str:
        return "the plan" if self.path is None else f"the plan {self.path}"


@dataclass(frozen=True, eq=False)
class Options:
    """`rates`: measured ones (None: ASSUMED_RATE). `plan`: kernels that are fixed, or a JSON file of them. `costs`: of kernels."""

    rates: Rates | None = None
    plan: str | Path | Fixed | None = None
    costs: Costs = field(default_factory=Costs)

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None) -> Options:
        """UserError where an option is unknown, or not of its kind."""
        given = known_options("event", cls, options)
        for name, kinds in (("rates", Rates | None), ("plan", str | Path | Fixed | None), ("costs", Costs)):
            if name in given and not isinstance(given[name], kinds):
                raise UserError(f"the event target's option {name} is no {given[name]!r}")
        return cls(**given)

    def fixed(self) -> Fixed:
        """The user's plan, read where it is a file."""
        if self.plan is None or isinstance(self.plan, Fixed):
            return self.plan or Fixed()
        return read_plan(Path(self.plan))


@dataclass(frozen=True, eq=False)
class Plan:
    """A kernel for every Linear and Conv; `fixed`: those that the user's plan fixed."""

    estimates: Mapping[str, Estimate]
    fixed: Fixed
    options: Options

    @property
    def kernels(self) -> dict[str, str]:
        return {name: self.fixed.kernels.get(name, e.kernel) for name, e in self.estimates.items()}

    @property
    def notes(self) -> list[str]:
        """What the user should know, in words."""
        kernels, rates = list(self.kernels.values()), self.options.rates
        counted = ", ".join(f"{kernels.count(k)} {k}" for k in KERNELS)
        given = len(self.fixed.kernels)
        fixed = f", {given} of them as {self.fixed} has it" if given else ""
        measured = f"an assumed {ASSUMED_RATE:.0%} of inputs that are not zero: --data measures"
        if rates is not None:
            measured = f"the inputs that are not zero in {rates.samples} samples of {rates.data}"
        notes = [f"kernels of {len(kernels)} layers: {counted}{fixed}"]
        if given < len(kernels):
            notes.append(f"{'the others ' if given else ''}chosen by {measured}")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as the file holds it; `kernels` can be given back as a plan."""
        rates = self.options.rates
        layers = {
            name: {
                "kernel": self.kernels[name],
                "by": "plan" if name in self.fixed.kernels else "cost",
                "input_rate": e.rate.nonzero,
                "input_bits": e.rate.bits,
                "weight_density": e.density,
                "products": e.products,
                "seconds": dict(e.seconds),
            }
            for name, e in self.estimates.items()
        }
        return {
            "kernels": self.kernels,
            "layers": layers,
            "rates": {
                "measured": rates is not None,
                "data": None if rates is None else rates.data,
                "samples": 0 if rates is None else rates.samples,
            },
            "costs": self.options.costs.to_dict(),
        }


def plan(graph: Graph, options: Options) -> Plan:
    """The plan for `graph`; UserError where the user's names a layer or a kernel that there is not, or rates lack one."""
    layers = layers_of(graph)
    estimates = {n.name: estimate(graph, n, _rate(graph, n, options.rates), options.costs) for n in layers}
    fixed = options.fixed()
    strange = [name for name in fixed.kernels if name not in estimates]
    if strange:
        raise UserError(
            f"{fixed} names layers that the model does not have: {', '.join(strange[:5])}",
            hint=f"after the passes it has {', '.join(list(estimates)[:5])}, ...: stdeploy inspect FILE.sev",
        )
    for name, kernel in fixed.kernels.items():
        if kernel not in estimates[name].seconds:
            raise UserError(
                f"{fixed}: {name} cannot be run by {kernel}: its input is not held as bits",
                hint=f"kernels that can: {', '.join(estimates[name].seconds)}",
            )
    return Plan(estimates, fixed, options)


def _rate(graph: Graph, node: Node, rates: Rates | None) -> Rate:
    if rates is None:
        return assumed(graph, node)
    if node.name not in rates.layers:
        raise UserError(f"there is no rate of {node.name} in those of {rates.data}")
    rate, most = rates.layers[node.name], graph[node.inputs[0]].value.domain.maximum
    planes = 1 if most is None else max(1, most.bit_length())
    if not 0 <= rate.nonzero <= min(1.0, rate.bits) or not rate.bits <= planes:
        raise UserError(f"the rates of {node.name} are none of its inputs: {rate.nonzero}, {rate.bits}")
    return rate


def assumed(graph: Graph, node: Node) -> Rate:
    """The rate of a layer of which none was measured."""
    value = graph[node.inputs[0]].value
    rate = 1.0 if value.domain.maximum is None else ASSUMED_RATE
    return Rate(rate, rate)


def read_plan(path: Path) -> Fixed:
    """Kernel by layer of a JSON file: {"kernels": {layer: kernel}}, alone or under "plan", as `inspect --json` writes it.

    UserError where it is not readable, no such JSON, or names another kernel.
    """
    hint = 'write {"kernels": {"block.0.mlp.fc1": "rows"}}, or take one: stdeploy inspect FILE.sev --json plan.json'
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the plan {path}: {error.strerror or error}", hint=hint) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"the plan {path} is no JSON: {error}", hint=hint) from error
    inner = document.get("plan", document) if isinstance(document, dict) else None
    kernels = inner.get("kernels") if isinstance(inner, dict) else None
    if not isinstance(kernels, dict):
        raise UserError(f'the plan {path} has no object "kernels"', hint=hint)
    return Fixed(kernels, path)
