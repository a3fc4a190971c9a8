"""What `export` may be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from stdeploy.errors import UserError

ATTENTION = ("auto", "process", "units")


@dataclass(frozen=True)
class Options:
    """`attention`: one custom process per product, stock units, or units where they stay within `max_units`."""

    attention: Literal["auto", "process", "units"] = "auto"
    max_units: int = 20_000
    max_synapses: int = 100_000_000

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
        if given.get("attention", "auto") not in ATTENTION:
            raise UserError(f"attention is {given['attention']!r}", hint=f"one of {', '.join(ATTENTION)}")
        for name in ("max_units", "max_synapses"):
            value = given.get(name, 1)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is a positive integer, not {value!r}")
        return cls(**given)
