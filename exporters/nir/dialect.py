"""Dialects as data: what of NIR a file may use, why, and which readers were shown to run it.

A dialect is a TOML file: `name`, `version`, `description`; `[[rules]]` with `key`, `value`, `reason`, where the
keys are those of `Rules`; `[[readers]]` that it was proven in, with `name`, `version`, `date`; `[[refused]]`
readers that it fails in, with `name`, `reason`. A rule that a file does not give is the portable one.
"""

from __future__ import annotations

import datetime
import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from stdeploy.errors import UserError

DEFAULT = "portable"


@dataclass(frozen=True)
class Rules:
    """What the exporter does.

    `groups`: grouped Conv2d; `square_kernels`: others are embedded in zeros; `threshold_node`: node of a memoryless
    unit, `lif` or `nir.Threshold`; `native_tau`: one LIF with an array of tau; `nextafter`: thresholds one float
    below; `dt`: seconds per step; `type_check`: whether nir's own check passes.
    """

    groups: bool = False
    square_kernels: bool = True
    threshold_node: str = "lif"
    native_tau: bool = False
    nextafter: bool = True
    dt: float = 1e-4
    type_check: bool = True


@dataclass(frozen=True)
class Rule:
    """A rule as the file states it."""

    key: str
    value: bool | str | float
    reason: str


@dataclass(frozen=True)
class Reader:
    """A reader that a dialect was proven in."""

    name: str
    version: str
    date: str


@dataclass(frozen=True)
class Dialect:
    """One dialect; `refused` maps readers that it fails in to the reason."""

    name: str
    version: int
    description: str
    rules: tuple[Rule, ...]
    readers: tuple[Reader, ...]
    refused: Mapping[str, str]

    @property
    def switches(self) -> Rules:
        """The rules as the exporter reads them."""
        return Rules(**{rule.key: rule.value for rule in self.rules})  # type: ignore[arg-type]

    def require(self, reader: str) -> None:
        """UserError where the dialect was not proven in `reader`, with the reason."""
        require_proven(self.name, [r.name for r in self.readers], self.refused, reader)

    def text(self) -> str:
        """Everything, for a terminal."""
        lines = [f"{self.name} {self.version}: {self.description}"]
        lines += [f"  {rule.key} = {rule.value}: {rule.reason}" for rule in self.rules]
        lines += [f"  proven in {r.name} {r.version}, {r.date}" for r in self.readers]
        lines += [f"  not in {name}: {reason}" for name, reason in self.refused.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_dialect(name: str) -> Dialect:
    """A built-in dialect by name, or a TOML file by path; UserError that says what is wrong with it."""
    built_in = _folder() / f"{name}.toml"
    if name.endswith(".toml"):
        return _parse(Path(name))
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1)
        known = f"known: {', '.join(names())}, or a path to a .toml file"
        raise UserError(
            f"unknown NIR dialect {name!r}", hint=f"did you mean {close[0]}? {known}" if close else known
        )
    with resources.as_file(built_in) as path:
        return _parse(path)


def require_proven(dialect: str, proven: Sequence[str], refused: Mapping[str, str], reader: str) -> None:
    """UserError where `reader` is not among the `proven` ones, with the reason in `refused`."""
    if reader in proven:
        return
    reason = refused.get(reader, "the dialect was not proven in it")
    use = f"use {', '.join(proven)}" if proven else "the dialect names no reader"
    raise UserError(
        f"{reader} does not run the dialect {dialect}: {reason}",
        hint=f"{use}, or export with another --dialect",
    )


def names() -> list[str]:
    """The built-in dialects, the default first."""
    found = sorted(item.name.removesuffix(".toml") for item in _folder().iterdir() if ".toml" in item.name)
    return sorted(found, key=lambda name: name != DEFAULT)


def _folder() -> Any:
    return resources.files("stdeploy.exporters.nir") / "dialects"


def _parse(path: Path) -> Dialect:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the dialect {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the dialect {path} is not valid TOML: {error}") from error
    try:
        return _dialect(data)
    except ValueError as error:
        raise UserError(
            f"the dialect {path}: {error}", hint="stdeploy targets --dialects prints those that work"
        ) from error


def _dialect(data: Mapping[str, Any]) -> Dialect:
    _keys("the file", data, {"name": str, "version": int}, {"description": str, **_TABLES})
    rules = tuple(_rule(item) for item in _tables(data, "rules"))
    keys = [rule.key for rule in rules]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"rules say {', '.join(twice)} twice")
    readers = []
    for item in _tables(data, "readers"):
        _keys("a reader", item, {"name": str, "version": str, "date": datetime.date}, {})
        readers.append(Reader(item["name"], item["version"], item["date"].isoformat()))
    refused = {}
    for item in _tables(data, "refused"):
        _keys("a refused reader", item, {"name": str, "reason": str}, {})
        refused[item["name"]] = item["reason"]
    dialect = Dialect(
        data["name"], data["version"], data.get("description", ""), rules, tuple(readers), refused
    )
    switches = dialect.switches
    if switches.type_check and (switches.groups or not switches.square_kernels):
        raise ValueError("nir's type check fails on grouped or oblong kernels: it needs type_check = false")
    return dialect


_TABLES: dict[str, type] = {"rules": list, "readers": list, "refused": list}


def _tables(data: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = data.get(key, [])
    if not all(isinstance(item, dict) for item in found):
        raise ValueError(f"{key} are tables: write [[{key}]]")
    return list(found)


def _keys(where: str, item: Mapping[str, Any], needed: dict[str, type], optional: dict[str, type]) -> None:
    known = {**needed, **optional}
    for key, value in item.items():
        if key not in known:
            raise ValueError(f"{where} has an unknown key {key!r} (known: {', '.join(known)})")
        if not isinstance(value, known[key]) or (isinstance(value, bool) and known[key] is int):
            raise ValueError(f"{where}: {key} is no {known[key].__name__}: {value!r}")
    missing = [key for key in needed if key not in item]
    if missing:
        raise ValueError(f"{where} has no {', '.join(missing)}")


def _rule(item: dict[str, Any]) -> Rule:
    _keys("a rule", item, {"key": str, "value": object, "reason": str}, {})
    key: str = item["key"]
    value: Any = item["value"]
    defaults: dict[str, Any] = {f.name: f.default for f in fields(Rules)}
    if key not in defaults:
        raise ValueError(f"there is no rule {key!r} (known: {', '.join(defaults)})")
    if key == "dt" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(defaults[key]):
        raise ValueError(f"{key} is a {type(defaults[key]).__name__}, not {value!r}")
    if key == "threshold_node" and value not in ("lif", "nir.Threshold"):
        raise ValueError(f"threshold_node is 'lif' or 'nir.Threshold', not {value!r}")
    if key == "dt" and not (math.isfinite(value) and value > 0):
        raise ValueError(f"dt is a positive time in seconds, not {value!r}")
    return Rule(key, value, item["reason"])
