"""What `export` may be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stdeploy.errors import UserError
from stdeploy.exporters.options import known_options, require_choice, require_counts, require_flags


@dataclass(frozen=True)
class Options:
    """`attention`: one custom process per product, stock units, or units where they stay within `max_units`.

    `format`: a folder of core processes, or lava-dl's netx file. `fixed`: Lava's fixed-point rules; a real input then
    is round(x / input_unit), clipped to +-input_limit.
    """

    attention: Literal["auto", "process", "units"] = "auto"
    format: Literal["processes", "netx"] = "processes"
    max_units: int = 20_000
    max_synapses: int = 100_000_000
    fixed: bool = False
    input_unit: float = 1 / 64
    input_limit: int = 1023

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None) -> Options:
        """From a mapping; UserError for an unknown name or a wrong value."""
        given = known_options("Lava", cls, options)
        require_choice(given, "attention", ("auto", "process", "units"))
        require_choice(given, "format", ("processes", "netx"))
        if given.get("format") == "netx" and set(given) - {"format"}:
            others = ", ".join(sorted(set(given) - {"format"}))
            raise UserError(f"{others} has no meaning in a netx file", hint="leave it out")
        require_flags(given, "fixed")
        require_counts(given, "max_units", "max_synapses", "input_limit")
        unit = given.get("input_unit", 1.0)
        if isinstance(unit, bool) or not isinstance(unit, int | float) or not unit > 0:
            raise UserError(f"input_unit is a positive number, not {unit!r}")
        return cls(**given)
