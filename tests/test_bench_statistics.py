"""The benchmark's statistics against brute force, and the order in which candidates take turns."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.runtime.bench import turns
from stdeploy.runtime.bench.statistics import ratio_of_medians, summarise
from stdeploy.runtime.bench.turns import PlayerError, Timed, Timeline, Turn, take_turns

SECONDS = st.floats(1e-6, 1e3)


def tables(fewest: int = 1) -> st.SearchStrategy[list[list[float]]]:
    return st.integers(1, 7).flatmap(
        lambda calls: st.lists(
            st.lists(SECONDS, min_size=calls, max_size=calls), min_size=fewest, max_size=12
        )
    )


def percentile(values: list[float], share: float) -> float:
    """Linear interpolation between the order statistics, by hand."""
    ordered, place = sorted(values), share * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@given(tables())
def test_summary_is_what_a_hand_would_count(rounds: list[list[float]]) -> None:
    values = [s for r in rounds for s in r]
    got = summarise(rounds)
    assert (got.n, got.rounds) == (len(values), len(rounds))
    assert got.p50 == pytest.approx(percentile(values, 0.5))
    assert got.iqr == pytest.approx(percentile(values, 0.75) - percentile(values, 0.25), abs=1e-12)
    assert (got.p90 is None) == (len(values) < 10)
    if got.p90 is not None:
        assert got.p90 == pytest.approx(percentile(values, 0.9))
    assert got.p99 is None
    mean = math.fsum(values) / len(values)
    assert got.mean == pytest.approx(mean)
    if len(values) > 1:
        assert got.sd == pytest.approx(
            math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)), rel=1e-6, abs=1e-9
        )
    assert got.minimum == min(values) and got.maximum == max(values)


def test_p99_needs_a_hundred_calls() -> None:
    values = [float(i) for i in range(1, 101)]
    assert summarise([values]).p99 == pytest.approx(percentile(values, 0.99))
    assert summarise([values[:99]]).p99 is None


def test_drift_compares_the_halves_and_outliers_are_counted() -> None:
    drifting = summarise([[1.0, 1.0], [1.0, 1.0], [9.0, 9.0], [1.2, 1.2], [1.2, 1.2]])
    assert drifting.drift == pytest.approx(0.2)
    assert summarise([[1.0]]).drift is None
    calm = [1.0, 1.01, 0.99, 1.02, 0.98]
    assert summarise([calm, calm]).outliers == 0
    assert summarise([calm, [*calm[:4], 5.0]]).outliers == 1


@settings(deadline=None, max_examples=25)
@given(tables(5), st.floats(0.05, 20), st.integers(0, 99))
def test_a_candidate_in_lockstep_has_an_exact_ratio(
    rounds: list[list[float]], factor: float, seed: int
) -> None:
    """Whole rounds are drawn for both alike, so that slow rounds of the machine cancel entirely."""
    got = ratio_of_medians([[factor * s for s in r] for r in rounds], rounds, seed=seed, resamples=50)
    assert got.low is not None and got.high is not None
    assert [got.value, got.low, got.high] == pytest.approx([factor] * 3)


def test_the_interval_is_the_exhaustive_bootstraps() -> None:
    """Five rounds can be drawn in 5^5 ways: the interval over all of them, against drawing some."""
    rng = np.random.default_rng(7)
    a, b = rng.gamma(9.0, 1.0, (5, 3)), rng.gamma(4.0, 2.0, (5, 3))
    every = [
        np.median(a[list(rows)]) / np.median(b[list(rows)]) for rows in itertools.product(range(5), repeat=5)
    ]
    low, high = np.percentile(every, [2.5, 97.5])
    got = ratio_of_medians(a.tolist(), b.tolist(), seed=3, resamples=20_000)
    assert got.value == pytest.approx(np.median(a) / np.median(b))
    assert got.low == pytest.approx(low, rel=0.03) and got.high == pytest.approx(high, rel=0.03)
    assert low < got.value < high
    assert got == ratio_of_medians(a.tolist(), b.tolist(), seed=3, resamples=20_000)
    swapped = ratio_of_medians(b.tolist(), a.tolist(), seed=3, resamples=20_000)
    assert swapped.low == pytest.approx(1 / (got.high or 0), rel=0.01)


def test_too_few_rounds_have_no_interval() -> None:
    got = ratio_of_medians([[1.0]] * 4, [[2.0]] * 4)
    assert (got.value, got.low, got.high) == (0.5, None, None)
    assert "too few rounds" in str(got)


@pytest.mark.parametrize("rounds", [[], [[]], [[1.0], [1.0, 2.0]]])
def test_ragged_or_empty_rounds_are_refused(rounds: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="equally many"):
        summarise(rounds)


def test_ratio_needs_the_same_rounds() -> None:
    with pytest.raises(ValueError, match="3 rounds"):
        ratio_of_medians([[1.0]] * 3, [[1.0]] * 4)


def test_every_round_has_each_candidate_once_in_a_shuffled_order() -> None:
    calls: list[str] = []
    players = {name: Timed(lambda name=name: calls.append(name)) for name in "abcd"}
    line = take_turns(players, 40, {"a": 1, "b": 2, "c": 3, "d": 1}, seed=5)
    order = line.order()
    chunks = [order[i : i + 4] for i in range(0, len(order), 4)]
    assert len(chunks) == 40 and all(sorted(chunk) == list("abcd") for chunk in chunks)
    assert len({tuple(chunk) for chunk in chunks}) > 10
    assert all({chunk[place] for chunk in chunks} == set("abcd") for place in range(4))
    assert [len(turn.seconds) for turn in line.turns["c"]] == [3] * 40
    assert calls.count("c") == 40 * (3 + 1)
    assert line.overlaps() == []
    again = take_turns(players, 40, seed=5)
    assert again.order() == order
    assert take_turns(players, 40, seed=6).order() != order


def test_a_player_that_fails_drops_out_and_the_rest_go_on() -> None:
    class Mortal:
        turns = 0

        def turn(self, calls: int) -> Turn:
            self.turns += 1
            if self.turns == 3:
                raise PlayerError("out of memory")
            return Timed(lambda: None).turn(calls)

    line = take_turns({"mortal": Mortal(), "rest": Timed(lambda: None)}, 6)
    assert line.failed == {"mortal": "out of memory"}
    assert len(line.turns["mortal"]) == 2 and len(line.turns["rest"]) == 6


def test_overlapping_turns_are_found() -> None:
    line = Timeline({"a": [Turn((1.0,), 0.0, 2.0)], "b": [Turn((1.0,), 1.9, 3.0)]})
    assert line.overlaps() == [("a", "b")]


@dataclass
class SpinningClock:
    """Time in which this process takes `cores` until `until`, and nothing afterwards."""

    until: float
    cores: float = 1.0
    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.cores * min(self.now, self.until)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("spins", "waited"), [(0.04, 0.04), (0.0, 0.0), (60.0, 0.5)])
def test_a_turn_ends_when_its_threads_have_stopped_spinning(
    spins: float, waited: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime's do after a call; what never stops is waited for half a second."""
    clock = SpinningClock(spins)
    monkeypatch.setattr(turns, "time", clock)
    turn = Timed(lambda: None).turn(2)
    assert (turn.end, len(turn.seconds)) == (0.0, 2)
    assert waited <= clock.now <= waited + 0.02
