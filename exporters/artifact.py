"""What an exporter returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Artifact:
    """A written file: where, for which target, how large, and what the exporter wants the user to know."""

    path: Path
    target: str
    size_bytes: int
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
