"""Where an ONNX file's time goes in onnxruntime: by operator, and by node under the name the file gives it."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stdeploy.errors import UserError
from stdeploy.graph.weight import Array
from stdeploy.runtime.onnx_file import OnnxFile
from stdeploy.runtime.sessions import OrtSession, SessionOptions

PRODUCTS = frozenset(
    {"Conv", "FusedConv", "ConvInteger", "Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul"}
    | {"MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
)
"""Operators, onnxruntime's own among them, that are convolutions or matrix products."""

_EVENT = "_kernel_time"
_WARM_UP = 2


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """Median milliseconds a call of all `nodes` of one kind."""

    kind: str
    nodes: int
    ms: float


@dataclass(frozen=True, slots=True)
class NodeTime:
    """Median milliseconds a call of one node; its name is the file's, or onnxruntime's where it fused."""

    name: str
    kind: str
    ms: float


@dataclass(frozen=True)
class Profile:
    """Kernel time of one call: medians over `runs` calls node by node, largest first."""

    runs: int
    operators: tuple[OperatorTime, ...]
    nodes: tuple[NodeTime, ...]

    @property
    def total_ms(self) -> float:
        return sum(node.ms for node in self.nodes)

    @property
    def outside_products(self) -> float:
        """Share of the kernel time that is neither convolution nor matrix product."""
        inside = sum(o.ms for o in self.operators if o.kind in PRODUCTS)
        return 1 - inside / self.total_ms if self.total_ms else 0.0

    def to_dict(self, nodes: int = 20) -> dict[str, Any]:
        """JSON form, with the `nodes` slowest nodes."""
        return {
            "runs": self.runs,
            "total_ms": self.total_ms,
            "outside_products": self.outside_products,
            "operators": [asdict(o) for o in self.operators],
            "nodes": [asdict(n) for n in self.nodes[:nodes]],
        }


def profile(path: Path, inputs: Array, *, threads: int | None = None, runs: int = 20) -> Profile:
    """Run an ONNX file `runs` times on `inputs` on the CPU and read onnxruntime's profile.

    Kernel times hold what a kernel takes with its threads, not what lies between kernels. UserError where
    the file cannot run.
    """
    if runs < 1:
        raise UserError(f"{runs} runs measure nothing", hint="give 1 or more")
    with tempfile.TemporaryDirectory() as folder:
        session = OrtSession(path, SessionOptions("cpu", threads, profile=Path(folder) / "profile"))
        feeds = {OnnxFile(path).input_name: inputs}
        for _ in range(_WARM_UP + runs):
            session.run(feeds)
        events = json.loads(session.end_profile().read_text(encoding="utf-8"))
    return read_profile(events)


def read_profile(events: list[dict[str, Any]]) -> Profile:
    """The Profile in onnxruntime's trace events; the first calls, which warm up, are left out."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_EVENT):
            kind = event["args"]["op_name"]
            times[event["name"].removesuffix(_EVENT), kind].append(event["dur"] / 1e3)
    kept = {key: spent[_WARM_UP:] or spent for key, spent in times.items()}
    nodes = [NodeTime(name, kind, statistics.median(spent)) for (name, kind), spent in kept.items()]
    kinds: dict[str, list[float]] = defaultdict(list)
    for node in nodes:
        kinds[node.kind].append(node.ms)
    operators = [OperatorTime(kind, len(spent), sum(spent)) for kind, spent in kinds.items()]
    return Profile(
        runs=max((len(spent) for spent in kept.values()), default=0),
        operators=tuple(sorted(operators, key=lambda o: -o.ms)),
        nodes=tuple(sorted(nodes, key=lambda n: -n.ms)),
    )
