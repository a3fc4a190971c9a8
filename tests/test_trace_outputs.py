"""What models return: any order of channels, tokens and space, per step and not; in every executor as they return it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stdeploy.errors import UnsupportedError
from stdeploy.exporters import load_target
from stdeploy.graph.file import load_graph, save_graph
from stdeploy.graph.interpreter import Interpreter, interpret
from stdeploy.graph.ops import Output
from stdeploy.passes.base import run_pipeline
from stdeploy.passes.pipelines import PIPELINES
from stdeploy.running import executors
from stdeploy.runtime.onnx_session import OnnxRuntimeExecutor
from stdeploy.trace import trace
from stdeploy.verify import compare
from tests.traced import Repeated, agree, awkward, random_batch

SHAPE, STEPS, CHANNELS = (2, 3, 4), 3, 5


class Returning(nn.Module):
    """A stem `[T, B, C, H, W]` of spikes, and what is returned of it."""

    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.form = Repeated(STEPS, CHANNELS), form

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self.stem(x))


FORMS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "[T, B, C, H, W]": (lambda x: x, ()),
    "[T, B, H, W, C]": (lambda x: x.permute(0, 1, 3, 4, 2), (1, 2, 0)),
    "[T, B, W, C, H]": (lambda x: x.permute(0, 1, 4, 2, 3), (2, 0, 1)),
    "[B, T, W, H, C]": (lambda x: x.permute(1, 0, 4, 3, 2), (2, 1, 0)),
    "[T, B, N, C]": (lambda x: x.flatten(3).transpose(2, 3), (1, 0)),
    "[T, B, C, N]": (lambda x: x.flatten(3), ()),
    "[B, N, C]": (lambda x: x.flatten(3).mean(0).transpose(1, 2), (1, 0)),
    "[B, C, N]": (lambda x: x.flatten(3).sum(0), ()),
    "[B, H, C]": (lambda x: x.mean((0, 4)).transpose(1, 2), (1, 0)),
    "[B, 1, C]": (lambda x: x.flatten(3).transpose(2, 3)[:, :, 0:1].mean(0), (1, 0)),
    "[B, C]": (lambda x: x.mean((0, 3, 4)), ()),
}


@pytest.mark.parametrize("name", FORMS)
def test_outputs_are_as_the_model_returns_them(name: str, tmp_path: Path) -> None:
    form, order = FORMS[name]
    torch.manual_seed(2)
    traced = agree(awkward(Returning(form)), SHAPE)
    (node,) = traced.graph.outputs
    assert isinstance(node.op, Output) and node.op.order == order
    x = random_batch(traced)
    with torch.no_grad():
        wanted = traced.module(torch.as_tensor(x)).numpy()
    np.testing.assert_allclose(interpret(traced.graph, x).outputs["output"], wanted, rtol=1e-9)
    again = load_graph(save_graph(traced.graph, tmp_path / "net.stg"))
    np.testing.assert_allclose(interpret(again, x).outputs["output"], wanted, rtol=1e-9)
    graph = run_pipeline(traced.graph, PIPELINES["onnx"]).graph
    load_target("onnx").export(graph, tmp_path / "net.onnx")
    runtime, single = OnnxRuntimeExecutor(tmp_path / "net.onnx"), x.astype(np.float32)
    found = runtime.run(single).outputs["output"]
    assert found.shape == wanted.shape
    (declared,) = [
        [d.dim_value for d in o.type.tensor_type.shape.dim] for o in runtime.file.model.graph.output
    ]
    assert [n for n in declared if n] == [n for i, n in enumerate(wanted.shape) if declared[i]]
    report = compare(Interpreter(traced.graph, np.float32), runtime, traced.graph, single, exported=graph)
    assert report.ok and report.outputs[0].max_difference < 1e-5


def test_one_step_and_one_sample() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = Repeated(1, CHANNELS)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.stem(x)
            return y.flatten(3).transpose(2, 3)

    traced = agree(awkward(One()), SHAPE, batch=1)
    assert traced.run(random_batch(traced, 1)).outputs["output"].shape == (1, 1, 12, CHANNELS)


def test_half_a_dimension_is_refused() -> None:
    net = awkward(Returning(lambda x: x.permute(0, 1, 3, 2, 4).flatten(2, 3)))
    with pytest.raises(UnsupportedError, match="not whole axes"):
        trace(net, SHAPE)


def test_nir_yields_channels_first() -> None:
    form, _ = FORMS["[B, N, C]"]
    traced = trace(awkward(Returning(form)), SHAPE)
    reasons = [item.reason for item in load_target("nir").check(traced.graph)]
    assert any("channels last" in reason for reason in reasons)


class Iand(nn.Module):
    """The residual x AND NOT y (SEW-ResNet's IAND), and what reads it as spikes: a maximum and a product."""

    def __init__(self, form: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.other, self.form = Repeated(STEPS, CHANNELS), Repeated(STEPS, CHANNELS), form
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x), self.other(x)
        y = self.form(a, b)
        z = self.pool((y * a).flatten(0, 1)).reshape(*y.shape[:3], 1, 2)
        scores: Tensor = self.head(z.flatten(3).mean(3))
        return scores.mean(0)


IANDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x * (1 - y)": lambda x, y: x * (1 - y),
    "(1 - x) * y": lambda x, y: (1.0 - x) * y,
    "(-y + 1) * x": lambda x, y: (-y + 1.0) * x,
    "nor": lambda x, y: (1 - x) * (1 - y),
    "torch.ones_like": lambda x, y: x * (torch.ones_like(y) - y),
}


@pytest.mark.parametrize("name", IANDS)
def test_and_not_stays_spikes_in_every_target(name: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    net = awkward(Iand(IANDS[name]))
    agree(net, SHAPE)
    traced = trace(net.float(), SHAPE)
    x = random_batch(traced).astype(np.float32)
    for target in ("onnx", "nir"):
        graph = run_pipeline(traced.graph, PIPELINES[target]).graph
        path = tmp_path / f"net.{target}"
        load_target(target).export(graph, path)
        assert run_pipeline(traced.graph, PIPELINES[target]).graph["mul"].value.domain.kind == "spike"
        readers = ["stdeploy", "snntorch"] if target == "nir" else []
        for reader in executors(path, readers):
            report = compare(traced, reader, traced.graph, x, exported=graph)
            assert report.ok, report.problems
