"""numba's compiler with the engine's settings, and what a compiled kernel is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba

from stdeploy.graph.weight import Array

F = TypeVar("F", bound=Callable[..., Any])


def jit(function: F) -> F:
    """`function` compiled when first called: without the GIL, and without any reordering of float arithmetic."""
    return cast(F, numba.njit(nogil=True, error_model="numpy")(function))


class Memory(NamedTuple):
    """One thread's view of a session: the same arena in four types, the file's weights, counters.

    A program is given arrays, its kernels the arrays' addresses (scalars.pointer).

    `floats` float32, `ints` int32, `words` uint64 and `halves` uint16 are the arena; `weights` float32 and
    `indices` int32 are the file's; `control` int64: barrier, then a work counter per stage; `synops` int64
    [stages x steps]; `scratch`: where this thread's own room begins in floats and ints; `step`: index of the first step.
    """

    floats: Array
    ints: Array
    words: Array
    halves: Array
    weights: Array
    indices: Array
    control: Array
    synops: Array
    scratch: int
    steps: int
    step: int
    counting: bool
