"""What a .sev file holds, in facts and rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stdeploy.exporters.event.file import EventFile
from stdeploy.graph.execution import leading


@dataclass(frozen=True)
class EventSummary:
    """A file's facts: `stages` by operator, `arrays` with bytes, `plan` as the file holds it."""

    file: str
    size_bytes: int
    steps: int
    metadata: dict[str, Any]
    input: dict[str, Any]
    outputs: list[dict[str, Any]]
    neurons: dict[str, list[int]]
    stages: dict[str, int]
    arrays: dict[str, dict[str, Any]]
    plan: dict[str, Any]

    def facts(self) -> list[tuple[str, str]]:
        """Named lines about the whole file; sizes are in bytes."""
        shape = "x".join(
            str(n) for n in [*leading(self.input["layout"], "B", self.steps), *self.input["shape"]]
        )
        outputs = ", ".join(
            f"{o['label']} {'x'.join(str(n) for n in [*leading(o['layout'], 'B', self.steps), *o['shape']])}"
            for o in self.outputs
        )
        source = str(self.metadata.get("source", "unknown"))
        digest = str(self.metadata.get("source_sha256", "unknown"))[:16]
        stages = ", ".join(f"{n} {kind}" for kind, n in self.stages.items())
        arrays = ", ".join(f"{name} {a['bytes']:,} bytes of {a['type']}" for name, a in self.arrays.items())
        rates, costs = self.plan.get("rates", {}), self.plan.get("costs", {})
        measured = f"measured on {rates.get('samples')} samples of {rates.get('data')}"
        return [
            (
                "file",
                f"{self.file}  {self.size_bytes:,} bytes, by stdeploy {self.metadata.get('stdeploy_version')}",
            ),
            ("made from", f"{source}, sha256 {digest}"),
            ("runs", f"T = {self.steps}"),
            ("input", f"{self.input['name']} {shape}"),
            ("output", outputs),
            ("neurons", f"{len(self.neurons)} layers"),
            ("stages", f"{sum(self.stages.values())}: {stages}"),
            ("arrays", arrays),
            ("rates", measured if rates.get("measured") else "assumed; stdeploy export --data measures them"),
            ("costs", f"measured on {costs.get('machine', 'an unknown machine')}"),
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `plan` can be given to `stdeploy export --plan`."""
        return {
            "schema_version": 1,
            "file": self.file,
            "size_bytes": self.size_bytes,
            "steps": self.steps,
            "metadata": self.metadata,
            "input": self.input,
            "outputs": self.outputs,
            "neurons": self.neurons,
            "stages": self.stages,
            "arrays": self.arrays,
            "plan": self.plan,
        }


def summarise_event(path: Path) -> EventSummary:
    """Read a .sev file; UserError as EventFile."""
    file = EventFile(path)
    arrays = {
        name: {"type": a.dtype.name, "elements": int(a.size), "bytes": int(a.nbytes)}
        for name, a in file.arrays.items()
    }
    return EventSummary(
        file=str(path),
        size_bytes=path.stat().st_size,
        steps=file.steps,
        metadata=file.metadata,
        input={key: file.contract[key] for key in ("name", "shape", "layout")},
        outputs=[{key: output[key] for key in ("label", "shape", "layout")} for output in file.outputs],
        neurons={name: list(shape) for name, shape in file.shapes.items()},
        stages=dict(Counter(str(stage["op"]) for stage in file.stages).most_common()),
        arrays=arrays,
        plan=file.plan,
    )
