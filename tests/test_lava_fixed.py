"""Fixed point: what Lava keeps of the integers, the scales, and the refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from stdeploy.exporters import lava
from stdeploy.exporters.lava.fixed import BIAS_MANTISSA, SUM, THRESHOLD, input_range, quantise
from stdeploy.exporters.lava.linear_map import LinearMap
from stdeploy.exporters.lava.plan import InputRange, Plan, Population, Source, Synapses
from stdeploy.graph import GraphBuilder, Weight, ops
from stdeploy.graph.interpreter import interpret
from stdeploy.graph.value import REAL, count
from stdeploy.passes.pipelines import PIPELINES, run_pipeline
from stdeploy.runtime.lava_reference import LavaReference
from tests.graphs import random_inputs, spikformer_graph


def one_layer(weight: np.ndarray, threshold: float, bias: float, limit: int) -> tuple[Synapses, Population]:
    plan = Plan()
    plan.add("in", Source(weight.shape[1]), {}, 1)
    plan.add("w", Synapses(LinearMap(sparse.csr_matrix(weight))), {"s_in": ("in",)}, 2)
    neuron = Population(len(weight), 0.4, threshold, np.full(len(weight), bias))
    plan.add("n", neuron, {"a_in": ("w",)}, 2)
    plan.output = ("n",)
    out, refused = quantise(plan, InputRange(0.25, limit))
    synapses, population = out.processes["w"], out.processes["n"]
    assert refused == [] and isinstance(synapses, Synapses) and isinstance(population, Population)
    return synapses, population


@given(
    st.integers(1, 6), st.integers(1, 30), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3),
    st.integers(1, 1023), st.sampled_from(["mixed", "positive", "negative"]), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_integers_stay_within_what_lava_keeps(
    rows: int, columns: int, size: float, threshold: float, bias: float, limit: int, sign: str, seed: int
) -> None:
    weight = np.random.default_rng(seed).standard_normal((rows, columns)) * size
    weight = {"mixed": weight, "positive": np.abs(weight), "negative": -np.abs(weight)}[sign]
    synapses, population = one_layer(weight, threshold, bias, limit)
    w = synapses.map.matrix.toarray()
    if w.min() < 0 < w.max():
        assert w.min() >= -256 and w.max() <= 254 and not (w % 2).any()
    else:
        assert np.abs(w).max() <= 255
    assert np.abs(w).sum(1).max() * limit * 2.0**synapses.exponent < SUM
    assert -1 <= population.threshold <= THRESHOLD and isinstance(population.threshold, int)
    assert population.bias is not None and np.abs(population.bias).max() <= BIAS_MANTISSA + 1
    assert 0 <= population.bias_exponent <= 7 and population.leak == round(0.4 * 4096)


def test_the_scale_is_one_for_weights_threshold_and_bias() -> None:
    weight = np.array([[0.5, -1.27, 0.25]])
    synapses, population = one_layer(weight, 1.5, 0.125, 3)
    scale = population.threshold + 1
    ratio = synapses.map.matrix.toarray() * 2.0**synapses.exponent / (weight * 0.25 * (scale / 1.5))
    np.testing.assert_allclose(ratio, 1, atol=0.02)
    assert population.bias is not None
    bias = (population.bias[0] << population.bias_exponent) / 64
    assert math.isclose(bias, 0.125 * scale / 1.5, rel_tol=0.01)


def test_events_keep_their_own_unit_and_images_get_the_options() -> None:
    assert input_range(count(0.5, 3), 1 / 64, 1023) == InputRange(0.5, 3)
    assert input_range(REAL, 1 / 64, 1023) == InputRange(1 / 64, 1023)


@pytest.mark.parametrize("attention", ["process", "units"])
def test_few_spikes_change(attention: str, tmp_path: Path) -> None:
    graph = run_pipeline(spikformer_graph(neurons="spikingjelly"), PIPELINES["lava"]).graph
    x = random_inputs(graph, 4)
    lava.export(graph, tmp_path / "net", {"fixed": True, "attention": attention})
    wanted = interpret(graph, x)
    got = LavaReference(tmp_path / "net").run(x, wanted.spikes)  # each layer on its exact input
    changed = {n: float((got.spikes[n] != s).mean()) for n, s in wanted.spikes.items()}
    assert all(share < 0.05 for share in changed.values()), changed
    attn = [n for n in changed if n.endswith("attn_lif")]
    assert all(changed[n] == 0 for n in attn), "integers against a threshold: ties have to fire"


def test_a_sum_of_reals_before_a_neuron_is_refused() -> None:
    builder = GraphBuilder(2)
    x = builder.add(ops.Input((3, 2), ("channel", "token"), "TB"), name="input")
    weight = Weight.dense(np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32))
    a = builder.add(ops.Linear(weight), (x,), name="a")
    b = builder.add(ops.Neuron(np.asarray(2.0), np.asarray(0.1), np.asarray(0.0)), (a,), name="lif")
    b = builder.add(ops.Linear(weight), (b,), name="b")
    x = builder.add(ops.Add(), (a, b), name="shortcut")
    x = builder.add(ops.Neuron(np.asarray(2.0), np.asarray(0.1), np.asarray(0.0)), (x,), name="lif2")
    builder.add(ops.Output("output", "TB"), (x,), name="out")
    graph = builder.build()
    assert lava.check(graph) == []
    found = lava.check(graph, {"fixed": True})
    assert {u.where for u in found} == {"shortcut.synapses", "shortcut.synapses.1"}
    assert all("no common 8-bit scale" in u.reason for u in found)


def test_the_input_and_spikes_have_no_common_unit() -> None:
    """An input of integers of 1/64 beside spikes was summed as if both were spikes."""
    for end in ("neuron", "output"):
        builder = GraphBuilder(2)
        x = builder.add(ops.Input((3, 2), ("channel", "token"), "TB"), name="input")
        fired = builder.add(ops.Neuron(np.asarray(2.0), np.asarray(0.1), np.asarray(0.0)), (x,), name="lif")
        x = builder.add(ops.Add(), (x, fired), name="shortcut")
        if end == "neuron":
            x = builder.add(ops.Neuron(np.asarray(2.0), np.asarray(0.1), np.asarray(0.0)), (x,), name="lif2")
        builder.add(ops.Output("output", "TB"), (x,), name="out")
        graph = builder.build()
        (refusal,) = lava.check(graph, {"fixed": True})
        assert "units differ" in refusal.reason
        assert lava.check(graph, {"fixed": True, "input_unit": 1}) == lava.check(graph) == []


def layer_by_layer(weight: np.ndarray, bias: np.ndarray, threshold: float, folder: Path) -> float:
    """Share of spikes that fixed point changes behind one Linear of spikes, T = 8."""
    builder = GraphBuilder(8)
    x = builder.add(ops.Input((weight.shape[1], 4), ("channel", "token"), "TB"), name="input")
    x = builder.add(ops.Neuron(np.asarray(2.0), np.asarray(0.1), np.asarray(0.0)), (x,), name="lif")
    x = builder.add(ops.Linear(Weight.dense(weight.astype(np.float32)), bias), (x,), name="fc")
    neuron = ops.Neuron(np.asarray(2.0), np.asarray(threshold), np.asarray(0.0))
    x = builder.add(neuron, (x,), name="lif2")
    builder.add(ops.Output("output", "TB"), (x,), name="out")
    graph = builder.build()
    x_in = random_inputs(graph, 4)
    wanted = interpret(graph, x_in)
    assert 0 < wanted.spikes["lif2"].mean() < 1
    lava.export(graph, folder, {"fixed": True})
    got = LavaReference(folder).run(x_in, wanted.spikes)
    return float((got.spikes["lif2"] != wanted.spikes["lif2"]).mean())


def test_biases_fire_alone_where_every_weight_is_zero(tmp_path: Path) -> None:
    bias = np.array([0.1, 0.5, 0.7, 1.2, -0.3])
    assert layer_by_layer(np.zeros((5, 4)), bias, 0.6, tmp_path / "net") == 0


def test_a_weight_far_above_the_threshold_leaves_the_threshold_fine(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((40, 6)) * 1000
    assert layer_by_layer(weight, rng.uniform(-1, 1, 40), 0.6, tmp_path / "net") < 0.02
    document = json.loads((tmp_path / "net" / "network.json").read_text())
    assert any(p.get("exponent", 0) > 0 for p in document["processes"])
