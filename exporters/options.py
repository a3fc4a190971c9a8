"""What every target checks of the options it is given: names, flags, counts and choices; UserError that says which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from stdeploy.errors import UserError


def known_options(target: str, kind: Any, options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The given options, all of them fields of the dataclass `kind`."""
    given = dict(options or {})
    known = [f.name for f in fields(kind)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise UserError(
            f"the {target} target has no option {', '.join(unknown)}", hint=f"known: {', '.join(known)}"
        )
    return given


def require_flags(given: Mapping[str, Any], *names: str) -> None:
    """Those of `names` that are given are true or false."""
    for name in names:
        if not isinstance(given.get(name, False), bool):
            raise UserError(f"{name} is true or false, not {given[name]!r}")


def require_counts(given: Mapping[str, Any], *names: str) -> None:
    """Those of `names` that are given are positive integers."""
    for name in names:
        value = given.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} is a positive integer, not {value!r}")


def require_choice(given: Mapping[str, Any], name: str, choices: Sequence[str]) -> None:
    """Option `name` is one of `choices`, where it is given."""
    if given.get(name, choices[0]) not in choices:
        raise UserError(f"{name} {given[name]!r} is not supported", hint=f"known: {', '.join(choices)}")
