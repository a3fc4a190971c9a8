"""A network as a picture: its modules as blocks, one below the other, in a self-contained SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stdeploy.drawing.blocks import Diagram
from stdeploy.drawing.svg import render
from stdeploy.files import atomic_write


def save(diagram: Diagram, path: Path, title: str, facts: Sequence[str]) -> None:
    """Write the picture whole or not at all; UserError where it cannot be written."""
    with atomic_write(path) as temporary:
        temporary.write_text(render(diagram, title, facts), encoding="utf-8")
