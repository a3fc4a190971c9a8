"""Where an event program lies in memory: its arena, and the arrays of its file."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.errors import UserError
from stdeploy.exporters.event.draft import Blob, TooLargeError
from stdeploy.exporters.event.lower import lower
from stdeploy.exporters.event.stages import STAGES, WIDTH
from stdeploy.graph import Weight, ops
from stdeploy.runtime.event.memory import OVERREAD, _assign, aligned, plan
from tests.chains import chain
from tests.event import session
from tests.graphs import spikformer_graph

SOME = settings(max_examples=60, deadline=None)


@SOME
@given(
    st.dictionaries(
        st.text("abcdef", min_size=1),
        st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)),
        max_size=12,
    )
)
def test_buffers_that_live_at_once_never_overlap(drawn: dict[str, tuple[int, int, int]]) -> None:
    sizes = {name: 64 * size for name, (size, _, _) in drawn.items()}
    spans = {name: (min(a, b), max(a, b)) for name, (_, a, b) in drawn.items()}
    places, end = _assign(sizes, spans)
    for one, a in places.items():
        assert a % 64 == 0 and a + sizes[one] <= end
        for other, b in places.items():
            together = spans[one][0] <= spans[other][1] and spans[other][0] <= spans[one][1]
            if one != other and together:
                assert a + sizes[one] <= b or b + sizes[other] <= a
    assert end <= sum(sizes.values())


def test_state_and_scratch_lie_behind_the_buffers() -> None:
    header, _ = lower(spikformer_graph(), {})
    for stateful in (False, True):
        arena = plan(header, 4, 3, stateful=stateful)
        assert arena.table.shape == (len(header["stages"]), WIDTH)
        assert arena.size == arena.scratch + 3 * arena.room + OVERREAD
        places, at = [], max(arena.places.values())
        for stage, row in zip(header["stages"], arena.table, strict=True):
            if stage["state"]:
                place = 4 * int(row[STAGES[row[0]]()._asdict()["state"]])  # type: ignore[attr-defined]
                places.append((place, place + 4 * stage["state"]))
        assert len(places) > 5
        if not stateful:
            assert {place for place, _ in places} == {-4}
            continue
        for first, last in sorted(places):
            assert at <= first and last <= arena.scratch
            at = last


def test_memory_that_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match=r"needs 1073741824\.0 GiB of memory for a sample") as caught:
        aligned(2**60)
    assert caught.value.hint == "stream it: step() holds one step at a time"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_of_too_many_steps_is_refused_and_can_be_streamed(threads: int) -> None:
    weight = Weight.dense(np.eye(3, 5, dtype=np.float32))
    graph = chain(
        (5,), ops.Linear(weight, None), ops.Neuron(None, np.float32(2), None), steps=2**45, layout="B"
    )
    x = np.ones((threads, 5))
    with session(graph, threads=threads) as engine:
        with pytest.raises(UserError, match="GiB of memory for a sample"):
            engine.run(x)
        fired = [engine.step(frame, spikes=True).spikes["n1"].any() for frame in (x[0], None, None, None)]
        assert fired == [False, True, False, True]


def test_a_blob_holds_equal_arrays_once_and_at_cache_lines() -> None:
    blob = Blob(np.float32)
    places = [blob.add(array) for array in ([1, 2, 3], [4], [1, 2, 3], [])]
    assert places[0] == places[2] and all(place % 16 == 0 for place in places)
    array = blob.array()
    assert array.dtype == np.float32 and array[:3].tolist() == [1, 2, 3] and array[places[1]] == 4


def test_a_table_never_wraps_around() -> None:
    blob = Blob(np.int32)
    blob.add(np.array([0, 2**31 - 1]))
    assert blob.array()[1] == 2**31 - 1
    for large in ([2**31], np.array([[0, 2**32 + 1]])):
        with pytest.raises(TooLargeError, match=r"the engine counts to 2,147,483,647"):
            blob.add(large)
