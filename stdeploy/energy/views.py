"""What other tools and papers would print for the same run, each from the exact counts of a ledger.

A view is a set of settings: which weights, which border, which values count as spikes, which layers. All numbers are
exact fractions, means per sample over the data set. A tool that looks at one call's values to tell spikes from
numbers is shown the whole data set as one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from stdeploy.energy.ledger import LayerCount, Ledger
from stdeploy.energy.synaptic import FIXED
from stdeploy.errors import UserError


@dataclass(frozen=True)
class View:
    """One tool's numbers: `layers[name][column]` and their sums `total[column]`, per sample.

    `source` is the tool's version or paper, `ignores` what its number leaves out.
    """

    tool: str
    source: str
    ignores: tuple[str, ...]
    layers: Mapping[str, Mapping[str, Fraction]]
    total: Mapping[str, Fraction]


@dataclass(frozen=True)
class ViewRule:
    """How a tool counts: its columns, and its numbers for one layer (None where it does not see the layer)."""

    source: str
    columns: tuple[str, ...]
    ignores: tuple[str, ...]
    layer: Callable[[LayerCount, Ledger], Mapping[str, Fraction] | None]


def view(ledger: Ledger, tool: str) -> View:
    """The numbers that `tool` would print; UserError where there is no such view."""
    require_views([tool])
    rule = VIEWS[tool]
    layers = {}
    for layer in ledger.layers:
        numbers = rule.layer(layer, ledger)
        if numbers is not None:
            layers[layer.name] = {column: Fraction(numbers.get(column, 0)) for column in rule.columns}
    total = {c: sum((numbers[c] for numbers in layers.values()), Fraction(0)) for c in rule.columns}
    return View(tool, rule.source, rule.ignores, layers, total)


def require_views(tools: Iterable[str]) -> None:
    """UserError where there is no view of that name."""
    for tool in tools:
        if tool not in VIEWS:
            raise UserError(f"no view {tool!r}", hint=f"views: {', '.join(VIEWS)}")


def mean(layer: LayerCount, quantity: str) -> Fraction:
    """Exact mean per sample."""
    return Fraction(layer.total[quantity].total, layer.total[quantity].n)


def repeats(layer: LayerCount, ledger: Ledger) -> int:
    """How often a framework that repeats a static image runs the layer, per row that is counted."""
    return ledger.steps if layer.time == "static" else 1


def rate(layer: LayerCount, events: str, size: str) -> Fraction:
    """Mean share of nonzero elements."""
    return mean(layer, events) / layer.constant(size)


def is_ternary(layer: LayerCount) -> bool:
    """Whether every input of a Linear or Conv was -1, 0 or 1."""
    if layer.total["several"].total:
        return False
    if layer.input_class == "real":
        return layer.total["magnitude"].total == FIXED * layer.total["events"].total
    return layer.scale == 1.0


def is_spiking(layer: LayerCount) -> bool:
    """Whether every input of a Linear or Conv was 0 or 1."""
    positive = layer.total["blind_sum"].total == FIXED * layer.total["blind"].total
    return is_ternary(layer) and (layer.input_class != "real" or positive)


def is_spiking_operand(layer: LayerCount, side: str) -> bool:
    """Whether every element of a product's operand ("left", "right") was 0 or 1."""
    return bool(layer.constants[f"{side}_unit"]) and not layer.total[f"{side}_several"].total


def unit(layer: LayerCount) -> Fraction:
    """What one unit of `magnitude` and `blind_sum` is."""
    return Fraction(1, FIXED) if layer.input_class == "real" else Fraction(layer.scale)


def _neurobench(layer: LayerCount, ledger: Ledger) -> Mapping[str, Fraction] | None:
    if layer.role != "synapse":
        return None
    times = repeats(layer, ledger)
    column = "Effective_ACs" if is_ternary(layer) else "Effective_MACs"
    return {column: mean(layer, "synops") * times, "Dense": Fraction(layer.constant("dense") * times)}


