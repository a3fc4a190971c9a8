"""Hardware profiles: energies of operations as data, each with its source; nothing without one is shipped.

A profile is a TOML file: `title, kind, node, voltage, status, source, url, solidity, checked`, and
`[constants.NAME]` tables of `value, unit, includes`. A constant may name a `status`, `source`, `url` of its own.

| kind | constants |
|---|---|
| arithmetic | `add`, `mult` (a MAC is both); `sram_8k`, `sram_32k`, `sram_1m`, `dram`; top level `bits` of a word |
| chip | `synop`; optionally `neuron_active` with `neuron_inactive`, and `spike`; top level `scope` |
| bound | `power` over `peak`: the least a processor spends on an operation |
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from stdeploy.energy.tables import Cell, Column, Table
from stdeploy.errors import UserError

ENERGY = {"fJ": 1e-15, "pJ": 1e-12, "nJ": 1e-9, "uJ": 1e-6}
"""Unit of energy to joules."""
ACCESS = {
    f"{unit}/{size}": factor / count
    for unit, factor in ENERGY.items()
    for size, count in (("B", 1), ("bit", 1 / 8), ("32b", 4), ("64b", 8))
}
"""Unit of memory traffic to joules per byte."""
POWER = {"mW": 1e-3, "W": 1.0}
RATE = {"Gops/s": 1e9, "Tops/s": 1e12}

UNITS: dict[str, dict[str, dict[str, float]]] = {
    "arithmetic": {
        "add": ENERGY,
        "mult": ENERGY,
        "sram_8k": ACCESS,
        "sram_32k": ACCESS,
        "sram_1m": ACCESS,
        "dram": ACCESS,
    },
    "chip": {"synop": ENERGY, "neuron_active": ENERGY, "neuron_inactive": ENERGY, "spike": ENERGY},
    "bound": {"power": POWER, "peak": RATE},
}
"""Constants of a kind and the units each may have."""
REQUIRED = {
    "arithmetic": ("add", "mult", "sram_8k", "sram_32k", "sram_1m", "dram"),
    "chip": ("synop",),
    "bound": ("power", "peak"),
}
EXTRA = {"arithmetic": "bits", "chip": "scope", "bound": None}
"""The top-level key that only this kind has."""
SCOPES = ("whole chip", "per term")
"""Whether a chip's figure holds everything the chip spends, or one term of it."""
STATUS = ("measured", "simulated", "estimate", "spec", "user-supplied")
TEXTS = ("title", "node", "voltage", "status", "source", "url", "solidity", "checked")
USER = "user-supplied"
LARGEST = 1e15
"""Above any price in its unit."""


@dataclass(frozen=True)
class Constant:
    """One energy (or power, or rate): as printed in the source, and in SI units."""

    value: float
    unit: str
    si: float
    includes: str
    status: str
    source: str
    url: str


@dataclass(frozen=True)
class Profile:
    """What operations cost on one device at one operating point; joules, watts, operations a second."""

    name: str
    title: str
    kind: str
    node: str
    voltage: str
    status: str
    source: str
    url: str
    solidity: str
    checked: str
    constants: Mapping[str, Constant]
    bits: int | None = None
    scope: str | None = None

    def joules(self, constant: str) -> float:
        """Energy of one `constant`; KeyError where the profile has none."""
        return self.constants[constant].si

    @property
    def ac(self) -> float:
        """Joules of one accumulate: an addition, a chip's synaptic operation, one operation of a bound."""
        if self.kind == "bound":
            return self.joules("power") / self.joules("peak")
        return self.joules("add" if self.kind == "arithmetic" else "synop")

    @property
    def mac(self) -> float:
        """Joules of one multiply-accumulate; a chip has no other price than its synaptic operation."""
        if self.kind == "arithmetic":
            return self.joules("mult") + self.ac
        return 2 * self.ac if self.kind == "bound" else self.ac

    def to_dict(self) -> dict[str, Any]:
        """All that the report needs to stand alone."""
        return {
            **{name: getattr(self, name) for name in ("name", "kind", *TEXTS, "bits", "scope")},
            "constants": {name: vars(constant) for name, constant in self.constants.items()},
        }


def shipped() -> dict[str, Traversable]:
    """Shipped profile files by name."""
    folder = resources.files("stdeploy.energy") / "profiles"
    files = [f for f in folder.iterdir() if f.name.endswith(".toml") and f.name != "refused.toml"]
    return {f.name.removesuffix(".toml"): f for f in sorted(files, key=lambda f: f.name)}


