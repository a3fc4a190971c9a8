"""Compiled code that later processes find again, and what becomes of it where files cannot be kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numba
from numba.core.caching import FunctionCache

from stdeploy.errors import StdeployWarning

_ANEW = "the event engine's kernels are compiled anew in every process, up to a minute each time"
_OTHER = "name another folder with NUMBA_CACHE_DIR"


def compiled(function: Callable[..., Any], **options: Any) -> Any:
    """`function` compiled by numba: once a machine where files of it can be kept, else once a process.

    StdeployWarning, once, where they cannot be kept or read; the function then runs all the same.
    """
    program: Any = numba.njit(**options)(function)
    try:
        program._cache = Cache(function)  # as Dispatcher.enable_caching does
    except RuntimeError as error:  # numba finds no folder that it may write
        warnings.warn(f"{_ANEW}: {error}; {_OTHER}", StdeployWarning, stacklevel=2)
    return program


class Cache(FunctionCache):  # type: ignore[misc]
    """numba's; where a file of it fails, it does no more, instead of failing what it was to make faster.

    Damaged files are written anew.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except OSError as error:
            self._give_up(error)
        except Exception:  # noqa: BLE001 - a damaged pickle may raise anything
            self._empty()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            self._give_up(error)

    def _empty(self) -> None:
        try:
            self.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.disable()
        reason = error.strerror or repr(error)
        warnings.warn(
            f"{_ANEW}: numba's cache {self.cache_path} cannot be used ({reason}); {_OTHER}",
            StdeployWarning,
            stacklevel=2,
        )
