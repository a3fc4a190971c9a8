"""What `export` may be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from stdeploy.errors import UserError

ATTENTION, FORMATS = ("auto", "process", "units"), ("processes", "netx")


@dataclass(frozen=True)
class Options:
    """`attention`: one custom process per product, stock units, or units where they stay within `max_units`.

    `format`: a folder of core processes, or lava-dl's netx file. `fixed`: Lava's fixed-point rules; a real input then is round(x / input_unit), clipped to +-input_limit.
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
        given = dict(options or {})
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise UserError(
                f"the Lava target has no option {', '.join(unknown)}", hint=f"known: {', '.join(known)}"
            )
        for name, choices in (("attention", ATTENTION), ("format", FORMATS)):
            if given.get(name, choices[0]) not in choices:
                raise UserError(f"{name} is {given[name]!r}", hint=f"one of {', '.join(choices)}")
        if given.get("format") == "netx" and set(given) - {"format"}:
            others = ", ".join(sorted(set(given) - {"format"}))
            raise UserError(f"{others} has no meaning in a netx file", hint="leave it out")
        if not isinstance(given.get("fixed", False), bool):
            raise UserError(f"fixed is true or false, not {given['fixed']!r}")
        unit = given.get("input_unit", 1.0)
        if isinstance(unit, bool) or not isinstance(unit, int | float) or not unit > 0:
            raise UserError(f"input_unit is a positive number, not {unit!r}")
        for name in ("max_units", "max_synapses", "input_limit"):
            value = given.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is a positive integer, not {value!r}")
        return cls(**given)
