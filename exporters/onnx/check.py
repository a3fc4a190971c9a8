"""What the ONNX target takes: its options, and everything in a graph that it must refuse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stdeploy.errors import Unsupported, UserError
from stdeploy.graph import ops
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.weight import Array, Weight

OPSETS = range(17, 22)


@dataclass(frozen=True)
class Options:
    """`opset`: standard operator set, 17 to 21. `spikes`: also output every neuron layer's spikes."""

    opset: int = 17
    spikes: bool = False

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None) -> Options:
        """UserError where an option is unknown or has a value that it cannot have."""
        given = dict(options or {})
        unknown = sorted(set(given) - {"opset", "spikes"})
        if unknown:
            raise UserError(
                f"the ONNX target has no option {', '.join(unknown)}", hint="known: opset, spikes"
            )
        opset, spikes = given.get("opset", cls.opset), given.get("spikes", cls.spikes)
        if isinstance(opset, bool) or not isinstance(opset, int) or opset not in OPSETS:
            raise UserError(f"opset {opset!r} is not supported", hint=f"use {OPSETS[0]} to {OPSETS[-1]}")
        if not isinstance(spikes, bool):
            raise UserError(f"spikes is true or false, not {spikes!r}")
        return cls(opset, spikes)


def offenders(graph: Graph, known: frozenset[type[ops.Op]]) -> list[Unsupported]:
    """Everything in `graph` that cannot be written, all at once."""
    found = [item for node in graph for item in _node(node, known)]
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


def _node(node: Node, known: frozenset[type[ops.Op]]) -> Iterator[Unsupported]:
    if type(node.op) not in known:
        yield Unsupported(_where(node), node.kind, "no ONNX lowering for this operator")
        return
    if 0 in node.value.shape:
        yield Unsupported(_where(node), node.kind, f"nothing is left of it (shape {node.value.shape})")
    for label, array in _arrays(node.op):
        with np.errstate(over="ignore"):
            finite = np.all(np.isfinite(array.astype(np.float32)))
        if not finite:
            reason = f"its {label} has values that float32 cannot hold (infinite, or not a number)"
            yield Unsupported(_where(node), node.kind, reason, "check the checkpoint")
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
