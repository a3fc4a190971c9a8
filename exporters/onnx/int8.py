"""Products of spikes with int8 weights: codes are uint8, sums int32, weights symmetric per output channel.

y[n] = s[n] (sum_k q[n, k] x[k] + c[n]) with s[n] = max|W[n]| / 127, q = round(W / s), c = round(b / s). The
input is exact; the weights and the bias are not. It is written as QuantizeLinear's standard pattern
(DequantizeLinear in front of a Gemm), which onnxruntime runs as one integer product. A convolution
gathers its windows from the uint8 spikes first: runtimes have no fast integer convolution with an
int32 result.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from stdeploy.exporters.onnx.layout import Form, Layouts, Lowered
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.ops import Conv, Linear
from stdeploy.graph.value import Domain
from stdeploy.graph.weight import Array

LARGEST = 127
LARGEST_CODE = 127
"""Of the input: two products of 8-bit numbers still fit 16 bits, which is what older CPUs add them up in."""
BIAS_RANGE = 2**24


def eligible(domain: Domain) -> bool:
    """Whether a product's input is whole numbers that uint8 holds: spikes, and small sums of them."""
    return domain.maximum is not None and domain.maximum <= LARGEST_CODE and domain.scale == 1.0


def overflows(node: Node, domain: Domain) -> bool:
    """Whether an int32 sum of the product could overflow."""
    if not isinstance(node.op, Linear | Conv) or not eligible(domain):
        return False
    terms = node.op.weight.size // max(1, node.op.weight.shape[0])
    return terms * LARGEST * (domain.maximum or 0) + BIAS_RANGE >= 2**31


def takes(node: Node, domain: Domain) -> bool:
    """Whether the product gets int8 weights; the others stay in float32."""
    if not isinstance(node.op, Linear | Conv) or not eligible(domain):
        return False
    per_step = node.op.bias is not None and node.op.bias.ndim == 2
    return not per_step and (isinstance(node.op, Linear) or node.op.groups == 1)


def sort_products(graph: Graph) -> tuple[list[str], list[str]]:
    """Names of the products that get int8 weights, and of those that stay in float32."""
    int8: list[str] = []
    rest: list[str] = []
    for node in graph:
        if isinstance(node.op, Linear | Conv):
            (int8 if takes(node, graph[node.inputs[0]].value.domain) else rest).append(node.name)
    return int8, rest


def quantise(weight: Array, bias: Array | None) -> tuple[Array, Array, Array]:
    """int8 weights [N, K], float32 scales [N] and int32 biases [N] of weight [N, K] and bias [N]."""
    weight = weight.astype(np.float32)
    offset = np.zeros(len(weight), np.float32) if bias is None else bias.astype(np.float32)
    scale = np.maximum(np.abs(weight).max(axis=1, initial=0) / LARGEST, np.abs(offset) / BIAS_RANGE)
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    codes = np.clip(np.round(weight / scale[:, None]), -LARGEST, LARGEST).astype(np.int8)
    return codes, scale, np.round(offset / scale).astype(np.int32)


@dataclass
class Int8:
    """Emits the products; codes of one value are made once."""

    layouts: Layouts
    _codes: dict[int, Lowered] = field(default_factory=dict)

    def rows(self, x: Lowered, form: Form, name: str) -> str:
        """`x` as uint8 in `form`."""
        if id(x) not in self._codes:
            tensor = self.layouts.read(x, x.native, name)
            cast = self.layouts.emitter.op("Cast", [tensor], f"{name}/codes", to=TensorProto.UINT8)
            self._codes[id(x)] = Lowered(x.value, {x.native: cast}, sizes=x.sizes)
        return self.layouts.read(self._codes[id(x)], form, f"{name}/codes")

    def gemm(self, codes: str, weight: Array, bias: Array | None, name: str) -> str:
        """[rows, N] float32 of uint8 [rows, K]."""
        em = self.layouts.emitter
        values, scale, offset = quantise(weight, bias)
        scales = em.constant(scale, f"{name}.weight_scale")
        unit, zero = em.constant(np.asarray(1.0), "unit"), em.array(np.asarray(0, np.uint8), "zero")
        x = em.op("DequantizeLinear", [codes, unit, zero], f"{name}/input")
        zeros8 = em.array(np.zeros(len(scale), np.int8), f"{name}.weight_zero")
        stored = [em.array(values, f"{name}.weight"), scales, zeros8]
        inputs = [x, em.op("DequantizeLinear", stored, f"{name}/weight", axis=0)]
        if bias is not None:
            zeros32 = em.array(np.zeros(len(scale), np.int32), f"{name}.bias_zero")
            stored = [em.array(offset, f"{name}.bias"), scales, zeros32]
            inputs.append(em.op("DequantizeLinear", stored, f"{name}/bias", axis=0))
        return em.op("Gemm", inputs, name, transB=1)

    def conv(self, node: Node, op: Conv, x: Lowered, weight: Array, bias: Array | None) -> Lowered:
        """Rows [lead * positions, N] of a convolution without groups."""
        em, name, spatial = self.layouts.emitter, node.name, x.value.shape[1:]
        kernel, k = op.weight.shape[2:], len(spatial)
        tensor = em.reshape(self.rows(x, "last", name), (-1, *spatial, x.value.shape[0]), name)
        if any(op.padding):
            pads = [0, *op.padding, 0] * 2
            tensor = em.op("Pad", [tensor, em.integers(pads)], f"{name}/pad")
        axes = em.integers(range(1, k + 1))
        parts = []
        for offset in itertools.product(*(range(n) for n in kernel)):
            start = [o * d for o, d in zip(offset, op.dilation, strict=True)]
            sizes = zip(start, node.value.shape[1:], op.stride, strict=True)
            stop = [a + (m - 1) * s + 1 for a, m, s in sizes]
            bounds = [em.integers(start), em.integers(stop), axes, em.integers(op.stride)]
            parts.append(em.op("Slice", [tensor, *bounds], f"{name}/window"))
        tensor = em.op("Concat", parts, f"{name}/windows", axis=k + 1) if len(parts) > 1 else parts[0]
        matrix = np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
        rows = em.reshape(tensor, (-1, math.prod(kernel) * x.value.shape[0]), f"{name}/windows")
        return Lowered(node.value, {"last": self.gemm(rows, matrix, bias, name)})
