"""What the NIR target can be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stdeploy.errors import UserError
from stdeploy.exporters.nir.dialect import DEFAULT
from stdeploy.exporters.options import known_options, require_counts


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
        given = known_options("NIR", cls, options)
        dialect = given.get("dialect", DEFAULT)
        if not isinstance(dialect, str):
            raise UserError(f"dialect is a name or a path, not {dialect!r}")
        require_counts(given, *(set(given) - {"dialect"}))
        return cls(**given)
