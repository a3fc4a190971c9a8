"""The rooms of the house: who may import whom, what is packaged, what a cold start loads."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

MAY_IMPORT: dict[str, set[str]] = {
    "stdeploy.graph": {"stdeploy.errors", "stdeploy.files"},
    "stdeploy.passes": {"stdeploy.graph", "stdeploy.errors"},
    "stdeploy.trace": {"stdeploy.graph", "stdeploy.errors"},
    "stdeploy.models": {"stdeploy.errors"},
    "stdeploy.quantise": {
        "stdeploy.graph",
        "stdeploy.passes",
        "stdeploy.errors",
        "stdeploy.pairing",
        "stdeploy.verify",
    },
    "stdeploy.compress": {
        "stdeploy.models",
        "stdeploy.errors",
        "stdeploy.checkpoint",
        "stdeploy.files",
        "stdeploy.graph",
        "stdeploy.quantise",
        "stdeploy.trace",
    },
    "stdeploy.chips": {"stdeploy.graph", "stdeploy.errors", "stdeploy.runtime"},
    "stdeploy.drawing": {"stdeploy.graph", "stdeploy.files"},
    "stdeploy.energy": {"stdeploy.graph", "stdeploy.errors", "stdeploy.files", "stdeploy.pairing"},
    "stdeploy.exporters": {"stdeploy.graph", "stdeploy.passes", "stdeploy.errors", "stdeploy.files"},
    "stdeploy.importers": {"stdeploy.graph", "stdeploy.exporters", "stdeploy.errors", "stdeploy.files"},
    "stdeploy.runtime": {
        "stdeploy.graph",
        "stdeploy.importers",
        "stdeploy.exporters",
        "stdeploy.errors",
        "stdeploy.files",
    },
}
TORCH_FREE = (
    "stdeploy.graph",
    "stdeploy.passes",
    "stdeploy.exporters",
    "stdeploy.importers",
    "stdeploy.drawing",
    "stdeploy.energy",
    "stdeploy.quantise",
    "stdeploy.chips",
)


def modules() -> dict[str, Path]:
    """Every module of the package by dotted name."""
    out = {}
    for folder, prefix in (
        ("stdeploy", "stdeploy"),
        ("exporters", "stdeploy.exporters"),
        ("runtime", "stdeploy.runtime"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT / folder)
            if folder == "stdeploy" and relative.parts[0] in ("exporters", "runtime"):
                continue
            parts = [prefix, *relative.with_suffix("").parts]
            out[".".join(parts).removesuffix(".__init__")] = path
    return out


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_arrows_point_one_way(room: str) -> None:
    allowed = MAY_IMPORT[room] | {room, "stdeploy.__version__"}
    wrong = []
    for name, path in modules().items():
        if name != room and not name.startswith(room + "."):
            continue
        for target in imports(path):
            inside = target not in modules()  # a name within a module that is listed itself
            permitted = inside or any(target == a or target.startswith(a + ".") for a in allowed)
            if target.startswith("stdeploy.") and not permitted:
                wrong.append(f"{name} imports {target}")
            if target.split(".")[0] in ("torch", "spikingjelly") and room in TORCH_FREE:
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_nothing_imports_the_command_line() -> None:
    wrong = [
        name
        for name, path in modules().items()
        if not name.startswith("stdeploy.cli") and any(i.startswith("stdeploy.cli") for i in imports(path))
    ]
    assert wrong == []


def test_every_package_is_listed_for_the_wheel() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert packages == listed


@pytest.mark.parametrize("arguments", [["-c", "import stdeploy"], ["-m", "stdeploy.cli", "--help"]])
def test_a_cold_start_loads_neither_torch_nor_onnx(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = {
        line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line
    }
    assert "stdeploy" in loaded
    assert not loaded & {"torch", "onnx", "onnxruntime", "nir", "numba"}
