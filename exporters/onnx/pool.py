"""Pooling with the padding written out, because runtimes disagree on what `ceil_mode` means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stdeploy.exporters.onnx.layout import Layouts, Lowered
from stdeploy.graph.graph import Node
from stdeploy.graph.ops import AvgPool, MaxPool


def _pads(
    x: Lowered, node: Node, op: MaxPool | AvgPool, dilation: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Padding before and after each axis such that plain floor division yields the node's shape."""
    sizes = zip(
        x.value.shape[1:], node.value.shape[1:], op.kernel, op.stride, op.padding, dilation, strict=True
    )
    after = [max(0, (m - 1) * s + d * (k - 1) + 1 - n - p) for n, m, k, s, p, d in sizes]
    return list(op.padding), after


def emit_maxpool(layouts: Layouts, node: Node, op: MaxPool, x: Lowered) -> Lowered:
    """MaxPool over explicit padding, which never wins."""
    before, after = _pads(x, node, op, op.dilation)
    tensor = layouts.read(x, "first", node.name)
    y = layouts.emitter.op(
        "MaxPool",
        [tensor],
        node.name,
        kernel_shape=list(op.kernel),
        strides=list(op.stride),
        pads=[*before, *after],
        dilations=list(op.dilation),
    )
    return Lowered(node.value, {"first": y})


def emit_avgpool(layouts: Layouts, node: Node, op: AvgPool, x: Lowered) -> Lowered:
    """AveragePool; where ceil mode reaches beyond counted padding, PyTorch's smaller divisor is restored."""
    em = layouts.emitter
    before, after = _pads(x, node, op, (1,) * len(op.kernel))
    y = em.op(
        "AveragePool",
        [layouts.read(x, "first", node.name)],
        node.name,
        kernel_shape=list(op.kernel),
        strides=list(op.stride),
        pads=[*before, *after],
        count_include_pad=int(op.count_include_pad),
    )
    counted = _counted(x, node, op)
    if op.count_include_pad and np.any(counted != np.prod(op.kernel)):
        factor = em.constant(np.prod(op.kernel) / counted, f"{node.name}.divisor")
        y = em.op("Mul", [y, factor], f"{node.name}/divisor")
    return Lowered(node.value, {"first": y})


def _counted(x: Lowered, node: Node, op: AvgPool) -> np.ndarray:
    """[*out] how many positions of each window lie within the input and its stated padding."""
    total = np.ones((), dtype=np.int64)
    for n, m, k, s, p in zip(
        x.value.shape[1:], node.value.shape[1:], op.kernel, op.stride, op.padding, strict=True
    ):
        start = np.arange(m) * s
        total = np.multiply.outer(total, np.minimum(start + k, n + 2 * p) - start)
    return total
