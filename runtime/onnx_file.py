"""Reading a stdeploy ONNX file: its contract, and the rewrite that shows or replaces spikes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper

from stdeploy.errors import UserError
from stdeploy.graph.execution import batch_size
from stdeploy.graph.weight import Array

OWN = "own:"
"""Prefix of the tensor that a forced neuron computed itself."""


@dataclass(frozen=True)
class Layer:
    """One neuron layer: the float tensor of its spikes [lead, *dims], its form, and the layer's own shape."""

    tensor: str
    form: str
    dims: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Selection:
    """One Select: the int64 tensor [lead, 1, count] of the kept positions, lead = `steps` x batch."""

    tensor: str
    steps: int
    count: int


class OnnxFile:
    """An ONNX file with what its metadata says; UserError where it cannot be read."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self.model = onnx.load_model(self.path, load_external_data=False)
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}") from error
        except DecodeError as error:
            raise UserError(
                f"{self.path} is not a complete ONNX file: {error}", hint="export it again"
            ) from error
        if not self.model.graph.node:
            raise UserError(f"{self.path} is not an ONNX model (it has no nodes)", hint="export it again")
        self.metadata: dict[str, str] = {p.key: p.value for p in self.model.metadata_props}
        self.from_stdeploy = "stdeploy_version" in self.metadata
        try:
            self.steps = int(self._json("steps", 1))
            self.contract: dict[str, Any] = dict(self._json("input", {}))
            self.layers = {
                name: Layer(item["tensor"], item["form"], tuple(item["dims"]), tuple(item["shape"]))
                for name, item in self._json("neurons", {}).items()
            }
            self.selections = {
                name: Selection(item["tensor"], int(item["steps"]), int(item["count"]))
                for name, item in self._json("selections", {}).items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.path}: its metadata is damaged ({error})", hint="export it again"
            ) from error
        self.approximate = self.metadata.get("approximate", "")
        """What makes the file differ from its network by more than float32 rounding; empty: nothing."""
        self.real = TensorProto.FLOAT16 if "fp16" in self.approximate else TensorProto.FLOAT
        self.shapes = {name: layer.shape for name, layer in self.layers.items()}

    def _json(self, key: str, default: Any) -> Any:
        if key not in self.metadata:
            return default
        try:
            return json.loads(self.metadata[key])
        except ValueError as error:
            raise UserError(
                f"{self.path}: its metadata {key!r} is damaged", hint="export it again"
            ) from error

    @property
    def input_name(self) -> str:
        return str(self.model.graph.input[0].name)

    @property
    def output_names(self) -> list[str]:
        return [str(o.name) for o in self.model.graph.output]

    def batch(self, inputs: Array) -> int:
        """Batch size of an input; UserError that names the expected shape where it does not fit."""
        array = np.asarray(inputs)
        contract = self.contract
        if not contract:
            return int(array.shape[0]) if array.ndim else 1
        return batch_size(array, contract["layout"], contract["shape"], self.steps)

    def rewritten(self, forced: Iterable[str] = ()) -> onnx.ModelProto:
        """The model with every neuron layer's spikes, and every selection's positions, as outputs.

        What is in `forced` becomes an input as well, which its consumers read; what such a layer
        computes itself is then the output `own:<tensor>`.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        tensors = self._observed()
        names = list(forced)
        unknown = sorted(set(names) - set(tensors))
        if unknown:
            raise UserError(f"forced spikes name neurons that the file does not have: {', '.join(unknown)}")
        replaced = {tensors[n][0] for n in names}
        for node in model.graph.node:
            for i, name in enumerate(node.output):
                if name in replaced:
                    node.output[i] = f"{OWN}{name}"
        have = {o.name for o in model.graph.output}
        for tensor, kind, dims in dict.fromkeys(tensors.values()):
            if tensor in replaced:
                model.graph.input.append(helper.make_tensor_value_info(tensor, kind, dims))
            name = self.shown(tensor, replaced)
            if name not in have:
                model.graph.output.append(helper.make_tensor_value_info(name, kind, dims))
        return model

    def _observed(self) -> dict[str, tuple[str, int, tuple[int | None, ...]]]:
        """Tensor, element type and shape of every layer's spikes and every selection's positions."""
        spikes = {n: (x.tensor, self.real, (None, *x.dims)) for n, x in self.layers.items()}
        kept = {n: (x.tensor, TensorProto.INT64, (None, 1, x.count)) for n, x in self.selections.items()}
        return {**spikes, **kept}

    @staticmethod
    def shown(tensor: str, replaced: set[str]) -> str:
        """Tensor in which a rewritten model shows what it computed itself for `tensor`."""
        return f"{OWN}{tensor}" if tensor in replaced else tensor

    def to_graph(self, name: str, tensor: Array) -> Array:
        """Spikes of a layer as uint8 [T, B, *shape], from the tensor in the file's form."""
        layer, steps = self.layers[name], self.steps
        if layer.form not in ("last", "heads"):
            return tensor.reshape(steps, -1, *layer.shape).astype(np.uint8)
        if layer.form == "heads":
            tensor = tensor.swapaxes(1, 2)
        rows = tensor.reshape(steps, -1, *layer.shape[1:], layer.shape[0])
        return np.ascontiguousarray(np.moveaxis(rows, -1, 2).astype(np.uint8))

    def from_graph(self, name: str, spikes: Array, batch: int) -> Array:
        """Forced spikes [T, B, *shape] as the real tensor the file wants; UserError on a wrong shape."""
        layer, array = self.layers[name], np.asarray(spikes)
        wanted = (self.steps, batch, *layer.shape)
        if array.shape != wanted:
            raise UserError(f"forced spikes of {name} have shape {array.shape}, the neuron {wanted}")
        if layer.form in ("last", "heads"):
            array = np.moveaxis(array, 2, -1)
        if layer.form == "heads":
            heads, positions, size = layer.dims
            array = array.reshape(-1, positions, heads, size).swapaxes(1, 2)
        return np.ascontiguousarray(array, helper.tensor_dtype_to_np_dtype(self.real)).reshape(
            -1, *layer.dims
        )

    def forced_feeds(self, forced: Mapping[str, Array], batch: int) -> dict[str, Array]:
        """Extra inputs of the rewritten model, by tensor name."""
        feeds = {}
        for name, values in forced.items():
            if name in self.selections:
                chosen = self.selections[name]
                wanted = (chosen.steps, batch, chosen.count)
                if values.shape != wanted:
                    raise UserError(
                        f"forced positions of {name} have shape {values.shape}, the file's {wanted}"
                    )
                feeds[chosen.tensor] = np.ascontiguousarray(values, np.int64).reshape(-1, 1, chosen.count)
            else:
                feeds[self.layers[name].tensor] = self.from_graph(name, values, batch)
        return feeds
