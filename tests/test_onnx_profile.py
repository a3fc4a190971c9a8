"""Where the time goes: read off onnxruntime's own profile."""

from __future__ import annotations

from pathlib import Path

import pytest

from stdeploy.errors import UserError
from stdeploy.exporters.onnx import export
from stdeploy.runtime.onnx_profile import PRODUCTS, profile, read_profile
from tests.graphs import random_inputs, spikformer_graph


def event(name: str, kind: str, microseconds: int) -> dict[str, object]:
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": kind}}


def test_medians_node_by_node_after_two_calls() -> None:
    calls = [(9000, 9000, 9000), (9000, 9000, 9000), (10, 100, 890), (30, 300, 670), (20, 200, 780)]
    events = [
        e
        for a, b, c in calls
        for e in (event("add", "Add", a), event("fc", "Gemm", b), event("q", "QGemm", c))
    ]
    noise = [
        {"cat": "Session", "name": "model_run", "dur": 10**6},
        {**event("add", "Add", 5), "name": "add_fence"},
    ]
    found = read_profile([*noise, *events])
    assert found.runs == 3
    assert [(n.name, n.kind, n.ms) for n in found.nodes] == [
        ("q", "QGemm", 0.78),
        ("fc", "Gemm", 0.2),
        ("add", "Add", 0.02),
    ]
    assert found.total_ms == pytest.approx(1.0)
    assert found.outside_products == pytest.approx(0.02)
    assert [o["kind"] for o in found.to_dict(nodes=1)["operators"]] == ["QGemm", "Gemm", "Add"]
    assert len(found.to_dict(nodes=1)["nodes"]) == 1


def test_an_empty_profile_has_no_share() -> None:
    assert read_profile([]).outside_products == 0.0


@pytest.mark.parametrize("options", [{}, {"weights": "int8"}], ids=["fp32", "int8"])
def test_a_file_s_own_names_come_back(options: dict[str, str], tmp_path: Path) -> None:
    graph = spikformer_graph(steps=3, neurons="spikingjelly", batch_norm=False)
    artifact = export(graph, tmp_path / "net.onnx", options)
    found = profile(artifact.path, random_inputs(graph, 2), threads=1, runs=4)
    assert found.runs == 4
    kinds = {o.kind: o.nodes for o in found.operators}
    assert kinds["QGemm" if options else "Gemm"] >= 4 and kinds["ThresholdedRelu"] >= 2
    assert not options or {"ConvInteger", "DequantizeLinear"}.isdisjoint(kinds)  # one integer product each
    assert any(n.name == "block.0.attn.q_conv+k_conv+v_conv" or "q_conv" in n.name for n in found.nodes)
    assert {n.kind for n in found.nodes if n.kind in PRODUCTS}
    assert 0 < found.outside_products < 1
    assert list(tmp_path.iterdir()) == [artifact.path]


def test_no_runs_measure_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        profile(tmp_path / "net.onnx", random_inputs(spikformer_graph(), 1), runs=0)
