"""Counts times prices: against numbers worked by hand, and the algebra of parts, layers and spread."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from statistics import stdev

import numpy as np
import pytest

from stdeploy import workflow
from stdeploy.energy.comparison import literature
from stdeploy.energy.counting import count, spikes_of
from stdeploy.energy.ledger import Ledger
from stdeploy.energy.prices import SYNAPTIC, Choices, bound, dense, dense_macs, price
from stdeploy.energy.profile import load_profile, load_profiles
from stdeploy.energy.report import EnergyReport
from stdeploy.errors import UserError
from stdeploy.graph import Graph, GraphBuilder, Weight, ops
from stdeploy.graph.interpreter import interpret
from tests.graphs import every_layer_fires, random_inputs, spikformer_graph

PJ = 1e-12


def tiny(last: tuple[float, float] = (5.0, 6.0)) -> Graph:
    """3 real inputs -> Linear with bias and two zero weights -> 2 LIF -> Linear -> sum over 2 steps."""
    builder = GraphBuilder(steps=2)
    x = builder.add(ops.Input((3,), ("channel",)), name="x")
    first = Weight.dense(np.array([[1.0, 2.0, 3.0], [4.0, 0.0, 0.0]], np.float32))
    h = builder.add(ops.Linear(first, np.array([0.5, -0.5], np.float32)), (x,), name="first")
    lif = ops.Neuron(np.asarray(1.7), np.asarray(1.0), np.asarray(0.0))
    s = builder.add(lif, (h,), name="lif")
    second = Weight.dense(np.array([last], np.float32))
    y = builder.add(ops.Linear(second), (s,), name="second")
    builder.add(ops.Output(), (builder.add(ops.Readout("sum"), (y,), name="read"),), name="out")
    return builder.build()


def tiny_ledger(last: tuple[float, float] = (5.0, 6.0)) -> Ledger:
    """One sample (1, 0, 2); of the two neurons one fires at step 1 and both at step 2."""
    spikes = {"lif": np.array([[[1, 0]], [[1, 1]]], np.uint8)}
    return count(tiny(last), np.array([[1.0, 0.0, 2.0]], np.float32), spikes)


@pytest.fixture(scope="module")
def network() -> tuple[Graph, np.ndarray]:
    graph = spikformer_graph(steps=3, image=(2, 8, 8), masked=0.5, seed=5)
    inputs = random_inputs(graph, 5, 2)
    assert every_layer_fires(graph, inputs)
    return graph, inputs


@pytest.fixture(scope="module")
def ledger(network: tuple[Graph, np.ndarray]) -> Ledger:
    graph, inputs = network
    return count(graph, inputs, interpret(graph, inputs).spikes)


def test_arithmetic_by_hand() -> None:
    """3 real synops (columns 0 and 2 of the first weight), 3 binary; 4 updates of decaying neurons."""
    bill = price(tiny_ledger(), load_profile("45nm-fp32")).total
    read = tiny_ledger().layer("read").mean("active")
    parts = {part: e.mean / PJ for part, e in bill.parts.items()}
    assert parts["real"] == pytest.approx(3 * 4.6)
    assert parts["binary"] == pytest.approx(3 * 0.9)
    assert parts["count"] == parts["attention"] == 0
    assert parts["neurons"] == pytest.approx(4 * (2 * 0.9 + 3.7))
    assert parts["other"] == pytest.approx(2 * 0.9 + read * 0.9)  # two biases, once; the readout
    assert parts["weights"] == pytest.approx(6 * 32 / 64 * 10)  # 6 words out of 8 KB
    assert parts["state"] == pytest.approx(4 * 2 * 32 / 64 * 10)
    assert bill.synaptic.mean / PJ == pytest.approx(16.5)
    assert bill.total.mean / PJ == pytest.approx(sum(parts.values()))
    assert bill.unpriced == ()


def test_what_reads_a_still_image_costs_once_or_at_every_step() -> None:
    profile = load_profile("45nm-fp32")
    every = price(tiny_ledger(), profile, Choices(static="every-step")).total
    assert every.synaptic.mean / PJ == pytest.approx(6 * 4.6 + 3 * 0.9)
    assert every.parts["weights"].mean / PJ == pytest.approx(9 * 32 / 64 * 10)


def test_a_chip_by_hand() -> None:
    ledger = tiny_ledger()
    touched = ledger.layer("lif").mean("touched")
    bill = price(ledger, load_profile("loihi1")).total
    assert bill.synaptic.mean / PJ == pytest.approx(6 * 23.6)
    assert bill.parts["neurons"].mean / PJ == pytest.approx(touched * 81 + (4 - touched) * 52 + 3 * 1.7)
    assert "weights" not in bill.unpriced and "pools" in " ".join(bill.unpriced)
    whole = price(ledger, load_profile("truenorth")).total
    assert whole.total.mean / PJ == pytest.approx(6 * 26) and whole.unpriced == ()
    tianjic = price(ledger, load_profile("tianjic")).total
    assert {"neuron updates", "spike delivery"} <= set(tianjic.unpriced)


def test_the_dense_network_by_hand() -> None:
    """8 weights of one pass; each of 2 activations is added up, written and read once."""
    ledger = tiny_ledger()
    priced = price(ledger, load_profile("45nm-fp32"))
    d = dense(ledger, priced)
    assert d.macs == dense_macs(ledger) == 8
    assert d.synaptic_j / PJ == pytest.approx(8 * 4.6)
    assert d.total_j / PJ == pytest.approx(8 * (4.6 + 5) + 2 * (0.9 + 2 * 5))
    assert d.crossover is not None
    moving = (priced.total.synaptic.mean + priced.total.parts["weights"].mean) * d.crossover / d.rate
    fixed = sum(priced.total.parts[part].mean for part in ("neurons", "other", "state"))
    assert moving + fixed == pytest.approx(d.total_j)  # at the crossover rate both cost the same
    assert bound(ledger, load_profile("h100-fp16")) == pytest.approx(8 * 2 * 700 / 989.4e12)


def test_the_literature_formula_by_hand() -> None:
    """First layer: 6 weights at both steps, zeros too; second: 2 weights x rate 3/4 x 2 steps."""
    found = literature(tiny_ledger())
    assert found.macs == 12 and found.acs == pytest.approx(3)
    assert found.joules(load_profile("45nm-fp32")) / PJ == pytest.approx(12 * 4.6 + 3 * 0.9)


@pytest.mark.parametrize(
    ("last", "events"), [((5.0, 6.0), 3), ((5.0, 0.0), 2), ((0.0, 6.0), 1), ((0.0, 0.0), 0)]
)
def test_a_pruned_weight_saves_energy_that_the_literature_does_not_see(
    last: tuple[float, float], events: int
) -> None:
    ledger, profile = tiny_ledger(last), load_profile("45nm-fp32")
    parts = price(ledger, profile).total.parts
    assert parts["binary"].mean / PJ == pytest.approx(events * 0.9)
    assert parts["weights"].mean / PJ == pytest.approx((3 + events) * 5)
    assert literature(ledger) == literature(tiny_ledger())


def test_shards_are_priced_as_their_union(network: tuple[Graph, np.ndarray], ledger: Ledger) -> None:
    graph, inputs = network
    profile = load_profile("45nm-fp32")
    parts = [inputs[:2], inputs[2:]]
    shards = [count(graph, part, interpret(graph, part).spikes) for part in parts]
    whole = price(ledger, profile).total.total
    assert shards[1].merge(shards[0]) == ledger
    energies = [price(shard, profile).total.total.exact * shard.samples for shard in shards]
    assert sum(energies, Fraction(0)) == whole.exact * 5


@pytest.mark.parametrize("name", ["45nm-fp32", "7nm-int8", "loihi1", "spinnaker2-prototype", "truenorth"])
@pytest.mark.parametrize(
    "choices",
    [Choices(), Choices("unary", "every-step"), Choices("mac", memory="dram")],
    ids=["default", "unary", "mac"],
)
def test_layers_and_parts_sum_to_the_whole_exactly(ledger: Ledger, name: str, choices: Choices) -> None:
    priced = price(ledger, load_profile(name), choices)
    assert sum((b.total.exact for b in priced.layers.values()), Fraction(0)) == priced.total.total.exact
    assert sum((b.synaptic.exact for b in priced.layers.values()), Fraction(0)) == priced.total.synaptic.exact
    assert sum((e.exact for e in priced.total.parts.values()), Fraction(0)) == priced.total.total.exact
    synaptic = [priced.total.parts[part].exact for part in SYNAPTIC]
    assert sum(synaptic, Fraction(0)) == priced.total.synaptic.exact > 0


@pytest.mark.parametrize("name", ["45nm-fp32", "loihi1"])
def test_the_spread_is_that_of_the_samples_own_energies(
    network: tuple[Graph, np.ndarray], ledger: Ledger, name: str
) -> None:
    graph, inputs = network
    axis = 1 if graph.inputs[0].op.layout == "TB" else 0  # type: ignore[attr-defined]
    single = []
    for i in range(5):
        one = np.take(inputs, [i], axis=axis)
        single.append(price(count(graph, one, interpret(graph, one).spikes), load_profile(name)).total.total)
    whole = price(ledger, load_profile(name)).total.total
    assert whole.mean == pytest.approx(sum(e.mean for e in single) / 5)
    assert whole.sd == pytest.approx(stdev(e.mean for e in single))
    assert whole.sd is not None and whole.sd > 0
    assert single[0].ci95 is None


def test_multiplications_that_are_charged_as_additions_are_named(
    network: tuple[Graph, np.ndarray], ledger: Ledger
) -> None:
    """The graph as written has BatchNorms; after the passes none is left."""
    graph, inputs = network
    assert "BatchNorm" in " ".join(price(ledger, load_profile("45nm-fp32")).total.unpriced)
    lowered = workflow.lower(graph, "default").graph
    folded = count(lowered, inputs, spikes_of(lowered, graph, interpret(graph, inputs).spikes))
    assert price(folded, load_profile("45nm-fp32")).total.unpriced == ()


def test_graded_events_cost_more_the_more_they_are_charged_for(ledger: Ledger) -> None:
    profile = load_profile("45nm-fp32")
    ac, unary, mac = (price(ledger, profile, Choices(g)).total for g in ("ac", "unary", "mac"))  # type: ignore[arg-type]
    assert ac.parts["count"].exact > 0
    assert ac.parts["count"].exact < unary.parts["count"].exact
    ratio = mac.parts["count"].mean / ac.parts["count"].mean
    assert ratio == pytest.approx(4.6 / 0.9)
    assert ac.parts["binary"] == unary.parts["binary"] == mac.parts["binary"]


def test_memory_is_the_smallest_that_holds_everything(ledger: Ledger) -> None:
    profile = load_profile("45nm-fp32")
    assert price(tiny_ledger(), profile).memory == "sram_8k"
    layers = [
        replace(layer, constants={**layer.constants, "clocked": 40_000}) if layer.role == "neuron" else layer
        for layer in tiny_ledger().layers
    ]
    large = replace(tiny_ledger(), layers=tuple(layers))
    assert price(large, profile).memory == "sram_1m"  # 160 kB of membranes
    assert price(large, load_profile("45nm-int8")).memory == "sram_1m"  # 40 kB
    assert price(large, profile, Choices(memory="dram")).memory == "dram"


def test_a_bound_prices_no_spikes() -> None:
    h100, horowitz = load_profiles(["h100-fp16", "45nm-fp32"])
    with pytest.raises(UserError, match="bound for dense execution"):
        price(tiny_ledger(), h100)
    with pytest.raises(UserError, match="is no bound"):
        bound(tiny_ledger(), horowitz)
    with pytest.raises(UserError, match="only bounds"):
        EnergyReport.of(tiny_ledger(), [h100], Choices())
