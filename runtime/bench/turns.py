"""Taking turns: every round each candidate makes a few calls, in an order shuffled anew."""

from __future__ import annotations

import gc
import itertools
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: seconds of each timed call, and when the turn ran (`time.perf_counter`, one clock per machine)."""

    seconds: tuple[float, ...]
    start: float
    end: float


class Player(Protocol):
    """What takes turns: a callable in this process (`Timed`) or a worker process."""

    def turn(self, calls: int) -> Turn:
        """Make one untimed call, which refills the caches, then `calls` timed ones. PlayerError if it cannot."""
        ...


class PlayerError(Exception):
    """A candidate that cannot go on; the text says why."""


_NAP = 0.005
_AWAKE = 0.2
"""Share of one core from which on a nap shows that threads still compute."""


def rest(limit: float = 0.5) -> None:
    """Wait, at most `limit` seconds, until this process computes no more.

    Thread pools spin for the next call before they sleep (onnxruntime 1.31: 40 ms); the next player would
    share its cores with them.
    """
    until = time.perf_counter() + limit
    while time.perf_counter() < until:
        wall, busy = time.perf_counter(), time.process_time()
        time.sleep(_NAP)
        if time.process_time() - busy < _AWAKE * (time.perf_counter() - wall):
            return


@dataclass(frozen=True, slots=True)
class Timed:
    """A callable of this process as a player; it has to return only when its work is done."""

    call: Callable[[], Any]

    def turn(self, calls: int) -> Turn:
        """See `Player`. The garbage collector is off meanwhile; what the calls leave spinning is waited for."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            start = time.perf_counter()
            self.call()
            seconds = []
            for _ in range(calls):
                before = time.perf_counter()
                self.call()
                seconds.append(time.perf_counter() - before)
            end = time.perf_counter()
        finally:
            if collecting:
                gc.enable()
        rest()
        return Turn(tuple(seconds), start, end)


@dataclass
class Timeline:
    """The turns of one run by candidate; `failed` says why a candidate dropped out (its turns are kept)."""

    turns: dict[str, list[Turn]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def rounds(self, name: str) -> list[tuple[float, ...]]:
        """Seconds by round, as `stdeploy.runtime.bench.statistics` takes them."""
        return [turn.seconds for turn in self.turns[name]]

    def order(self) -> list[str]:
        """Candidates in the order in which their turns really started."""
        started = [(turn.start, name) for name, turns in self.turns.items() for turn in turns]
        return [name for _, name in sorted(started)]

    def overlaps(self) -> list[tuple[str, str]]:
        """Pairs of candidates of which one started before the other's turn had ended; empty as it should be."""
        spans = sorted((turn.start, turn.end, name) for name, turns in self.turns.items() for turn in turns)
        return [(a[2], b[2]) for a, b in itertools.pairwise(spans) if b[0] < a[1]]


def take_turns(
    players: Mapping[str, Player],
    rounds: int,
    calls: int | Mapping[str, int] = 1,
    *,
    seed: int = 0,
) -> Timeline:
    """Let every player have `rounds` turns of `calls` timed calls, each round in an order shuffled by `seed`.

    One player computes at a time. A player that raises PlayerError drops out and the rest go on.
    """
    order = random.Random(seed)
    line = Timeline({name: [] for name in players})
    for _ in range(rounds):
        for name in order.sample(list(players), len(players)):
            if name in line.failed:
                continue
            try:
                turn = players[name].turn(calls if isinstance(calls, int) else calls[name])
            except PlayerError as error:
                line.failed[name] = str(error)
                continue
            line.turns[name].append(turn)
    return line
