"""What the NIR target can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from stdeploy.errors import UserError
from stdeploy.exporters.nir.dialect import DEFAULT


@dataclass(frozen=True)
class Options:
    """`dialect`: its name, or a TOML file (stdeploy.exporters.nir.dialect). `pairs_per_node`: most (q dim, v dim)
    pairs in an attention stack (None: by cost). `max_neurons`, `max_weights`, `max_nodes`: budget of one attention
    product, beyond which it is refused."""

    dialect: str = DEFAULT
    pairs_per_node: int | None = None
    max_neurons: int = 32_000_000
    max_weights: int = 128_000_000
    max_nodes: int = 400

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None) -> Options:
        """UserError where an option is unknown, not a positive integer, or names no dialect."""
        known = [f.name for f in fields(cls)]
        given = dict(options or {})
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise UserError(
                f"the NIR target has no option {', '.join(unknown)}", hint=f"known: {', '.join(known)}"
            )
        dialect = given.get("dialect", DEFAULT)
        if not isinstance(dialect, str):
            raise UserError(f"dialect is a name or a path, not {dialect!r}")
        for name, value in given.items():
            if name == "dialect":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is a positive integer, not {value!r}")
        return cls(**given)
