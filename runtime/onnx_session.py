"""Running an exported ONNX file: onnxruntime sessions and OpenVINO."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from stdeploy.errors import UserError
from stdeploy.graph.execution import Execution
from stdeploy.graph.weight import Array
from stdeploy.runtime.onnx_file import OnnxFile

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""What a user calls a device, and onnxruntime's name for it."""


def load_onnxruntime() -> Any:
    """The onnxruntime module; UserError where it is missing, or two builds of it overwrote each other."""
    both = [d for d in ("onnxruntime", "onnxruntime-gpu") if _installed(d)]
    if len(both) == 2:
        raise UserError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            hint='pip uninstall both, then pip install "stdeploy[cpu]" or "stdeploy[gpu]"',
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("onnxruntime is not installed", hint='pip install "stdeploy[cpu]"') from error
    return onnxruntime


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class _Executor:
    """What both runtimes share: the file, the choice of model to run, and the way back to graph layout."""

    def __init__(self, path: Path | str, *, spikes: bool) -> None:
        self.file = OnnxFile(path)
        self.spikes = spikes and bool(self.file.layers or self.file.selections)
        self._sessions: dict[frozenset[str] | None, Any] = {}

    def run(self, inputs: Array, forced: Mapping[str, Array] | None = None) -> Execution:
        """Run a batch given in the file's input layout, from reset membranes.

        Spikes are uint8 [T, B, *shape] by neuron name, and empty where `spikes` was switched off. With
        `forced` the named layers' consumers read the given spikes. UserError where a shape does not fit.
        """
        forced = forced or {}
        array = np.ascontiguousarray(inputs, dtype=np.float32)
        batch = self.file.batch(array)
        key = frozenset(forced) if forced or self.spikes else None
        if key not in self._sessions:
            model = self.file.model if key is None else self.file.rewritten(forced)
            self._sessions[key] = self._load(model)
        feeds = {self.file.input_name: array, **self.file.forced_feeds(forced, batch)}
        results = self._run(self._sessions[key], feeds)
        outputs = {name: results[name] for name in self.file.output_names}
        if key is None:
            return Execution(outputs)
        layers, chosen = self.file.layers, self.file.selections
        replaced = {(layers[name] if name in layers else chosen[name]).tensor for name in forced}
        spikes = {
            name: self.file.to_graph(name, results[self.file.shown(layer.tensor, replaced)])
            for name, layer in layers.items()
        }
        selections = {
            name: results[self.file.shown(kept.tensor, replaced)].reshape(kept.steps, -1, kept.count)
            for name, kept in chosen.items()
        }
        return Execution(outputs, spikes, selections=selections)

    def _load(self, model: onnx.ModelProto) -> Any:
        raise NotImplementedError

    def _run(self, session: Any, feeds: dict[str, Array]) -> dict[str, Array]:
        raise NotImplementedError


class OnnxRuntimeExecutor(_Executor):
    """onnxruntime on a CPU or a CUDA GPU; `name` states version and the provider really used.

    `provider`: cpu, cuda or tensorrt; UserError where this build or machine does not have it, never a
    fallback. `threads`: within one operator (None: onnxruntime's choice). With `spikes=False` the file
    runs as it is; otherwise each layer's spikes become outputs of a copy in memory.
    """

    def __init__(
        self, path: Path | str, provider: str = "cpu", threads: int | None = None, *, spikes: bool = True
    ) -> None:
        super().__init__(path, spikes=spikes)
        self._ort = load_onnxruntime()
        if provider not in PROVIDERS:
            raise UserError(f"unknown device {provider!r}", hint=f"known: {', '.join(PROVIDERS)}")
        self.provider = PROVIDERS[provider]
        available = self._ort.get_available_providers()
        if self.provider not in available:
            raise UserError(
                f"this onnxruntime has no {self.provider} (it has {', '.join(available)})",
                hint='pip uninstall onnxruntime, then pip install "stdeploy[gpu]"',
            )
        self.threads = threads
        self.name = f"onnxruntime {self._ort.__version__} {self.provider}"
        self._sessions[None] = self._load(self.file.model)

    def _load(self, model: onnx.ModelProto) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        try:
            session = self._ort.InferenceSession(
                model.SerializeToString(), options, providers=[self.provider]
            )
        except Exception as error:  # onnxruntime's own exceptions share no public base class
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            raise UserError(f"onnxruntime cannot load {self.file.path}: {error}") from error
        used = session.get_providers()
        if used[0] != self.provider:
            raise UserError(
                f"onnxruntime runs {self.file.path} on {used[0]}, not on {self.provider}",
                hint="see its log for why the device could not be started",
            )
        return session

    def _run(self, session: Any, feeds: dict[str, Array]) -> dict[str, Array]:
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))


class OpenVinoExecutor(_Executor):
    """OpenVINO on the CPU, held to float32; `name` states version and inference precision."""

    def __init__(self, path: Path | str, threads: int | None = None, *, spikes: bool = True) -> None:
        super().__init__(path, spikes=spikes)
        try:
            import openvino
        except ImportError as error:
            raise UserError("OpenVINO is not installed", hint='pip install "stdeploy[openvino]"') from error
        self._core = openvino.Core()
        self.config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            self.config["INFERENCE_NUM_THREADS"] = threads
        self._sessions[None] = self._load(self.file.model)
        precision = self._sessions[None].get_property("INFERENCE_PRECISION_HINT")
        self.name = f"OpenVINO {openvino.__version__} CPU {precision.get_type_name()}"

    def _load(self, model: onnx.ModelProto) -> Any:
        try:
            network = self._core.read_model(model.SerializeToString(), b"")
            return self._core.compile_model(network, "CPU", self.config)
        except RuntimeError as error:
            raise UserError(f"OpenVINO cannot load {self.file.path}: {error}") from error

    def _run(self, session: Any, feeds: dict[str, Array]) -> dict[str, Array]:
        found = session(feeds)
        results: dict[str, Array] = {}
        for port in session.outputs:
            for name in port.get_names():
                results[name] = np.array(found[port])
        return results
