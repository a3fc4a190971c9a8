"""Basic facts about ONNX files, read from the files alone."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from stdeploy.errors import UserError


def describe(path: Path) -> dict[str, Any]:
    """Size, node kinds and metadata of an .onnx file; UserError where it cannot be read."""
    if not path.is_file():
        raise UserError(f"{path} is a folder" if path.is_dir() else f"{path} does not exist")
    facts: dict[str, Any] = {"file": str(path), "size_bytes": path.stat().st_size}
    return {**facts, **_onnx(path)}


def _onnx(path: Path) -> dict[str, Any]:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(str(path))
    except (DecodeError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable ONNX file: {error}") from error
    graph = model.graph
    return {
        "opset": ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import),
        "inputs": ", ".join(_tensor(v) for v in graph.input),
        "outputs": ", ".join(_tensor(v) for v in graph.output),
        "nodes": len(graph.node),
        "operators": _counts(n.op_type for n in graph.node),
        "weights": _stored(graph),
        **{f"meta {p.key}": _short(p.value) for p in model.metadata_props},
    }


def _stored(graph: Any) -> str:
    """Initialisers by element type with their elements; sparse ones with their nonzeros."""
    import onnx

    elements: Counter[str] = Counter()
    for tensor in graph.initializer:
        elements[onnx.TensorProto.DataType.Name(tensor.data_type).lower()] += math.prod(tensor.dims)
    text = [f"{kind} {number:,}" for kind, number in elements.most_common()]
    if graph.sparse_initializer:
        nonzero = sum(math.prod(tensor.values.dims) for tensor in graph.sparse_initializer)
        total = sum(math.prod(tensor.dims) for tensor in graph.sparse_initializer)
        text.append(f"sparse {nonzero:,} of {total:,} in {len(graph.sparse_initializer)}")
    return ", ".join(text)


def _tensor(info: Any) -> str:
    dims = [d.dim_param or str(d.dim_value) for d in info.type.tensor_type.shape.dim]
    return f"{info.name}[{','.join(dims)}]"


def _counts(kinds: Any) -> str:
    return ", ".join(f"{kind} {n}" for kind, n in Counter(kinds).most_common())


def _short(value: Any, limit: int = 160) -> str:
    text = str(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