def refused() -> dict[str, dict[str, str]]:
    """Chips that have no published figure, with the reason."""
    folder = resources.files("stdeploy.energy") / "profiles"
    return tomllib.loads((folder / "refused.toml").read_text())


def load_profiles(names: Iterable[str], synop_pj: float | None = None) -> list[Profile]:
    """Profiles by shipped name or path of a .toml file.

    `synop_pj` is the user's own energy per synaptic operation for a chip that has no published one.
    UserError names the file and the key that is wrong, or says why a chip is refused.
    """
    names = list(dict.fromkeys(names))
    unpublished = [name for name in names if name in refused()]
    if synop_pj is not None and len(unpublished) != 1:
        raise UserError(
            "--synop-pj is the price of one chip without a published figure",
            hint=f"name it: --profile {min(refused())}; for a chip of your own write a profile file",
        )
    return [_supplied(name, synop_pj) if name in refused() else load_profile(name) for name in names]


def load_profile(name: str) -> Profile:
    """One profile, shipped or from a file; UserError as load_profiles."""
    files = shipped()
    if name in files:
        return parse(name, files[name].read_text(), f"profile {name}")
    path = Path(name)
    if path.suffix != ".toml":
        known = ", ".join(files)
        raise UserError(f"no profile {name!r}", hint=f"there are {known}; or give a .toml file of your own")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text file"
        raise UserError(f"cannot read profile {path}: {reason}") from error
    return parse(path.stem, text, str(path), own=True)


def _supplied(name: str, synop_pj: float | None) -> Profile:
    entry = refused()[name]
    if synop_pj is None:
        hint = f"give your own value with --synop-pj, or a profile file: --profile my{name}.toml"
        if "proxy" in entry:
            hint += f"; {entry['proxy']}"
        raise UserError(f"{entry['title']} has no price: {entry['reason']}", hint=hint)
    if not (math.isfinite(synop_pj) and synop_pj > 0):
        raise UserError(f"--synop-pj {synop_pj} is not an energy", hint="picojoules, above zero")
    includes = "the user's value, given on the command line"
    synop = Constant(synop_pj, "pJ", synop_pj * 1e-12, includes, USER, USER, "")
    return Profile(
        name=name,
        title=f"{entry['title']}, user-supplied",
        kind="chip",
        node="not stated",
        voltage="not stated",
        status=USER,
        source=USER,
        url="",
        solidity=f"a value of the user's own; {entry['reason']}",
        checked="no",
        constants={"synop": synop},
        scope="per term",
    )


def profile_table(profiles: Sequence[Profile]) -> Table:
    """Prices with node, voltage, status, what one operation includes, source and what is to be thought of it."""
    columns = [
        Column(title, left=title not in ("value",))
        for title in (
            "profile",
            "constant",
            "value",
            "node",
            "voltage",
            "status",
            "includes",
            "source",
            "solidity",
            "checked",
        )
    ]
    rows: list[list[Cell]] = []
    for p in profiles:
        for name, c in p.constants.items():
            first = name == next(iter(p.constants))
            rows.append(
                [
                    p.name if first else "",
                    name,
                    f"{c.value:g} {c.unit}",
                    p.node if first else "",
                    p.voltage if first else "",
                    c.status if first or c.status != p.status else "",
                    c.includes,
                    (f"{c.source}; {c.url}" if c.url else c.source) if first or c.source != p.source else "",
                    p.solidity if first else "",
                    p.checked if first else "",
                ]
            )
    return Table("Prices", columns, rows)


def profile_text(profile: Profile) -> str:
    """The same of one profile, as a paragraph: a line each for what holds for all of its constants."""
    p = profile
    lines = [f"{p.name}  {p.title}"]
    for name, c in p.constants.items():
        of_own = f" [{c.source}; {c.url}]" if c.source != p.source else ""
        status = f" ({c.status})" if c.status != p.status else ""
        lines.append(f"  {name:<15} {f'{c.value:g} {c.unit}':>12}  {c.includes}{status}{of_own}")
    source = f"{p.source}; {p.url}" if p.url else p.source
    facts = {
        "process": f"{p.node}, voltage {p.voltage}",
        "status": p.status,
        "source": source,
        "solidity": p.solidity,
        "checked": p.checked,
    }
    return "\n".join([*lines, *(f"  {name:<15} {text}" for name, text in facts.items())])


