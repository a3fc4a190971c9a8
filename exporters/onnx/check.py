"""What the ONNX target takes: its options, and everything in a graph that it must refuse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stdeploy.errors import Unsupported, UserError
from stdeploy.exporters.onnx.int8 import overflows
from stdeploy.exporters.options import known_options, require_choice, require_flags
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.value import REAL
from stdeploy.graph.weight import Array, Weight

OPSETS = range(17, 22)


@dataclass(frozen=True)
class Options:
    """How the file is to be written.

    `opset`: standard operator set, 17 to 21. `spikes`: also output every neuron layer's spikes. `sparse`:
    weights as sparse initialisers where that is smaller. `precision`: fp32, or fp16 for every tensor.
    `weights`: fp32, or int8 (per output channel, symmetric) for products of spikes. fp16 and int8 are
    approximate.
    """

    opset: int = 17
    spikes: bool = False
    sparse: bool = False
    precision: str = "fp32"
    weights: str = "fp32"

    @property
    def approximate(self) -> str:
        """What makes the file differ from the network, for its metadata; empty where nothing does."""
        found = [
            text
            for on, text in ((self.precision == "fp16", "fp16"), (self.weights == "int8", "int8 weights"))
            if on
        ]
        return ", ".join(found)

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None) -> Options:
        """UserError where an option is unknown, has a value that it cannot have, or does not go with another."""
        given = known_options("ONNX", cls, options)
        opset = given.get("opset", cls.opset)
        if isinstance(opset, bool) or not isinstance(opset, int) or opset not in OPSETS:
            raise UserError(f"opset {opset!r} is not supported", hint=f"use {OPSETS[0]} to {OPSETS[-1]}")
        require_flags(given, "spikes", "sparse")
        require_choice(given, "precision", ("fp32", "fp16"))
        require_choice(given, "weights", ("fp32", "int8"))
        parsed = cls(**given)
        if parsed.weights == "int8" and (parsed.sparse or parsed.precision == "fp16"):
            other = "sparse" if parsed.sparse else "fp16"
            raise UserError(
                f"int8 weights and {other} do not go together",
                hint="an index of a sparse weight takes 8 bytes" if parsed.sparse else "choose one of them",
            )
        return parsed


def offenders(graph: Graph, known: frozenset[type[ops.Op]], options: Options) -> list[Unsupported]:
    """Everything in `graph` that cannot be written, all at once."""
    found = [item for node in graph for item in _node(graph, node, known, options)]
    if len(graph.inputs) != 1:
        reason = f"the graph has {len(graph.inputs)} inputs; the target takes one"
        found.append(Unsupported("", "Input", reason))
    labels = [n.op.label for n in graph.outputs if isinstance(n.op, ops.Output)]
    taken = {n.name for n in graph.inputs}
    for node, label in zip(graph.outputs, labels, strict=True):
        if label in taken:
            found.append(Unsupported(_where(node), "Output", f"the name {label!r} is taken"))
        taken.add(label)
    return found


def _where(node: Node) -> str:
    return node.source or node.name


def _node(
    graph: Graph, node: Node, known: frozenset[type[ops.Op]], options: Options
) -> Iterator[Unsupported]:
    if type(node.op) not in known:
        yield Unsupported(_where(node), node.kind, "no ONNX lowering for this operator")
        return
    if 0 in node.value.shape:
        yield Unsupported(_where(node), node.kind, f"nothing is left of it (shape {node.value.shape})")
    number = np.float16 if options.precision == "fp16" else np.float32
    for label, array in _arrays(node.op):
        with np.errstate(over="ignore"):
            finite = np.all(np.isfinite(array.astype(number)))
        if not finite:
            reason = f"its {label} has values that {number.__name__} cannot hold (infinite, or not a number)"
            yield Unsupported(_where(node), node.kind, reason, "check the checkpoint")
    if options.weights == "int8" and overflows(
        node, graph[node.inputs[0]].value.domain if node.inputs else REAL
    ):
        yield Unsupported(_where(node), node.kind, "its sums of int8 products could overflow int32")
    if options.precision == "fp16" and isinstance(node.op, ops.Select):
        yield Unsupported(_where(node), node.kind, "float16 scores are too coarse to rank tokens by")
    if isinstance(node.op, ops.Neuron) and node.op.tau is not None and np.any(node.op.tau <= 0):
        yield Unsupported(_where(node), node.kind, "tau is not positive")


def _arrays(op: ops.Op) -> Iterator[tuple[str, Array]]:
    for label, value in vars(op).items():
        if isinstance(value, Weight):
            array = value.data if value.is_csr else value.values
            if array is not None:
                yield label, array
        elif isinstance(value, np.ndarray) and label != "kept":
            yield label, value
        elif isinstance(value, float):
            yield label, np.asarray(value)
