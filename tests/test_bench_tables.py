"""The README's performance tables say what benchmarks/results say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import tables

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_readme_says_what_was_measured() -> None:
    assert tables.filled(README) == README, "run python -m benchmarks.tables"
    assert set(re.findall(r"<!-- bench:(\w+) -->", README)) == set(tables.TABLES)


def test_another_number_makes_another_table(tmp_path: Path) -> None:
    for file, _ in tables.TABLES.values():
        (tmp_path / file).write_text((tables.RESULTS / file).read_text())
    document = json.loads((tmp_path / "latency.json").read_text())
    row = document["candidates"]["points"][0]["candidates"][0]
    row["latency_ms_p50"] *= 2
    (tmp_path / "latency.json").write_text(json.dumps(document))
    changed = tables.filled(README, tmp_path)
    assert changed != README
    row.update(status="failed", latency_ms_p50=None, reason="out of memory")
    (tmp_path / "latency.json").write_text(json.dumps(document))
    assert "| failed |" in tables.filled(README, tmp_path)


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(KeyError):
        tables.filled("<!-- bench:nothing -->\n<!-- /bench:nothing -->")
