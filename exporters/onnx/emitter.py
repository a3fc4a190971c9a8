"""Collects ONNX nodes and initialisers under readable, unique names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stdeploy.graph.weight import Array

_SHARED_BYTES = 4096


class Emitter:
    """Builds one ONNX graph in execution order; `opset` is the standard operator set it targets.

    Real numbers are float16 with `half`, else float32; with `sparse`, weights are stored as sparse
    initialisers where that takes fewer bytes.
    """

    def __init__(self, opset: int, *, half: bool = False, sparse: bool = False) -> None:
        self.opset, self.sparse = opset, sparse
        self.real = np.dtype(np.float16 if half else np.float32)
        self.real_type = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        self.sparse_initializers: dict[str, onnx.SparseTensorProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._tensors: set[str] = set()
        self._names: set[str] = set()

    def fresh(self, name: str) -> str:
        """A tensor name no other tensor has."""
        return _unique(name, self._tensors)

    def op(self, kind: str, inputs: Sequence[str], name: str, *, output: str = "", **attributes: Any) -> str:
        """Append a node with one output and return the output's name (`output`, else after the node)."""
        return self._append(kind, inputs, name, [self.fresh(output or name)], attributes)[0]

    def split(self, x: str, sizes: Sequence[int] | int, axis: int, name: str) -> list[str]:
        """Split along `axis` into parts of the given sizes, or into an equal number of parts."""
        count = sizes if isinstance(sizes, int) else len(sizes)
        outputs = [self.fresh(f"{name}.{i}") for i in range(count)]
        inputs = [x] if isinstance(sizes, int) else [x, self.integers(sizes)]
        # Split-18 wants the number of equal parts; before, the number of outputs said it.
        attributes = {"num_outputs": count} if isinstance(sizes, int) and self.opset >= 18 else {}
        return self._append("Split", inputs, name, outputs, {"axis": axis, **attributes})

    def topk(self, x: str, count: int, name: str, *, largest: bool = True) -> tuple[str, str]:
        """The best `count` along the last axis, best first, and their indices."""
        outputs = [self.fresh(f"{name}/{part}") for part in ("scores", "tokens")]
        attributes = {"axis": -1, "largest": int(largest), "sorted": 1}
        values, indices = self._append(
            "TopK", [x, self.integers([count])], f"{name}/topk", outputs, attributes
        )
        return values, indices

    def reduce(self, kind: str, x: str, axes: Sequence[int], keepdims: bool, name: str) -> str:
        """ReduceSum or ReduceMean; the mean takes its axes as an input only from opset 18 on."""
        if kind == "ReduceMean" and self.opset < 18:
            return self.op(kind, [x], name, axes=list(axes), keepdims=int(keepdims))
        return self.op(kind, [x, self.integers(axes)], name, keepdims=int(keepdims))

    def reshape(self, x: str, shape: Sequence[int], name: str) -> str:
        return self.op("Reshape", [x, self.integers(shape)], f"{name}/reshape")

    def transpose(self, x: str, perm: Sequence[int], name: str) -> str:
        return self.op("Transpose", [x], f"{name}/transpose", perm=list(perm))

    def integers(self, values: Sequence[int]) -> str:
        """An int64 vector, stored once."""
        return self.array(np.asarray(values, dtype=np.int64), "dims." + "_".join(str(v) for v in values))

    def constant(self, values: Array, name: str) -> str:
        """A real initialiser (cast here, once); small equal ones are stored once."""
        return self.array(np.ascontiguousarray(values, dtype=self.real), name)

    def weight(self, values: Array, name: str) -> str:
        """A weight; sparse where the file is to be and (8 + itemsize) bytes a nonzero are fewer.

        Coordinates are positions in the flattened tensor, ascending (ONNX IR, SparseTensorProto).
        """
        places = np.flatnonzero(values)
        width = self.real.itemsize
        if not self.sparse or (8 + width) * len(places) >= width * values.size or not len(places):
            return self.constant(values, name)
        name = self.fresh(name)
        kept = numpy_helper.from_array(values.ravel()[places].astype(self.real), name)
        where = numpy_helper.from_array(places.astype(np.int64), f"{name}.places")
        self.sparse_initializers[name] = helper.make_sparse_tensor(kept, where, list(values.shape))
        return name

    def array(self, values: Array, name: str) -> str:
        small = values.nbytes <= _SHARED_BYTES
        key = (values.dtype.str, values.shape, values.tobytes() if small else b"")
        if small and key in self._shared:
            return self._shared[key]
        name = self.fresh(name)
        self.initializers[name] = numpy_helper.from_array(values, name)
        if small:
            self._shared[key] = name
        return name

    def _append(
        self, kind: str, inputs: Sequence[str], name: str, outputs: list[str], attributes: dict[str, Any]
    ) -> list[str]:
        node_name = _unique(name, self._names)
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=node_name, **attributes))
        return outputs

    def name_last(self, tensor: str, wanted: str) -> str:
        """Give a tensor that one of the last nodes made, and that nothing reads yet, the name it is wanted under."""
        name = self.fresh(wanted)
        maker = next(node for node in reversed(self.nodes) if tensor in node.output)
        maker.output[list(maker.output).index(tensor)] = name
        return name

    def rename(self, old: str, new: str) -> None:
        """Give a tensor another name, everywhere."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for i, name in enumerate(names):
                    if name == old:
                        names[i] = new


def _unique(name: str, taken: set[str]) -> str:
    candidate, k = name, 0
    while candidate in taken:
        k += 1
        candidate = f"{name}#{k}"
    taken.add(candidate)
    return candidate
