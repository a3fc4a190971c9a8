"""Where an event program lies in memory: its arena, and the arrays of its file."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stdeploy.errors import UserError
from stdeploy.exporters.event.draft import Blob
from stdeploy.exporters.event.lower import lower
from stdeploy.exporters.event.pack import blocks_of
from stdeploy.exporters.event.stages import STAGES, WIDTH
from stdeploy.runtime.event.memory import OVERREAD, _assign, plan
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


def test_an_arena_beyond_the_places_that_lists_can_hold_is_refused() -> None:
    header, _ = lower(spikformer_graph(layout="TB"), {})
    with pytest.raises(UserError, match="GiB for 10000000 steps"):
        plan(header, 10_000_000, 1, stateful=False)


@given(st.integers(1, 3000))
def test_blocks_hold_their_outputs(outputs: int) -> None:
    blocks, vectors = blocks_of(outputs)
    assert blocks * vectors * 16 >= outputs > (blocks - 1) * vectors * 16 and 1 <= vectors <= 6


def test_a_blob_holds_equal_arrays_once_and_at_cache_lines() -> None:
    blob = Blob(np.float32)
    places = [blob.add(array) for array in ([1, 2, 3], [4], [1, 2, 3], [])]
    assert places[0] == places[2] and all(place % 16 == 0 for place in places)
    array = blob.array()
    assert array.dtype == np.float32 and array[:3].tolist() == [1, 2, 3] and array[places[1]] == 4
