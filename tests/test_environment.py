"""What doctor finds, and which software verifies by default."""

from __future__ import annotations

from typing import Any

import pytest

from stdeploy import environment, running
from stdeploy.cli.app import run


def test_two_builds_of_onnxruntime_are_a_problem(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = environment.installed
    monkeypatch.setattr(environment, "installed", lambda d: "1.20" if d == "onnxruntime-gpu" else real(d))
    assert run(["doctor"]) == 1
    assert "overwrite each other" in capsys.readouterr().out


@pytest.mark.parametrize(("package", "serious"), [("onnx", True), ("torchvision", False)])
def test_what_does_not_import_is_named(package: str, serious: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    real = environment.importlib.import_module

    def load(name: str, *rest: Any) -> Any:
        if name == package:
            raise RuntimeError("operator torchvision::nms does not exist\nand more")
        return real(name, *rest)

    monkeypatch.setattr(environment.importlib, "import_module", load)
    monkeypatch.setattr(environment, "installed", lambda d: "2.0+cpu" if d == "torch" else "0.28")
    found = environment.examine()
    listed = found.problems if serious else found.warnings
    (text,) = [line for line in listed if line.startswith(f"{package} does not import")]
    assert "nms does not exist" in text and "and more" not in text
    assert ("different builds" in text) == (package == "torchvision")


def test_default_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"norse"}
    monkeypatch.setattr(running.importlib.util, "find_spec", lambda name: name in present or None)
    assert running.default_readers("nir") == ["norse"]
    present.clear()
    assert running.default_readers("nir") == ["stdeploy"]
    assert running.default_readers("onnx") == ["onnxruntime"]
    present.add("onnxruntime")
    assert running.default_readers("onnx") == ["onnxruntime"]
    assert running.default_readers("graph") == ["interpreter"]
