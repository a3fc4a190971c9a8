"""The README's performance tables, written from benchmarks/results.

    python -m benchmarks.tables            write them into README.md
    python -m benchmarks.tables --check    exit code 1 where README.md says something else

Each table stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

LABELS = {
    "torch": "PyTorch, eager",
    "compile": "PyTorch, torch.compile",
    "dynamo": "torch.onnx.export(dynamo=True), onnxruntime",
    "onnx": "stdeploy's ONNX, onnxruntime",
    "openvino": "stdeploy's ONNX, OpenVINO",
}


def latency(document: dict[str, Any]) -> str:
    """Candidates by batch: latency, and stdeploy's ratio to each."""
    points = document["candidates"]["points"]
    lines = ["| | batch | p50 ms | p90 ms | samples/s | stdeploy / it |", "|---|--:|--:|--:|--:|--:|"]
    for point in points:
        rows = {row["candidate"]: row for row in point["candidates"]}
        ours = rows["onnx"]
        for name, row in rows.items():
            if row["status"] != "ok":
                lines.append(f"| {LABELS[name]} | {point['batch']} | {row['status']} | | | |")
                continue
            cells = [_ms(row["latency_ms_p50"]), _ms(row["latency_ms_p90"]), f"{row['samples_per_s']:.1f}"]
            shown = "" if name == "onnx" else _against(ours, row, document["candidates"]["plan"]["reference"])
            lines.append(f"| {LABELS[name]} | {point['batch']} | {' | '.join(cells)} | {shown} |")
    return "\n".join([*lines, "", _machine(document["candidates"])])


def dsp(document: dict[str, Any]) -> str:
    """Runtime of the DSP-compressed networks relative to the dense one."""
    points = document["dsp"]["points"]
    names = [row["candidate"] for row in points[0]["candidates"]]
    lines = [f"| batch | {' | '.join(names)} |", "|--:" * (len(names) + 1) + "|"]
    for point in points:
        cells = [_ratio(row["ratio"]) if row["ratio"] else row["status"] for row in point["candidates"]]
        lines.append(f"| {point['batch']} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _machine(document["dsp"])])


def export(document: dict[str, Any]) -> str:
    """Time, memory and nodes of exporting, against torch.onnx.export."""
    summary = document["summary"]
    lines = ["| stdeploy / | time | peak memory | nodes in the file |", "|---|--:|--:|--:|"]
    for rival, label in (("dynamo", "batch fixed to 1"), ("dynamo-free-batch", "batch free")):
        ratio = summary[f"stdeploy / {rival}"]
        cells = [_spread(ratio[key]) for key in ("seconds", "peak_mib")]
        nodes = f"{summary['stdeploy']['nodes']} / {summary[rival]['nodes']}"
        lines.append(f"| torch.onnx.export, {label} | {cells[0]} | {cells[1]} | {nodes} |")
    return "\n".join(lines)


def event(document: dict[str, Any]) -> str:
    """The event engine beside the other candidates, network by network."""
    lines = [
        "| network | M SynOps | torch, ms | onnxruntime | OpenVINO | event | best other / event | batch 8 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for net in sorted(document["nets"], key=lambda n: (n["method"] == "dsp", n["sparsity"])):
        points = {point["batch"]: point for point in net["against"] or ()}
        if not points:
            continue
        ms = points[1]["ms"]
        times = [_ms(ms.get(name)) for name in ("dynamo", "onnx", "openvino", "event")]
        ratios = [
            _ratio(points[batch]["best_other / event"]) if batch in points else ""  # the three main networks
            for batch in (1, 8)
        ]
        cells = [_named(net), f"{net['synops'] / 1e6:.0f}", *times, *ratios]
        lines.append(f"| {' | '.join(cells)} |")
    report = next(iter(document["reports"].values()))
    return "\n".join([*lines, "", _machine(report, ("torch", "onnxruntime", "openvino", "numba"))])


def _named(net: dict[str, Any]) -> str:
    method = f"{net['method'].upper()} {round(100 * net['sparsity'])}%" if net["method"] else "dense"
    return f"{method} (4-48-153)" if method == "DSP 90%" else method


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "latency": ("latency.json", latency),
    "dsp": ("latency.json", dsp),
    "export": ("export_onnx.json", export),
    "event": ("event_engine.json", event),
}
"""Table name to the file that it is made from, and how."""


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _against(ours: dict[str, Any], row: dict[str, Any], reference: str) -> str:
    """Our median over a row's; with its interval where one of the two is what ratios were taken of."""
    if ours["status"] != "ok":
        return ""
    if reference == row["candidate"]:
        return _ratio(ours["ratio"])
    if reference != ours["candidate"]:
        return f"{ours['latency_ms_p50'] / row['latency_ms_p50']:.2f}"
    ratio = row["ratio"]
    low, high = (None if bound is None else 1 / bound for bound in (ratio["high"], ratio["low"]))
    return _ratio({"value": 1 / ratio["value"], "low": low, "high": high})


def _ratio(ratio: dict[str, Any]) -> str:
    if ratio["low"] is None or ratio["low"] == ratio["high"]:
        return f"{ratio['value']:.2f}"
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _spread(values: dict[str, float]) -> str:
    return f"{values['median']:.2f} [{values['lowest']:.2f}, {values['highest']:.2f}]"


def _machine(report: dict[str, Any], packages: tuple[str, ...] = ("torch", "onnxruntime")) -> str:
    """One line on what the numbers belong to."""
    machine, plan = report["machine"], report["plan"]
    rows = [row for point in report["points"] for row in point["candidates"] if row["calls"]]
    calls = [row["calls"] for row in rows]
    threads = ", ".join(map(str, plan["threads"]))
    software = ", ".join(
        f"{name} {machine['packages'][name]}" for name in packages if name in machine["packages"]
    )
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {threads} threads, load {machine['load']} before; "
        f"{software}; {min(calls, default=0)} to {max(calls, default=0)} calls each; {machine['date']}."
    )


def filled(readme: str, results: Path = RESULTS) -> str:
    """`readme` with every marked table rewritten; KeyError for an unknown table, OSError for a missing result."""

    def table(match: re.Match[str]) -> str:
        file, render = TABLES[match[1]]
        text = render(json.loads((results / file).read_text()))
        return f"<!-- bench:{match[1]} -->\n{text}\n<!-- /bench:{match[1]} -->"

    return re.sub(r"<!-- bench:(\w+) -->\n.*?<!-- /bench:\1 -->", table, readme, flags=re.DOTALL)


def main() -> int:
    """Write the tables, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    path = ROOT / "README.md"
    before = path.read_text()
    after = filled(before)
    if arguments.check and after != before:
        print(
            "README.md does not say what benchmarks/results say: python -m benchmarks.tables", file=sys.stderr
        )
        return 1
    if not arguments.check:
        path.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
