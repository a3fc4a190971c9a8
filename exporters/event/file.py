"""Reading a .sev file: its program, its arrays, and its contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stdeploy.errors import UserError
from stdeploy.exporters.event.container import Sev, read_sev


class EventFile:
    """A .sev file, mapped, or one in memory, with what its header says; UserError where it is no event program.

    `contract`: the input's name, shape and layout. `shapes`: of every neuron layer, by name. `header`, `arrays`: as
    stdeploy.exporters.event.lower makes them; `metadata` and `plan`: what the exporter adds.
    """

    def __init__(self, file: Path | str | Sev) -> None:
        self.path = Path("(memory)") if isinstance(file, Sev) else Path(file)
        sev = file if isinstance(file, Sev) else read_sev(self.path)
        self.header, self.arrays = sev.header, sev.arrays
        try:
            self.metadata: dict[str, Any] = dict(self.header.get("metadata", {}))
            self.plan: dict[str, Any] = dict(self.header.get("plan", {}))
            self.steps = int(self.header["steps"])
            self.contract: dict[str, Any] = dict(self.header["input"])
            self.outputs: list[dict[str, Any]] = [dict(output) for output in self.header["outputs"]]
            self.stages: list[dict[str, Any]] = [dict(stage) for stage in self.header["stages"]]
            self.shapes = {name: tuple(n["shape"]) for name, n in self.header["neurons"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.path} holds no event program ({error!r})", hint="export it again"
            ) from error
