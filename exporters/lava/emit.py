"""Plan to folder: network.json, weights.npz, and the program that runs them in Lava."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from stdeploy.exporters.lava.layout import FORMAT, NETWORK, WEIGHTS
from stdeploy.exporters.lava.lower import Lowering
from stdeploy.exporters.lava.plan import Attention, Delay, Plan, Process, Source, Synapses
from stdeploy.files import atomic_folder
from stdeploy.graph import ops
from stdeploy.graph.weight import Array

APPROXIMATE = "Lava's fixed point: 8-bit weights, 17-bit thresholds"
_SHIPPED = Path(__file__).parent / "program"


class _Arrays:
    """Arrays by name, equal ones once."""

    def __init__(self) -> None:
        self.stored: dict[str, Array] = {}
        self._names: dict[str, str] = {}

    def vector(self, array: Array | None) -> str | None:
        if array is None or not array.any():
            return None
        return self._name("bias", {"": array})

    def matrix(self, matrix: sparse.csr_matrix) -> str:
        parts = {
            ".data": _lean(matrix.data),
            ".indices": matrix.indices.astype(np.int32),
            ".indptr": matrix.indptr.astype(np.int64),
            ".shape": np.asarray(matrix.shape, dtype=np.int64),
        }
        return self._name("weights", parts)

    def _name(self, kind: str, parts: dict[str, Array]) -> str:
        digest = hashlib.sha256()
        for suffix, array in parts.items():
            digest.update(f"{suffix}{array.dtype}{array.shape}".encode())
            digest.update(array.tobytes())
        key = digest.hexdigest()
        if key not in self._names:
            name = self._names[key] = f"{kind}{len(self._names)}"
            self.stored |= {f"{name}{suffix}": array for suffix, array in parts.items()}
        return self._names[key]


def _lean(data: Array) -> Array:
    """The smallest type that loses nothing: 8-bit weights, or float32, which most of the model's own are."""
    if data.dtype.kind == "i":
        return data.astype(np.int16)
    small = data.astype(np.float32)
    return small if np.array_equal(small, data) else data


def write(low: Lowering, folder: Path) -> int:
    """Write the artefact whole or not at all; its size in bytes."""
    arrays = _Arrays()
    description = describe(low, arrays)
    with atomic_folder(folder, NETWORK) as temporary:
        (temporary / NETWORK).write_text(json.dumps(description, indent=1, default=_plain) + "\n")
        np.savez_compressed(temporary / WEIGHTS, **arrays.stored)  # type: ignore[arg-type]
        shutil.copytree(_SHIPPED, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def describe(low: Lowering, arrays: _Arrays) -> dict[str, Any]:
    """network.json: time, input and output contract, every process, and where each neuron layer is."""
    graph, plan = low.graph, low.plan
    (source,), (sink,) = graph.inputs, graph.outputs
    layout = source.op.layout if isinstance(source.op, ops.Input) else "B"
    out = sink.op if isinstance(sink.op, ops.Output) else ops.Output()
    return {
        "format": FORMAT,
        **graph.metadata,
        "steps": graph.steps,
        "precision": "fixed_pt" if plan.input_range else "floating_pt",
        **({"approximate": APPROXIMATE} if plan.input_range else {}),
        "input": {
            "layout": layout,
            "shape": list(source.value.shape),
            **(asdict(plan.input_range) if plan.input_range else {}),
        },
        "output": {
            "label": out.label,
            "layout": out.layout,
            "shape": list(sink.value.shape),
            "over_steps": low.readout or "each step",
            "processes": list(plan.output),
            "offset": arrays.vector(plan.output_offset),
            "unit": plan.output_unit,
        },
        "counts": plan.counts(),
        "neurons": {
            name: {
                "shape": list(graph[name].value.shape),
                "parts": [
                    {
                        "process": p.process,
                        "start": p.start,
                        "stop": p.stop,
                        "channels": None if p.channels is None else p.channels.tolist(),
                    }
                    for p in parts
                ],
            }
            for name, parts in plan.neurons.items()
        },
        "processes": [_process(plan, name, process, arrays) for name, process in plan.processes.items()],
    }


def _process(plan: Plan, name: str, process: Process, arrays: _Arrays) -> dict[str, Any]:
    inputs = {port: list(sources) for port, sources in plan.inputs[name].items()}
    common = {"name": name, "size": process.size, "valid": plan.valid[name], "inputs": inputs}
    if isinstance(process, Source):
        return {**common, "kind": "source"}
    if isinstance(process, Synapses):
        linear = process.map
        return {
            **common,
            "kind": "synapses",
            "weights": arrays.matrix(linear.matrix),
            "positions": linear.positions,
            "exponent": process.exponent,
            "synapses": linear.synapses,
        }
    if isinstance(process, Delay):
        return {**common, "kind": "delay", "steps": process.steps}
    if isinstance(process, Attention):
        return {
            **common,
            "kind": "attention",
            "heads_q": list(process.heads_q),
            "heads_v": list(process.heads_v),
            "tokens": process.tokens,
        }
    return {
        **common,
        "kind": "population",
        "role": process.role,
        "leak": process.leak,
        "threshold": process.threshold,
        "bias": arrays.vector(process.bias),
        "bias_exponent": process.bias_exponent,
    }


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
