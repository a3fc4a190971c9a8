"""Chips as data: published limits, each with its source; what is not published is "unknown".

A chip is a TOML file: `title, maker, about, checked`; `not_checked`, rules of the chip that no limit here expresses;
`[sources.NAME]` with `citation, url`; and under `[limits]` every name of `LIMITS`, each either the string "unknown" or
a table `value, unit, means, source, quote` (`precision` where the printed number is rounded or disputed). A limit
per core may be a list, one number for each core, where cores differ.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from stdeploy.errors import UserError

BYTES = {"B": 1, "kB": 1000, "KiB": 1024, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}

LIMITS: dict[str, dict[str, int]] = {
    "cores_per_chip": {"cores": 1},
    "neurons_per_core": {"neurons": 1},
    "neurons_per_chip": {"neurons": 1},
    "synapses_per_core": {"synapses": 1},
    "synapses_per_chip": {"synapses": 1},
    "weights_per_core": {"weights": 1},
    "weights_per_chip": {"weights": 1},
    "memory_per_core": BYTES,
    "memory_per_chip": BYTES,
    "populations_per_core": {"populations": 1},
    "fan_in": {"synapses": 1},
    "fan_out": {"synapses": 1},
    "destinations": {"populations": 1},
    "weight_bits": {"bits": 1},
    "neuron_kinds": {"kinds": 1},
}
"""Every limit with its units and what one of them is in the first."""

KINDS = (
    "programmable",
    "threshold",
    "lif-hard-reset",
    "lif-soft-reset",
    "if-hard-reset",
    "if-soft-reset",
    "cuba-lif-hard-reset",
    "cuba-lif-soft-reset",
)
"""Neuron models; "programmable" stands for all."""

UNKNOWN = "unknown"
_TEXTS = ("title", "maker", "about", "checked")


@dataclass(frozen=True)
class Limit:
    """One published limit: as printed, in base units (`cores`: where they differ), and where it is from."""

    value: int | tuple[int, ...] | tuple[str, ...]
    unit: str
    means: str
    source: str
    quote: str
    precision: str = ""

    @property
    def number(self) -> int:
        """The largest that one core (or the chip) offers."""
        return max(self.numbers)

    @property
    def numbers(self) -> tuple[int, ...]:
        """As a tuple, one entry unless cores differ; TypeError for kinds."""
        found = self.value if isinstance(self.value, tuple) else (self.value,)
        if not all(isinstance(n, int) for n in found):
            raise TypeError("kinds are no number")
        return tuple(int(n) for n in found)


@dataclass(frozen=True)
class Chip:
    """A chip's limits by name; None where nothing is published."""

    name: str
    title: str
    maker: str
    about: str
    checked: str
    not_checked: tuple[str, ...]
    sources: Mapping[str, Mapping[str, str]]
    limits: Mapping[str, Limit | None]

    @property
    def unknown(self) -> list[str]:
        """Limits without a public number."""
        return [name for name, limit in self.limits.items() if limit is None]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def shipped() -> dict[str, Traversable]:
    """Shipped chip files by name."""
    folder = resources.files("stdeploy.chips") / "profiles"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): f for f in files}


def load_chip(name: str) -> Chip:
    """A shipped chip by name, or a .toml file by path; UserError that names the file and the key that is wrong."""
    known = shipped()
    path = Path(name)
    if name in known:
        text, label = known[name].read_text(encoding="utf-8"), name
    elif path.suffix == ".toml" or path.is_file():
        text, label = _read(path), path.stem
    else:
        raise UserError(
            f"there is no chip {name!r}", hint=f"shipped: {', '.join(known)}; or the path of a .toml file"
        )
    try:
        return _chip(label, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{name} is not TOML: {error}") from error
    except _Wrong as wrong:
        raise UserError(f"{name}: {wrong}", hint="stdeploy/chips/profiles holds examples") from wrong


class _Wrong(Exception):
    """What is wrong with a profile, in words."""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _chip(name: str, data: dict[str, Any]) -> Chip:
    _keys("the file", data, (*_TEXTS, "limits"), ("not_checked", "sources"))
    texts = {key: _text(key, data[key]) for key in _TEXTS}
    sources = {str(k): _source(k, v) for k, v in _table("sources", data.get("sources", {})).items()}
    limits = _table("limits", data["limits"])
    _keys("[limits]", limits, tuple(LIMITS))
    unchecked = data.get("not_checked", [])
    if not isinstance(unchecked, list) or not all(isinstance(item, str) for item in unchecked):
        raise _Wrong("not_checked is a list of sentences")
    found = {key: _limit(key, limits[key], sources) for key in LIMITS}
    return Chip(name, **texts, not_checked=tuple(unchecked), sources=sources, limits=found)


def _limit(name: str, entry: Any, sources: Mapping[str, Any]) -> Limit | None:
    if entry == UNKNOWN:
        return None
    where = f"limits.{name}"
    table = _table(where, entry)
    _keys(where, table, ("value", "unit", "means", "source", "quote"), ("precision",))
    texts = {key: _text(f"{where}.{key}", table[key]) for key in table if key != "value"}
    if texts["unit"] not in LIMITS[name]:
        raise _Wrong(f"{where}.unit {texts['unit']!r} is not one of {', '.join(LIMITS[name])}")
    if texts["source"] not in sources:
        raise _Wrong(f"{where}.source {texts['source']!r} is not in [sources]")
    return Limit(_value(where, name, table["value"], LIMITS[name][texts["unit"]]), **texts)


def _value(where: str, name: str, value: Any, factor: int) -> int | tuple[int, ...] | tuple[str, ...]:
    if name == "neuron_kinds":
        if not isinstance(value, list) or not value or not all(kind in KINDS for kind in value):
            raise _Wrong(f"{where}.value is a list of {', '.join(KINDS)}")
        return tuple(value)
    several = isinstance(value, list) and name.endswith("_per_core")
    numbers = value if several else [value]
    if not numbers or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers):
        raise _Wrong(f"{where}.value {value!r} is not a positive integer{_or_list(name)}")
    scaled = tuple(n * factor for n in numbers)
    return scaled if several else scaled[0]


def _or_list(name: str) -> str:
    return ", or a list of them, one per core" if name.endswith("_per_core") else ""


def _source(name: str, entry: Any) -> Mapping[str, str]:
    table = _table(f"sources.{name}", entry)
    _keys(f"sources.{name}", table, ("citation", "url"))
    return {key: _text(f"sources.{name}.{key}", value) for key, value in table.items()}


def _table(where: str, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise _Wrong(f"{where} is {entry!r}, not a table{' (or unknown)' if 'limits.' in where else ''}")
    return entry


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Wrong(f"{where} has to be a text, not {value!r}")
    return value


def _keys(
    where: str, table: Mapping[str, Any], needed: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    missing = [key for key in needed if key not in table]
    extra = [key for key in table if key not in (*needed, *optional)]
    if missing:
        raise _Wrong(f"{where} lacks {', '.join(missing)}")
    if extra:
        raise _Wrong(f"{where} has {', '.join(extra)}, which nothing reads")