def parse(name: str, text: str, where: str, *, own: bool = False) -> Profile:
    """Profile from its TOML text; every fault is a UserError that names `where` and the key.

    `own` marks a file of the user's: whatever it claims, its status says so.
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # both also of valid TOML: digits, depth
        raise UserError(f"{where} is not valid TOML: {error}") from error
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in UNITS:
        raise _fault(where, "kind", f"is {kind!r}", f"one of {', '.join(UNITS)}")
    extra = EXTRA[kind]
    allowed = {"kind", "constants", *TEXTS, *([extra] if extra else [])}
    for key in data:
        if key not in allowed:
            raise _fault(where, key, "is unknown", f"a {kind} profile has {', '.join(sorted(allowed))}")
    for key in TEXTS:
        if not isinstance(data.get(key), str) or not data[key].strip():
            raise _fault(where, key, "is missing", _TEXT_HINTS.get(key, "a text"))
    _check_status(where, "status", data["status"])
    if extra == "bits" and (type(data.get("bits")) is not int or data["bits"] not in (8, 16, 32, 64)):
        raise _fault(where, "bits", f"is {data.get('bits')!r}", "bits of a stored weight: 8, 16, 32 or 64")
    if extra == "scope" and data.get("scope") not in SCOPES:
        raise _fault(where, "scope", f"is {data.get('scope')!r}", f"one of: {', '.join(SCOPES)}")
    texts = {key: data[key] for key in TEXTS}
    if own:
        texts["status"] = f"{USER} ({data['status']})"
    return Profile(
        name=name,
        kind=kind,
        **texts,
        constants=_constants(data, kind, where),
        bits=data.get("bits"),
        scope=data.get("scope"),
    )


_TEXT_HINTS = {
    "source": "who published the figure, and where; a figure without a source is not used",
    "url": "DOI or address of the source",
    "status": f"one of {', '.join(STATUS)}",
}


def _constants(data: Mapping[str, Any], kind: str, where: str) -> dict[str, Constant]:
    tables = data.get("constants")
    units = UNITS[kind]
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise _fault(where, "constants", "is not a set of tables", f"[constants.{REQUIRED[kind][0]}]")
    for name in REQUIRED[kind]:
        if name not in tables:
            raise _fault(where, f"constants.{name}", "is missing", f"a {kind} profile needs it")
    if data.get("scope") == "whole chip" and len(tables) > 1:
        raise _fault(
            where, "constants", "price parts of a whole chip", 'its synop holds them: scope = "per term"?'
        )
    if ("neuron_active" in tables) != ("neuron_inactive" in tables):
        raise _fault(where, "constants", "price only one kind of neuron update", "give both, or neither")
    out = {}
    for name, table in tables.items():
        key = f"constants.{name}"
        if name not in units:
            raise _fault(where, key, "is unknown", f"a {kind} profile has {', '.join(units)}")
        out[name] = _constant(data, table, units[name], where, key)
    return out


def _constant(
    data: Mapping[str, Any], table: Mapping[str, Any], units: Mapping[str, float], where: str, key: str
) -> Constant:
    for field in table:
        if field not in ("value", "unit", "includes", "status", "source", "url"):
            raise _fault(where, f"{key}.{field}", "is unknown", "value, unit, includes, status, source, url")
    value, unit = table.get("value"), table.get("unit")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < LARGEST:
        raise _fault(where, f"{key}.value", f"is {value!r}", "a number")
    if value <= 0:
        raise _fault(where, f"{key}.value", f"is {value}", "above zero: nothing is free")
    if not isinstance(unit, str) or unit not in units:
        raise _fault(where, f"{key}.unit", f"is {unit!r}", f"one of {', '.join(units)}")
    if not isinstance(table.get("includes"), str) or not table["includes"].strip():
        raise _fault(where, f"{key}.includes", "is missing", "say what one operation includes")
    inherited = {name: table.get(name, data[name]) for name in ("status", "source", "url")}
    for name, text in inherited.items():
        if not isinstance(text, str) or not text.strip():
            raise _fault(where, f"{key}.{name}", "is empty", _TEXT_HINTS[name])
    _check_status(where, f"{key}.status", inherited["status"])
    return Constant(float(value), unit, value * units[unit], table["includes"], **inherited)


def _check_status(where: str, key: str, status: str) -> None:
    if status not in STATUS:
        raise _fault(where, key, f"is {status!r}", _TEXT_HINTS["status"])


def _fault(where: str, key: str, what: str, hint: str) -> UserError:
    return UserError(f"{where}: {key} {what}", hint=hint)
