"""Statistics of counts: exact, in constant memory, and the same however the samples were split."""

from __future__ import annotations

import json
import math
import statistics
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.energy.counting import Counter, count
from stdeploy.energy.ledger import Ledger, load_ledger, merge, save_ledger
from stdeploy.energy.statistics import EXACT_VALUES, Joint, Moments, bucket, student_t
from stdeploy.energy.tally import JointTally, Tally
from stdeploy.errors import UserError
from stdeploy.graph.interpreter import interpret
from tests.graphs import random_inputs, spikformer_graph

numbers = st.integers(-(2**61), 2**61) | st.integers(-5, 5)


def tallied(values: list[int], sizes: list[int]) -> Moments:
    tally, start = Tally(1), 0
    for size in [*sizes, len(values)]:
        tally.add(np.array([values[start : start + size]], dtype=np.int64))
        start += size
    return tally.moments(0)


@given(st.lists(numbers, min_size=2, max_size=40), st.lists(st.integers(0, 7), max_size=5))
def test_moments_do_not_depend_on_the_batches(values: list[int], sizes: list[int]) -> None:
    found = tallied(values, sizes)
    assert found == Moments.of(values)
    assert (found.total, found.squares) == (sum(values), sum(v * v for v in values))
    assert (found.n, found.low, found.high) == (len(values), min(values), max(values))
    exact = [Fraction(v) for v in values]
    assert found.variance == statistics.variance(exact)
    assert found.se == pytest.approx(float(statistics.variance(exact)) ** 0.5 / len(values) ** 0.5)
    assert Moments.from_json(json.loads(json.dumps(found.to_json()))) == found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 40), st.sampled_from((1, 50, 10_000, 10**9)))
def test_shards_merge_to_one_run(seed: int, parts: int, spread: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, spread, 3 * EXACT_VALUES).tolist()
    cuts = sorted(rng.integers(0, len(values), parts).tolist())
    shards = [values[a:b] for a, b in zip([0, *cuts], [*cuts, len(values)], strict=True) if b > a]
    whole = Moments.of(values)
    merged = Moments.of(shards[0])
    for shard in shards[1:]:
        merged = Moments.of(shard).merge(merged)
    assert merged == whole == tallied(values, [len(s) for s in shards])
    assert whole.exact == (len(set(values)) <= EXACT_VALUES)
    assert len(whole.values) <= max(EXACT_VALUES, 128 * spread.bit_length())


@pytest.mark.parametrize("spread", [40, 10**6, 10**12])
def test_percentiles_are_nearest_ranks(spread: int) -> None:
    values = sorted(np.random.default_rng(1).integers(0, spread, 2001).tolist())
    found = Moments.of(values)
    assert found.exact == (spread == 40)
    for p in (0, 5, 50, 95, 100):
        ranked = values[max(0, math.ceil(p / 100 * len(values)) - 1)]
        assert found.percentile(p) == pytest.approx(ranked, rel=0 if found.exact else 1 / 256, abs=0)
    with pytest.raises(ValueError, match="between 0 and 100"):
        found.percentile(101)


@given(st.integers(-(2**70), 2**70))
def test_a_bucket_starts_at_most_a_128th_below_its_values(value: int) -> None:
    start = bucket(value)
    assert bucket(start) == start <= value and (value - start) * 128 <= max(abs(value), 1) * 1


@pytest.mark.parametrize(
    ("df", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (99, 1.984)]
)
def test_the_confidence_interval_is_students(df: int, quantile: float) -> None:
    assert student_t(df) == pytest.approx(quantile, rel=2.5e-3)


def test_the_spread_of_one_sample_is_unknown() -> None:
    one = Moments.of([7])
    assert (one.mean, one.sd, one.se, one.ci95) == (7.0, None, None, None)
    low, high = Moments.of([3, 5, 4]).ci95 or (0, 0)
    assert (low, high) == pytest.approx((4 - 4.303 / 3**0.5, 4 + 4.303 / 3**0.5), rel=1e-3)


@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=2, max_size=12), st.integers(1, 11))
def test_a_weighted_sum_has_the_spread_of_its_samples(rows: list[tuple[int, int, int]], cut: int) -> None:
    names = ("b", "a", "c")
    tallies = []
    for part in (rows, rows[:cut], rows[cut:]):
        tally = JointTally([names, ("a",)])
        if part:
            samples = np.array(part, dtype=np.int64).T
            tally.add([dict(zip(names, samples, strict=True)), {"a": samples[1]}])
        tallies.append(tally)
    joint, alone = tallies[0].joints()
    weights = {"a": Fraction(1, 3), "b": Fraction(-2), "c": Fraction(5)}
    sums = [weights["b"] * b + weights["a"] * a + weights["c"] * c for b, a, c in rows]
    estimate = joint.combine(weights)
    assert estimate.exact == sum(sums) / len(sums)
    assert estimate.variance == statistics.variance(sums)
    assert set(joint.products) == set(combinations(sorted(names), 2)) and not alone.products
    assert Joint.from_json(json.loads(json.dumps(joint.to_json()))) == joint
    if cut < len(rows):
        assert tallies[1].joints()[0].merge(tallies[2].joints()[0]) == joint
    with pytest.raises(KeyError):
        joint.combine({"strange": 1})


