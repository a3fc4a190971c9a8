"""What an exported Lava folder says of itself: time, input, output, and where each neuron layer is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from stdeploy.errors import UserError
from stdeploy.exporters.lava.layout import FORMAT, NETWORK, PROGRAM, WEIGHTS


class LavaFolder:
    """A folder that stdeploy wrote for Lava; UserError where it is damaged or of another version."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        for name in (NETWORK, WEIGHTS, PROGRAM):
            if not (self.path / name).is_file():
                raise UserError(f"{self.path} has no {name}", hint="export it again")
        try:
            self.metadata: dict[str, Any] = json.loads((self.path / NETWORK).read_text(encoding="utf-8"))
            self.format = self.metadata["format"]
            self.steps = int(self.metadata["steps"])
            self.shapes = {n: tuple(layer["shape"]) for n, layer in self.metadata["neurons"].items()}
            self.processes: list[dict[str, Any]] = list(self.metadata["processes"])
            self.label = str(self.metadata["output"]["label"])
            self.layout = str(self.metadata["input"]["layout"])
            self.input_shape = tuple(self.metadata["input"]["shape"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path / NETWORK} is damaged: {error!r}", hint="export it again") from error
        if self.format != FORMAT:
            raise UserError(
                f"{self.path} has format {self.format}, this version reads {FORMAT}", hint="export it again"
            )
        self._require_weights()

    def _require_weights(self) -> None:
        """Every array that a process names has to be there, whole."""
        wanted = {f"{p['weights']}.data" for p in self.processes if p.get("weights")}
        wanted |= {p["bias"] for p in self.processes if p.get("bias")}
        try:
            with np.load(self.path / WEIGHTS) as stored:
                missing = sorted(wanted - set(stored.files))
                for name in stored.files:
                    stored[name]
        except Exception as error:  # numpy, zipfile and zlib each raise their own for a cut file
            raise UserError(
                f"{self.path / WEIGHTS} cannot be read: {error}", hint="export it again"
            ) from error
        if missing:
            raise UserError(f"{self.path / WEIGHTS} lacks {missing[0]}", hint="export it again")