def _spikingjelly(layer: LayerCount, ledger: Ledger) -> Mapping[str, Fraction] | None:
    times = repeats(layer, ledger)
    if layer.role == "synapse":
        if is_spiking(layer):
            return {"SynOp": mean(layer, "blind") * times}
        return {"MAC": Fraction(layer.constant("dense_padded") * times)}
    if layer.role != "attention":
        return None
    left, right = (is_spiking_operand(layer, side) for side in ("left", "right"))
    if not left and not right:
        return {"MAC": Fraction(layer.constant("dense") * times)}
    driver = "coincidence" if left and right else "left_driven" if left else "right_driven"
    return {"SynOp": mean(layer, driver) * times}


def _syops(layer: LayerCount, ledger: Ledger) -> Mapping[str, Fraction] | None:
    if layer.role != "synapse":
        return None
    dense = Fraction(layer.constants["dense_padded"] * repeats(layer, ledger))
    two_values = layer.input_class != "real" and not layer.total["several"].total and layer.scale <= 1
    if not two_values and not is_spiking(layer):
        return {"MACs": dense * layer.rows}
    return {"ACs": dense * mean(layer, "magnitude") * unit(layer) / layer.constants["inputs"]}


def _sinabs(layer: LayerCount, ledger: Ledger) -> Mapping[str, Fraction] | None:
    if layer.role != "synapse" or layer.constants["spatial"] == 1:
        return None
    summed = mean(layer, "blind_sum") * unit(layer) * repeats(layer, ledger)
    return {"SynOps": summed, "SynOps_per_timestep": summed / ledger.steps}


def _norse(layer: LayerCount, ledger: Ledger) -> Mapping[str, Fraction] | None:
    if layer.role != "synapse":
        return None
    return {
        "SynOps": mean(layer, "magnitude") * unit(layer) * layer.constants["fan_out"] * repeats(layer, ledger)
    }


def _kerasspiking(layer: LayerCount, ledger: Ledger) -> Mapping[str, Fraction] | None:
    if layer.role == "neuron":
        return {"neuron_updates": Fraction(layer.constant("clocked"))}
    if layer.role != "synapse":
        return None
    average = mean(layer, "magnitude") * unit(layer) / layer.constants["inputs"]
    return {"synaptic_updates": average * layer.constants["dense_padded"] * repeats(layer, ledger)}


def literature(layer: LayerCount, ledger: Ledger) -> Mapping[str, Fraction] | None:
    """The papers' formula of one Linear, Conv or product: rate x T x dense operations; the input layer as MAC."""
    times = repeats(layer, ledger)
    if layer.role == "synapse":
        dense = Fraction(layer.constant("dense_padded") * times)
        if layer.input_class == "real":
            return {"MACs": dense}
        return {"SOPs": rate(layer, "events", "inputs") * dense}
    if layer.role != "attention":
        return None
    slower = min(rate(layer, "left_events", "left"), rate(layer, "right_events", "right"))
    return {"SOPs": slower * layer.constant("dense") * times}


def _spikingformer(layer: LayerCount, ledger: Ledger) -> Mapping[str, Fraction] | None:
    if layer.role != "order":
        ordered = {name for order in ledger.of("order") for name in order.parts}
        return None if layer.name in ordered else literature(layer, ledger)
    q, k, v = operand_rates(layer, ledger)
    return {"SOPs": Fraction(layer.constant("kv.dense"), 2) * (min(k, v) + q)}


def operand_rates(order: LayerCount, ledger: Ledger) -> tuple[Fraction, Fraction, Fraction]:
    """Mean rates of Q, K and V of an attention."""
    first, second = (ledger.layer(name) for name in order.parts)
    left, right = rate(first, "left_events", "left"), rate(first, "right_events", "right")
    if order.kind == "qk":
        return left, right, rate(second, "right_events", "right")
    return rate(second, "left_events", "left"), left, right


