"""Where boxes go: rows by longest path, order within a row by barycentres, links around boxes.

The layered method of Sugiyama, Tagawa and Toda (IEEE Trans. SMC 11(2), 1981). A link over several rows passes
each of them in a slot of its own, so that no line crosses a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

COLUMN_GAP, ROW_GAP, LANE = 28.0, 46.0, 14.0
"""Pixels between boxes of a row, between rows, and the width of a passing link."""

_SWEEPS = 8


@dataclass(frozen=True, slots=True)
class Box:
    """Left upper corner and size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, eq=False)
class Layout:
    """Boxes and, by link, points (x, y) from box to box: the line is straight through a row, curved between rows."""

    boxes: list[Box]
    routes: list[list[tuple[float, float]]]
    width: float
    height: float


@dataclass(slots=True)
class _Slot:
    """A box, or (`box` None) a link that passes the row."""

    width: float
    height: float
    box: int | None
    x: float = 0.0


def layout(sizes: Sequence[tuple[float, float]], links: Sequence[tuple[int, int]]) -> Layout:
    """Place boxes of the given sizes (width, height); links go from a lower to a higher index."""
    rows = _rows(len(sizes), links)
    slots: list[list[_Slot]] = [[] for _ in range(max(rows, default=0) + 1)]
    boxes = [_Slot(w, h, i) for i, (w, h) in enumerate(sizes)]
    for slot, row in zip(boxes, rows, strict=True):
        slots[row].append(slot)
    chains = [_chain(boxes, rows, slots, source, target) for source, target in links]
    _order(slots, [pair for chain in chains for pair in pairwise(chain)])
    tops, height = _tops(slots)
    width = _columns(slots)
    placed = [Box(s.x, tops[row], s.width, s.height) for s, row in zip(boxes, rows, strict=True)]
    ends = _ends(boxes, chains)
    routes = [_route(chain, end, rows, slots, tops) for chain, end in zip(chains, ends, strict=True)]
    return Layout(placed, routes, width, height)


def _rows(count: int, links: Sequence[tuple[int, int]]) -> list[int]:
    rows = [0] * count
    for source, target in sorted(links):
        rows[target] = max(rows[target], rows[source] + 1)
    return rows


def _chain(
    boxes: list[_Slot], rows: list[int], slots: list[list[_Slot]], source: int, target: int
) -> list[_Slot]:
    """The link's slots from box to box, a lane in every row between."""
    chain = [boxes[source]]
    for row in range(rows[source] + 1, rows[target]):
        lane = _Slot(LANE, 0.0, None)
        slots[row].append(lane)
        chain.append(lane)
    return [*chain, boxes[target]]


def _order(slots: list[list[_Slot]], pairs: list[tuple[_Slot, _Slot]]) -> None:
    """Sort each row by the mean place of its neighbours, downwards and upwards in turn."""
    above: dict[int, list[_Slot]] = {}
    below: dict[int, list[_Slot]] = {}
    for high, low in pairs:
        above.setdefault(id(low), []).append(high)
        below.setdefault(id(high), []).append(low)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        near = above if down else below
        for row in slots if down else reversed(slots):
            place = {id(s): i / max(1, len(r) - 1) for r in slots for i, s in enumerate(r)}
            keys = {
                id(s): sum(place[id(n)] for n in near[id(s)]) / len(near[id(s)])
                if id(s) in near
                else place[id(s)]
                for s in row
            }
            row.sort(key=lambda s: keys[id(s)])


def _tops(slots: list[list[_Slot]]) -> tuple[list[float], float]:
    tops, y = [], 0.0
    for row in slots:
        tops.append(y)
        y += max((s.height for s in row), default=0.0) + ROW_GAP
    return tops, max(0.0, y - ROW_GAP)


def _columns(slots: list[list[_Slot]]) -> float:
    """x of every slot, rows centred below each other; the whole width."""
    widths = [sum(s.width for s in row) + COLUMN_GAP * (len(row) - 1) for row in slots]
    whole = max(widths, default=0.0)
    for row, width in zip(slots, widths, strict=True):
        x = (whole - width) / 2
        for slot in row:
            slot.x = x
            x += slot.width + COLUMN_GAP
    return whole


def _ends(boxes: list[_Slot], chains: list[list[_Slot]]) -> list[tuple[float, float]]:
    """Where each link leaves its source and enters its target, spread over the boxes' sides in order."""
    leave: dict[int, list[tuple[float, int]]] = {}
    enter: dict[int, list[tuple[float, int]]] = {}
    for i, chain in enumerate(chains):
        leave.setdefault(id(chain[0]), []).append((chain[1].x + chain[1].width / 2, i))
        enter.setdefault(id(chain[-1]), []).append((chain[-2].x + chain[-2].width / 2, i))
    out: list[list[float]] = [[0.0, 0.0] for _ in chains]
    for slot in boxes:
        for side, found in ((0, leave.get(id(slot), [])), (1, enter.get(id(slot), []))):
            for k, (_, i) in enumerate(sorted(found)):
                out[i][side] = slot.x + slot.width * (k + 1) / (len(found) + 1)
    return [(a, b) for a, b in out]


def _route(
    chain: list[_Slot],
    ends: tuple[float, float],
    rows: list[int],
    slots: list[list[_Slot]],
    tops: list[float],
) -> list[tuple[float, float]]:
    first, last = chain[0], chain[-1]
    row = rows[first.box or 0]
    points = [(ends[0], tops[row] + first.height)]
    bottom = tops[row] + max(s.height for s in slots[row])
    if bottom > points[0][1]:
        points.append((ends[0], bottom))  # a lower box of the same row may stand in the way
    for lane in chain[1:-1]:
        row += 1
        x = lane.x + lane.width / 2
        points += [(x, tops[row]), (x, tops[row] + max(s.height for s in slots[row]))]
    return [*points, (ends[1], tops[rows[last.box or 0]])]
