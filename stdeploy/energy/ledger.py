"""What was counted: one entry per layer and quantity, over steps and samples; shards merge, JSON round-trips.

A quantity is an integer of one layer, one step and one sample. `steps[q]` holds its statistics per step,
`total[q]` those of the sample's sum over the steps. A layer whose `time` is `static` (it reads the same at
every step) or `final` (after the last step) has one row: it runs once per sample. What charges a static
layer at every step, as papers charge the first convolution, multiplies by `Ledger.steps`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any, Literal, get_args

from stdeploy.energy.statistics import Joint, Moments, integer
from stdeploy.errors import UserError
from stdeploy.files import atomic_write
from stdeploy.graph.value import Time

SCHEMA = "stdeploy.energy.ledger"
VERSION = 1

Class = Literal["binary", "count", "real"]
"""Of a layer's input: {0, s}; integer multiples of s; any real number. s is the layer's `scale`."""

Role = Literal["synapse", "attention", "product", "order", "neuron", "arithmetic"]

QUANTITIES: dict[Role, dict[str, str]] = {
    "synapse": {
        "events": "nonzero input elements",
        "several": "input elements larger than one unit (0 for binary)",
        "magnitude": "sum of |input| in units (real: in 2**-24)",
        "synops": "nonzero event x nonzero weight x output position within the output: synaptic operations",
        "unary": "the same with every event k counted k times (binary: = synops; real: = synops)",
        "blind": "synops if every weight were nonzero",
        "blind_sum": "sum over blind synops of the (signed) input in units (real: in 2**-24)",
    },
    "attention": {
        "left_events": "nonzero elements of the left operand",
        "right_events": "nonzero elements of the right operand",
        "left_several": "left elements larger than one unit (real: every nonzero one)",
        "right_several": "right elements larger than one unit (real: every nonzero one)",
        "coincidence": "pairs that are multiplied with both nonzero",
        "left_driven": "pairs whose left element is nonzero",
        "right_driven": "pairs whose right element is nonzero",
        "unary": "sum of the products of both elements, in units (real: = coincidence)",
    },
    "neuron": {
        "touched": "neurons that at least one event reached",
        "spikes": "neurons that fired (and were reset)",
    },
    "arithmetic": {
        "events": "nonzero input elements (of all operands)",
        "active": "operations with a nonzero operand (Add: with both nonzero)",
    },
}
QUANTITIES["product"] = QUANTITIES["attention"]
QUANTITIES["order"] = {
    f"{order}.{name}": f"{text}, summed over both products of {label}"
    for order, label in (("qk", "(Q K^T) V"), ("kv", "Q (K^T V)"))
    for name, text in QUANTITIES["attention"].items()
    if name in ("coincidence", "left_driven", "right_driven", "unary")
}
"""Quantities by role; every layer of that role has all of them.

