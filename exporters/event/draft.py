"""A program while it is written: buffers, stages, and the two arrays that hold every weight and every table."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from stdeploy.exporters.event.formats import Format, Layout, route
from stdeploy.graph.graph import Graph, Node
from stdeploy.graph.weight import Array

COUNTED = {"Rows", "Columns", "Tokens", "Pairs", "Product", "Gate"}
"""Stages that do synaptic operations; products of elements (Elementwise) do too."""
ALIGNED = 16
"""Elements: places in the arrays are multiples of 64 bytes."""
LARGEST = np.iinfo(np.int32).max
"""Of the numbers in tables."""


class TooLargeError(ValueError):
    """A table's numbers do not fit its type."""


class Blob:
    """One array that grows; what is put in twice lies there once."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self._parts: list[Array] = []
        self._places: dict[bytes, int] = {}
        self._size = 0

    def add(self, array: Any) -> int:
        """Store `array`, flat; its first element's index. TooLargeError where it holds an integer above LARGEST."""
        given = np.asarray(array)
        if self.dtype.kind == "i" and given.size and given.max() > LARGEST:
            raise TooLargeError(f"its table would count to {given.max():,}, the engine counts to {LARGEST:,}")
        flat = np.ascontiguousarray(given, dtype=self.dtype).reshape(-1)
        key = hashlib.sha256(flat.tobytes()).digest()
        if key in self._places:
            return self._places[key]
        place = self._places[key] = self._size
        padded = np.zeros(-(-flat.size // ALIGNED) * ALIGNED, self.dtype)
        padded[: flat.size] = flat
        self._parts.append(padded)
        self._size += padded.size
        return place

    def array(self) -> Array:
        """All of it."""
        return np.concatenate([*self._parts, np.zeros(ALIGNED, self.dtype)])


@dataclass
class Draft:
    """Stages in order; what values lie where, in which formats.

    A stage is plain data: `op`, `nodes` (names of the graph's nodes that it does), `places` (field: buffer), `fields`
    (field: integer), `steps` (fields that are T or, if the value has none, 1), `state` (floats kept from step to
    step), `once` (it is the same at every step), `counted` (it does synaptic operations: "step" or "static", as its
    input is; the first of its nodes is the product).
    """

    graph: Graph
    floats: Blob = field(default_factory=lambda: Blob(np.float32))
    ints: Blob = field(default_factory=lambda: Blob(np.int32))
    buffers: dict[str, dict[str, Any]] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    held: dict[str, dict[Format, str]] = field(default_factory=dict)

    def layout(self, name: str) -> Layout:
        """Sizes of a node's value."""
        return Layout.of(self.graph[name].value)

    def buffer(self, name: str, kind: str, count: int, stepped: bool) -> str:
        """A new buffer of `count` elements a step: bits (uint64), floats or ints."""
        self.buffers[name] = {"kind": kind, "count": count, "stepped": stepped}
        return name

    def hold(self, node: Node, form: Format) -> str:
        """The buffer of a node's value in a format that its stage writes."""
        layout = self.layout(node.name)
        kind = "bits" if form.endswith("bits") else "floats"
        name = self.buffer(f"{node.name} as {form}", kind, layout.count(form), layout.stepped)
        self.held.setdefault(node.name, {})[form] = name
        return name

    def has(self, name: str, form: Format) -> bool:
        return form in self.held[name]

    def stage(
        self,
        op: str,
        nodes: list[str],
        places: dict[str, str],
        fields: dict[str, int],
        steps: dict[str, bool],
        *,
        state: int = 0,
        once: bool = False,
    ) -> None:
        """Append a stage."""
        counted = op in COUNTED or (op == "Elementwise" and fields["multiply"])
        stepped = steps.get("steps")
        self.stages.append(
            {
                "op": op,
                "nodes": nodes,
                "places": places,
                "fields": {k: int(v) for k, v in fields.items()},
                "steps": steps,
                "state": state,
                "once": once,
                "counted": ("step" if stepped else "static") if counted else None,
            }
        )

    def need(self, name: str, form: Format) -> str:
        """The buffer of a value in `form`, converted where it is not there yet."""
        layout = self.layout(name)
        way = route(list(self.held[name]), form, bits=layout.planes > 0)
        for before, after in pairwise(way):
            self._convert(name, before, after, layout)
        return self.held[name][form]

    def _convert(self, name: str, before: Format, after: Format, layout: Layout) -> None:
        node = self.graph[name]
        x = self.held[name][before]
        places = {"x": x, "y": self.hold(node, after)}
        sizes = {"channels": layout.channels, "positions": layout.positions}
        if before.endswith("bits") and after.endswith("bits"):
            op, fields = "Turn", {"planes": layout.planes, "to_positions": after == "position bits"}
        elif before.endswith("floats") and after.endswith("floats"):
            op, fields = "Flip", {"to_positions": after == "position floats"}
        else:
            op = "Unpack" if before.endswith("bits") else "Pack"
            fields = {"planes": layout.planes, "unit": self.floats.add([layout.unit])}
        self.stage(
            op,
            [name],
            places,
            {**sizes, **fields},
            {"steps": layout.stepped},
            once=node.value.time == "static",
        )
