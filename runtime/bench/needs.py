"""The candidates there are, and what each needs on this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil

CANDIDATES = {
    "torch": "the model in PyTorch, eager",
    "compile": "the model in PyTorch, torch.compile",
    "dynamo": "torch.onnx.export(dynamo=True) of the model, in onnxruntime",
    "onnx": "stdeploy's ONNX file in onnxruntime",
    "openvino": "stdeploy's ONNX file in OpenVINO",
    "event": "stdeploy's .sev file in the event-driven engine",
}
"""Candidates by the name that `--candidate` takes."""

_PACKAGES = {
    "torch": ("torch",),
    "compile": ("torch",),
    "dynamo": ("torch", "onnxscript", "onnxruntime"),
    "onnx": ("onnxruntime",),
    "openvino": ("openvino",),
    "event": ("numba",),
}
PLOTS = "matplotlib"


def lacking(candidate: str, device: str = "cpu") -> str | None:
    """What a candidate needs and is not here; None where it can be tried."""
    for package in _PACKAGES[candidate]:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    if candidate == "compile" and device == "cpu":
        compilers = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
        if not any(shutil.which(name) for name in compilers if name):
            return "torch.compile finds no C++ compiler"
    if candidate in ("openvino", "event") and device != "cpu":
        return "it runs on the CPU only"
    return None


def summary() -> tuple[str, str]:
    """For `stdeploy doctor`: the candidates that can run here, and what the others and --plot lack."""
    missing = {name: reason for name in CANDIDATES if (reason := lacking(name))}
    remarks = [f"no {name}: {reason}" for name, reason in missing.items()]
    if importlib.util.find_spec(PLOTS) is None:
        remarks.append(f"no --plot: {PLOTS} is not installed")
    able = [name for name in CANDIDATES if name not in missing]
    return f"{len(able)} of {len(CANDIDATES)}", "; ".join([", ".join(able), *remarks])