synapse: Linear, Conv. attention: MatMul. product: Mul. arithmetic: pools, sums, Add, Affine, Scale, Readout,
comparisons. order: not a layer but an attention (Q, K, V), counted in both orders of its products; the
executed one's operations are those of its attention layers, so nothing sums it up again.
"""

CONSTANTS: dict[Role, dict[str, str]] = {
    "synapse": {
        "inputs": "input elements",
        "outputs": "output elements (bias additions where `bias`)",
        "dense": "connections: input element x output position within the output, zero weights included",
        "dense_padded": "the same if padding were data: outputs x weights of one output",
        "connections": "connections with a nonzero weight",
        "spatial": "axes of the window: 0 of a Linear, else 1 or 2",
        "fan_out": "weights that leave one input channel, zero or not: the connections of an event without a border",
        "weights": "elements of the weight",
        "nonzero_weights": "nonzero elements of the weight",
        "csr": "1 where the weight is stored as compressed sparse rows (a synop then reads an index too)",
        "bias": "1 where there is a bias",
        "weight_bits": "bits of one stored weight",
    },
    "attention": {
        "left": "elements of the left operand",
        "right": "elements of the right operand",
        "left_unit": "1 where the left operand is 0, 1, 2, ... (a unit of exactly 1)",
        "right_unit": "1 where the right operand is",
        "outputs": "output elements",
        "dense": "pairs that are multiplied",
    },
    "neuron": {
        "clocked": "neurons, each updated at every step",
        "decay": "1 where the membrane decays (LIF): a multiplication per update",
        "parameters": "values of tau, threshold and reset that are stored per channel",
    },
    "arithmetic": {
        "inputs": "input elements (of all operands)",
        "outputs": "output elements",
        "operations": "additions, comparisons or multiplications that a dense execution makes",
    },
    "order": {"qk.dense": "multiplied pairs of (Q K^T) V", "kv.dense": "multiplied pairs of Q (K^T V)"},
}
CONSTANTS["product"] = CONSTANTS["attention"]
"""Facts of a layer by role, per step and sample; they depend on the graph alone."""

NETWORK: dict[str, str] = {
    "synops.binary": "synops of layers with binary input",
    "synops.count": "synops of layers with count input",
    "synops.real": "synops of layers with real input",
    "unary.count": "synops of layers with count input, an event k counted k times",
    "indexed": "synops at weights stored as compressed sparse rows",
    "attention.coincidence": "as executed, all attention and elementwise products",
    "attention.left_driven": "",
    "attention.right_driven": "",
    "attention.unary": "",
    "neuron.touched": "",
    "neuron.spikes": "",
    "arithmetic.active": "",
}
"""Quantities of the whole network: `NAME` over layers that run per step or at the end, and `static.NAME` over
layers that are static. Joint, because the layers of one sample are correlated."""


@dataclass(frozen=True)
class LayerCount:
    """Counts of one layer; see QUANTITIES and CONSTANTS for the keys of its role.

    `kind` is the operator (`order`: the executed one, `qk` or `kv`), `name` its node and `source` the module.
    `input_class` is of the (joint) input; `scale` its unit. `parts`: of an order, its two executed products.
    """

    name: str
    kind: str
    source: str
    role: Role
    time: Time
    input_class: Class
    scale: float
    constants: Mapping[str, int]
    steps: Mapping[str, tuple[Moments, ...]]
    total: Joint
    parts: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """How often it runs per sample: T for a per-step layer, else 1."""
        return len(next(iter(self.steps.values())))

    def mean(self, quantity: str) -> float:
        """Mean per sample, summed over the rows."""
        return self.total[quantity].mean

    def constant(self, name: str) -> int:
        """A constant per sample: per row, times the rows."""
        return self.constants[name] * self.rows

    def rate(self, row: int | None = None) -> float:
        """Share of nonzero inputs (synapse) or of neurons that fire (neuron), at one step or over all."""
        name, size = {"synapse": ("events", "inputs"), "neuron": ("spikes", "clocked")}[self.role]
        if row is None:
            return self.mean(name) / self.constant(size)
        return self.steps[name][row].mean / self.constants[size]

    def merge(self, other: LayerCount) -> LayerCount:
        return replace(
            self,
            steps={
                q: tuple(a.merge(b) for a, b in zip(rows, other.steps[q], strict=True))
                for q, rows in self.steps.items()
            },
            total=self.total.merge(other.total),
        )

    def _facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "source": self.source,
            "role": self.role,
            "time": self.time,
            "input_class": self.input_class,
            "scale": self.scale,
            "constants": dict(self.constants),
            "rows": self.rows,
            "parts": list(self.parts),
        }

    def to_json(self) -> dict[str, Any]:
        steps = {q: [m.to_json() for m in rows] for q, rows in self.steps.items()}
        return {**self._facts(), "steps": steps, "total": self.total.to_json()}

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> LayerCount:
        """Inverse of to_json; KeyError, TypeError or ValueError where `d` is not its form."""
        role: Role = d["role"]
        if (
            role not in QUANTITIES
            or d["time"] not in get_args(Time)
            or d["input_class"] not in get_args(Class)
        ):
            raise ValueError(f"{d['name']} has an unknown role, time or class of input")
        if not (0 < float(d["scale"]) < math.inf):
            raise ValueError(f"{d['name']} has the scale {d['scale']}")
        steps = {str(q): tuple(Moments.from_json(m) for m in rows) for q, rows in d["steps"].items()}
        total = Joint.from_json(d["total"])
        if set(steps) != set(QUANTITIES[role]) or set(total.each) != set(steps):
            raise ValueError(f"{d['name']} does not have the quantities of its role")
        if any(sum(m.total for m in rows) != total[q].total for q, rows in steps.items()):
            raise ValueError(f"the steps of {d['name']} do not sum to its total")
        if set(d["constants"]) != set(CONSTANTS[role]):
            raise ValueError(f"{d['name']} does not have the constants of its role")
        constants = {str(k): integer(v) for k, v in d["constants"].items()}
        empty = [k for k in ("inputs", "clocked", "left", "right") if constants.get(k, 1) < 1]
        if empty or min(constants.values()) < 0:
            raise ValueError(f"{d['name']} has constants that no layer has")
        return cls(
            str(d["name"]),
            str(d["kind"]),
            str(d["source"]),
            role,
            d["time"],
            d["input_class"],
            float(d["scale"]),
            constants,
            steps,
            total,
            tuple(str(name) for name in d["parts"]),
        )


@dataclass(frozen=True)
class Ledger:
    """Counts of a network over `samples` samples of a data set.

    `steps` is T. `graph` says what was counted (its checksum, source, passes' target). `network` joins NETWORK's
    quantities.
    """

    samples: int
    steps: int
    layers: tuple[LayerCount, ...]
    network: Joint
    graph: Mapping[str, Any] = field(default_factory=dict)

    def of(self, role: Role) -> list[LayerCount]:
        return [layer for layer in self.layers if layer.role == role]

    def layer(self, name: str) -> LayerCount:
        """The layer of that node (KeyError where there is none)."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def merge(self, other: Ledger) -> Ledger:
        """Both shards together, as if counted in one run; UserError where they are of different networks."""
        if self._facts() != other._facts():
            raise UserError(
                "the shards are counts of different networks", hint="count every shard with the same model"
            )
        return replace(
            self,
            samples=self.samples + other.samples,
            layers=tuple(a.merge(b) for a, b in zip(self.layers, other.layers, strict=True)),
            network=self.network.merge(other.network),
        )

    def _facts(self) -> tuple[Any, ...]:
        return self.steps, dict(self.graph), [layer._facts() for layer in self.layers]

    def to_json(self) -> dict[str, Any]:
        """A JSON form with every sum as an integer (beyond 2**53 too)."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "samples": self.samples,
            "steps": self.steps,
            "graph": dict(self.graph),
            "network": self.network.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Ledger:
        """Inverse of to_json; UserError where `d` is something else, damaged or too new."""
        if not isinstance(d, Mapping) or d.get("schema") != SCHEMA:
            raise UserError("this is not a count of stdeploy")
        if d.get("version") != VERSION:
            raise UserError(f"a count of version {d.get('version')}, this stdeploy reads {VERSION}")
        try:
            layers = tuple(LayerCount.from_json(layer) for layer in d["layers"])
            network = Joint.from_json(d["network"])
            ledger = cls(integer(d["samples"]), integer(d["steps"]), layers, network, dict(d["graph"]))
            ledger._check()
            return ledger
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"the count is damaged: {error}", hint="count again") from error

    def _check(self) -> None:
        """ValueError where its layers, steps and samples do not belong together."""
        if set(self.network.each) != {*NETWORK, *(f"static.{name}" for name in NETWORK)}:
            raise ValueError("it does not have the quantities of a network")
        products = {layer.name for layer in self.of("attention")}
        for layer in self.layers:
            rows = self.steps if layer.time == "step" else 1
            if any(len(moments) != rows for moments in layer.steps.values()):
                raise ValueError(f"{layer.name} does not have {rows} rows")
            if any(m.n != self.samples for moments in layer.steps.values() for m in moments):
                raise ValueError(f"{layer.name} has another number of samples")
            if layer.role == "order" and (
                layer.kind not in ("qk", "kv") or len(products & set(layer.parts)) != 2
            ):
                raise ValueError(f"{layer.name} is not an order of two products")
        if {joint.n for joint in (self.network, *(layer.total for layer in self.layers))} != {self.samples}:
            raise ValueError("its totals have another number of samples")


def merge(shards: Sequence[Ledger]) -> Ledger:
    """All shards together; UserError where there are none or they are of different networks."""
    if not shards:
        raise UserError("there is no shard to merge")
    return reduce(Ledger.merge, shards)


def save_ledger(ledger: Ledger, path: Path | str) -> None:
    """Write a ledger as JSON, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(ledger.to_json()))


def load_ledger(path: Path | str) -> Ledger:
    """Read a ledger; UserError that names the file where it is missing, damaged or something else."""
    try:
        document = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the count {path}: {error}", hint="count again") from error
    try:
        return Ledger.from_json(document)
    except UserError as error:
        raise UserError(f"{path}: {error.message}", hint=error.hint) from error
