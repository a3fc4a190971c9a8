"""Running an exported ONNX file: executors on onnxruntime sessions and on OpenVINO."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from stdeploy.graph.execution import Execution
from stdeploy.graph.weight import Array
from stdeploy.runtime.onnx_file import OnnxFile
from stdeploy.runtime.sessions import OpenVinoSession, OrtSession, SessionOptions


class _Executor:
    """What both runtimes share: the file, the choice of model to run, and the way back to graph layout."""

    open: type[OrtSession | OpenVinoSession]

    def __init__(self, path: Path | str, options: SessionOptions, *, spikes: bool) -> None:
        self.file = OnnxFile(path)
        self.options = options
        shown = spikes or bool(self.file.approximate)  # its effect on them is all there is to measure
        self.spikes = shown and bool(self.file.layers or self.file.selections)
        plain = self._load(None)
        self.name = plain.name
        self._sessions: dict[frozenset[str] | None, OrtSession | OpenVinoSession] = {None: plain}

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
            self._sessions[key] = self._load(self.file.rewritten(forced))
        feeds = {self.file.input_name: array, **self.file.forced_feeds(forced, batch)}
        results = self._sessions[key].run(feeds)
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

    def _load(self, rewritten: onnx.ModelProto | None) -> OrtSession | OpenVinoSession:
        model = self.file.path if rewritten is None else rewritten.SerializeToString()
        return self.open(model, self.options, str(self.file.path))


class OnnxRuntimeExecutor(_Executor):
    """onnxruntime; `name` states version and the provider really used (see `sessions.OrtSession`).

    With `spikes=False` the file runs as it is; otherwise each layer's spikes become outputs of a copy in
    memory.
    """

    open = OrtSession

    def __init__(
        self, path: Path | str, device: str = "cpu", threads: int | None = None, *, spikes: bool = True
    ) -> None:
        super().__init__(path, SessionOptions(device, threads), spikes=spikes)


class OpenVinoExecutor(_Executor):
    """OpenVINO on the CPU, held to float32; `name` states version and inference precision."""

    open = OpenVinoSession

    def __init__(self, path: Path | str, threads: int | None = None, *, spikes: bool = True) -> None:
        super().__init__(path, SessionOptions("cpu", threads), spikes=spikes)
