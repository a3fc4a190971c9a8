"""Reading a stdeploy NIR file's contract: time, input, output, and which node holds which neuron layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nir
import numpy as np

from stdeploy.errors import UserError
from stdeploy.graph.execution import batch_size, read_out
from stdeploy.graph.weight import Array
from stdeploy.importers.nir import build, timing_of
from stdeploy.importers.nir.document import read_document


class NirFile:
    """A NIR file that stdeploy wrote; UserError where it is damaged or has no contract. `network`: its nodes."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        document = read_document(self.path)
        contract = document.contract
        if contract is None:
            raise UserError(
                f"{self.path} does not say how many steps it runs or what its neurons are",
                hint="only NIR files written by stdeploy export carry that",
            )
        self.metadata, self.steps, self.dt = contract.metadata, contract.steps, contract.dt
        self.input, self.output = contract.input, contract.output
        self.shapes, self.parts, self.counts = contract.shapes, contract.parts, contract.counts
        self.dialect = contract.dialect
        self.network, _ = build(document, timing_of(document, None, None, None))

    def graph(self) -> Any:
        """A fresh nir.NIRGraph, as nir itself reads it, with its type check where the dialect passes that."""
        try:
            return nir.read(self.path, type_check=self.dialect.type_check)
        except (OSError, ValueError, KeyError, TypeError, AssertionError, AttributeError) as error:
            raise UserError(f"nir cannot read {self.path}: {error}", hint="export it again") from error

    def steps_first(self, inputs: Array) -> tuple[Array, bool]:
        """The batch as float32 `[B, C, H, W]` (True: the same at every step) or `[T, B, C, H, W]`.

        UserError that names the expected shape where `inputs` do not have it.
        """
        array = np.asarray(inputs, dtype=np.float32)
        layout, shape = self.input["layout"], list(self.input["shape"])
        batch_size(array, layout, shape, self.steps)
        if layout == "BT":
            array = np.swapaxes(array, 0, 1)
        lead = array.shape[: 1 if layout == "B" else 2]
        full = [*shape, *([1] * (3 - len(shape)))]
        return np.ascontiguousarray(array.reshape(*lead, *full)), layout == "B"

    def outputs(self, steps: Array) -> dict[str, Array]:
        """The graph's output from what the network gave at each step, `[T, B, C, H, W]`."""
        steps = steps.reshape(*steps.shape[:2], *self.output["shape"])
        value = read_out(steps, self.output["over_steps"], self.output["layout"])
        return {str(self.output["label"]): value}

    def forced_nodes(self, forced: Mapping[str, Array], batch: int) -> dict[str, Array]:
        """Forced spikes `[T, B, C, H, W]` float32 by node; UserError on an unknown neuron or wrong shape."""
        unknown = sorted(set(forced) - set(self.parts))
        if unknown:
            raise UserError(f"forced spikes name neurons that the file does not have: {', '.join(unknown)}")
        out = {}
        for name, spikes in forced.items():
            array = np.asarray(spikes, dtype=np.float32)
            wanted = (self.steps, batch, *self.shapes[name])
            if array.shape != wanted:
                raise UserError(f"forced spikes of {name} have shape {array.shape}, the neuron {wanted}")
            array = array.reshape(*wanted, *([1] * (5 - array.ndim)))
            for part in self.parts[name]:
                out[part.node] = array if part.channels is None else array[:, :, part.channels]
        return out

    def neuron_spikes(self, nodes: Mapping[str, Array]) -> dict[str, Array]:
        """Spikes uint8 `[T, B, *shape]` by neuron, from `[T, B, C, H, W]` by node."""
        out = {}
        for name, parts in self.parts.items():
            first = nodes[parts[0].node]
            shape = (*first.shape[:2], *self.shapes[name])
            if parts[0].channels is None:
                out[name] = first.astype(np.uint8).reshape(shape)
                continue
            whole = np.zeros(shape, dtype=np.uint8)
            for part in parts:
                chosen = nodes[part.node].astype(np.uint8)
                whole[:, :, part.channels] = chosen.reshape(*chosen.shape[:3], *shape[3:])
            out[name] = whole
        return out
