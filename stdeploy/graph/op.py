"""What every operator of the catalogue is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stdeploy.graph.value import Value


@dataclass(frozen=True, eq=False)
class Op:
    """Base of all operators: `arity` inputs (-1: one or more), one output."""

    arity: ClassVar[int] = 1

    def infer(self, inputs: list[Value], steps: int) -> Value:
        """Value of the output; ValueError where the inputs do not fit."""
        raise NotImplementedError