@pytest.fixture(scope="module")
def shards() -> tuple[Ledger, list[Ledger]]:
    graph = spikformer_graph(5)
    x = random_inputs(graph, 6)
    spikes = interpret(graph, x).spikes
    cuts = [slice(0, 1), slice(1, 4), slice(4, 6)]
    return count(graph, x, spikes), [
        count(graph, x[c], {n: s[:, c] for n, s in spikes.items()}) for c in cuts
    ]


def test_ledgers_merge_in_any_order(shards: tuple[Ledger, list[Ledger]], tmp_path: Path) -> None:
    whole, parts = shards
    assert merge(parts) == whole == merge(parts[::-1])
    save_ledger(whole, tmp_path / "count.json")
    assert load_ledger(tmp_path / "count.json") == whole


def test_ledgers_of_other_networks_do_not_merge(shards: tuple[Ledger, list[Ledger]]) -> None:
    graph = spikformer_graph(5, mlp=13)
    x = random_inputs(graph, 1)
    with pytest.raises(UserError, match="different networks"):
        merge([shards[0], count(graph, x, interpret(graph, x).spikes)])
    with pytest.raises(UserError, match="no shard"):
        merge([])


def test_a_damaged_count_is_named(shards: tuple[Ledger, list[Ledger]], tmp_path: Path) -> None:
    path = tmp_path / "count.json"
    with pytest.raises(UserError, match=r"count\.json"):
        load_ledger(path)
    document = shards[0].to_json()
    layer = document["layers"][0]
    for broken, reason in (
        ("[]", "not a count"),
        ("{", "cannot read"),
        ("[" * 100_000, "cannot read"),
        ("9" * 5000, "cannot read"),
        (json.dumps({**document, "version": 99}), "version 99"),
        (json.dumps({**document, "layers": [{**layer, "steps": {}}]}), "quantities of its role"),
        (json.dumps({**document, "layers": [{**layer, "constants": {"inputs": "x"}}]}), "damaged"),
        (json.dumps({**document, "layers": None}), "damaged"),
    ):
        path.write_text(broken)
        with pytest.raises(UserError, match=reason):
            load_ledger(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("samples",), True),
        (("samples",), float("inf")),
        (("samples",), 2.0),
        (("steps",), 99),
        (("network", "each", "neuron.spikes", "squares"), 0),
        (("network", "each", "neuron.spikes", "sum"), float("inf")),
        (("network", "each", "neuron.spikes", "max"), 10**40),
        (("network", "each", "neuron.spikes", "exact"), "NaN"),
        (("network", "each", "neuron.spikes", "values", 0, 0), -(10**9)),
        (("network", "each", "neuron.spikes", "values", 0, 1), -1),
        (("network", "products", 0, 2), 10**40),
        (("layers", 0, "role"), "neurons"),
        (("layers", 0, "time"), "sometimes"),
        (("layers", 0, "input_class"), 0),
        (("layers", 0, "scale"), float("nan")),
        (("layers", 0, "constants", "inputs"), 0),
        (("layers", 0, "constants", "connections"), -1),
        (("layers", 0, "steps", "events", 0, "sum"), 1),
        (("layers", 0, "steps", "events"), []),
        (("layers", -1, "parts"), ["nothing", "at all"]),
        (("layers", -1, "kind"), "vk"),
    ],
    ids=str,
)
def test_a_count_that_no_samples_have_is_refused(
    shards: tuple[Ledger, list[Ledger]], place: tuple[Any, ...], value: Any
) -> None:
    document = json.loads(json.dumps(shards[0].to_json()))
    assert document["layers"][-1]["role"] == "order"
    holder = document
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    with pytest.raises(UserError, match="the count is damaged"):
        Ledger.from_json(document)


def test_memory_does_not_grow_with_the_samples() -> None:
    tally = Tally(3)
    rng = np.random.default_rng(0)
    for _ in range(40):
        tally.add(rng.integers(0, 10**9, (3, 5000)))
    assert tally.n == 200_000
    assert all(len(tally.moments(i).values) <= 30 * 128 for i in range(3))
    counter = Counter(spikformer_graph(1))
    with pytest.raises(UserError, match="no sample"):
        counter.ledger()