def _sdt(layer: LayerCount, ledger: Ledger) -> Mapping[str, Fraction] | None:
    if layer.role != "product":
        return literature(layer, ledger)
    rates = rate(layer, "left_events", "left") + rate(layer, "right_events", "right")
    return {"SOPs": rates * layer.constant("dense") * repeats(layer, ledger)}


_NO_ZEROS = "zero weights (all count as present)"
_NO_BORDER = "the border (padding counts as data)"
_NO_MEMORY = "memory traffic"
_NO_NEURONS = "neuron updates"
_NO_ATTENTION = "attention products"
_NO_REST = "pools, residual adds, elementwise products"

VIEWS: dict[str, ViewRule] = {
    "spikformer": ViewRule(
        "Spikformer (Zhou et al., ICLR 2023): SOP = rate x T x FLOPs, first convolution as MAC at every step",
        ("SOPs", "MACs"),
        (_NO_ZEROS, _NO_BORDER, "which input meets which fan-out", _NO_NEURONS, _NO_MEMORY, _NO_REST),
        literature,
    ),
    "spikingformer": ViewRule(
        "Spikingformer's published script: as spikformer, attention as T H N d^2 (min(r_K, r_V) + r_Q)",
        ("SOPs", "MACs"),
        (
            _NO_ZEROS,
            _NO_BORDER,
            "the order in which the attention is executed",
            _NO_NEURONS,
            _NO_MEMORY,
            _NO_REST,
        ),
        _spikingformer,
    ),
    "sdt": ViewRule(
        "Spike-driven Transformer (Yao et al., NeurIPS 2023): as spikformer, a mask as T N D (r_left + r_right)",
        ("SOPs", "MACs"),
        (_NO_ZEROS, _NO_BORDER, "column sums of the mask", _NO_NEURONS, _NO_MEMORY),
        _sdt,
    ),
    "neurobench": ViewRule(
        "NeuroBench 2.3: SynapticOperations",
        ("Effective_ACs", "Effective_MACs", "Dense"),
        (_NO_ATTENTION, _NO_NEURONS, _NO_MEMORY, _NO_REST),
        _neurobench,
    ),
    "spikingjelly": ViewRule(
        "SpikingJelly 2.0: SynOpCounter, and MACCounter's Linear, Conv and matmul part",
        ("SynOp", "MAC"),
        (_NO_ZEROS, "non-binary inputs (SynOp)", "the border (MAC)", "unfolded BatchNorm (MAC)", _NO_NEURONS),
        _spikingjelly,
    ),
    "syops": ViewRule(
        "syops 0.0.5: Linear and Conv",
        ("ACs", "MACs"),
        (
            _NO_ZEROS,
            _NO_BORDER,
            _NO_ATTENTION,
            "bias, BatchNorm, pools and neurons, which it adds",
            _NO_MEMORY,
        ),
        _syops,
    ),
    "sinabs": ViewRule(
        "sinabs 3.1: synops hooks of Conv2d and Linear (signed sum of the input x fan-out)",
        ("SynOps", "SynOps_per_timestep"),
        (
            _NO_ZEROS,
            "Conv1d",
            _NO_ATTENTION,
            _NO_NEURONS,
            _NO_MEMORY,
            "that negative inputs cancel positive ones",
        ),
        _sinabs,
    ),
    "norse": ViewRule(
        "norse SynOpsCounter (pull request 444): sum of the input x k^2 out / groups",
        ("SynOps",),
        (_NO_ZEROS, _NO_BORDER, "stride", _NO_ATTENTION, _NO_NEURONS, _NO_MEMORY),
        _norse,
    ),
    "kerasspiking": ViewRule(
        "KerasSpiking 0.3: ModelEnergy (mean |input| x dense, every neuron at every step)",
        ("synaptic_updates", "neuron_updates"),
        (_NO_ZEROS, _NO_BORDER, _NO_ATTENTION, _NO_MEMORY, _NO_REST),
        _kerasspiking,
    ),
}
"""Views by the name that `--as` takes."""
