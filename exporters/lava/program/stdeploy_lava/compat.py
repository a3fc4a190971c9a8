"""What lava-nc 0.10.0 needs on Python 3.11 and later; import this before lava. No installed file is changed.

Its var_model.py has dataclass fields whose default is a dataclass instance without a hash, which dataclasses refuses
since Python 3.11. While that one module is imported, its dataclasses are made hashable.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

_MODULE = "lava.magma.compiler.var_model"


def _import_var_model() -> None:
    original = dataclasses.dataclass

    def hashable(cls: type | None = None, /, **options: Any) -> Any:
        def wrap(target: type) -> type:
            if target.__module__ == _MODULE:
                options.setdefault("unsafe_hash", True)
            decorate: Callable[[type], type] = original(**options)
            return decorate(target)

        return wrap if cls is None else wrap(cls)

    dataclasses.dataclass = hashable
    try:
        __import__(_MODULE)
    finally:
        dataclasses.dataclass = original


if sys.version_info >= (3, 11) and _MODULE not in sys.modules:
    _import_var_model()
