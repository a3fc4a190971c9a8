"""An exported Lava folder in numpy, without Lava and without its pipeline: the processes' rules, one step at a time.

float: lava-nc's floating_pt models in float64. fixed: its fixed_pt (bit-accurate) models in int64, with Loihi's
rounding towards zero, wrapped currents and clipped membranes, so that Lava has to match every bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from stdeploy import __version__
from stdeploy.graph.execution import Execution, batch_size
from stdeploy.graph.weight import Array
from stdeploy.runtime.lava_folder import LavaFolder

CURRENT_SHIFT, STATE_LIMIT = 6, 1 << 23
"""Loihi aligns a synaptic sum with its 24-bit states by 6 bits (lava.proc.lif, act_shift and uv_bitwidth)."""


class LavaReference:
    """Executor of a folder; needs numpy and scipy only."""

    def __init__(self, folder: LavaFolder | Path | str) -> None:
        self.file = folder if isinstance(folder, LavaFolder) else LavaFolder(folder)
        self.fixed = self.file.fixed
        self.name = f"stdeploy {__version__} Lava reference, {'int64' if self.fixed else 'float64'}"
        self.matrices = {p["name"]: self._matrix(p) for p in self.file.processes if p["kind"] == "synapses"}

    def run(self, inputs: Array, forced: Mapping[str, Array] | None = None) -> Execution:
        """Run a batch; UserError where it does not fit."""
        file = self.file
        count = batch_size(np.asarray(inputs), file.layout, file.input_shape, file.steps)
        frames = file.frames(np.asarray(inputs))
        teachers = file.populations(forced or {}, count)
        state: dict[str, Array] = {}
        own: dict[str, list[Array]] = {p["name"]: [] for p in file.processes if p["kind"] == "population"}
        outputs = []
        for t in range(file.steps):
            sent: dict[str, Array] = {}
            for process in file.processes:
                name = process["name"]
                gathered = {
                    port: sum(sent[source] for source in sources)
                    for port, sources in process["inputs"].items()
                }
                sent[name] = (
                    frames[t] if process["kind"] == "source" else self._step(process, gathered, state)
                )
                if name in own:
                    own[name].append(sent[name].astype(np.uint8))
                if name in teachers:
                    sent[name] = teachers[name][t].astype(sent[name].dtype)
            outputs.append(sum(sent[name] for name in file.output["processes"]))
        spikes = file.layers({name: np.stack(parts) for name, parts in own.items()}, count)
        return Execution({file.label: file.read_out(np.stack(outputs), count)}, spikes)

    def _matrix(self, process: dict[str, Any]) -> sparse.csr_matrix:
        small, positions = self.file.matrix(process), process["positions"]
        whole = small if positions == 1 else sparse.kron(small, sparse.identity(positions), format="csr")
        return sparse.csr_matrix(whole.astype(np.int64 if self.fixed else np.float64))

    def _step(self, process: dict[str, Any], gathered: dict[str, Any], state: dict[str, Array]) -> Array:
        kind = process["kind"]
        if kind == "synapses":
            total = np.asarray(self.matrices[process["name"]] @ gathered["s_in"])
            exponent = process["exponent"]
            return total << exponent if exponent > 0 else total >> -exponent if exponent else total
        if kind == "delay":
            return np.asarray(gathered["s_in"])
        if kind == "attention":
            return _attention(process, gathered)
        return self._fire(process, gathered["a_in"], state)

    def _fire(self, process: dict[str, Any], drive: Array, state: dict[str, Array]) -> Array:
        """lava.proc.lif.models: v (1 - leak) + a + bias, v > threshold, reset to zero."""
        name = process["name"]
        bias = self.file.bias(process)[:, None]
        v = state.get(name, np.zeros_like(drive))
        leak, threshold = process["leak"], process["threshold"]
        if self.fixed:
            state[name], fired = fire_fixed(v, drive, bias, leak, threshold)
        else:
            v = v * (1 - leak) + drive + bias
            fired = v > threshold
            state[name] = np.where(fired, 0, v)
        return np.asarray(fired, drive.dtype)


def fire_fixed(v: Array, drive: Array, bias: Array, decay: int, threshold: int) -> tuple[Array, Array]:
    """One step of lava-nc's bit-accurate LIF with a current that is not carried on: the new membrane, and who fired."""
    current = drive << CURRENT_SHIFT
    current = np.where(current > STATE_LIMIT, current - 2 * STATE_LIMIT, current)
    current = np.where(current <= -STATE_LIMIT, current + 2 * STATE_LIMIT, current)
    kept = np.sign(v) * ((np.abs(v) * (4096 - decay)) >> 12)
    v = np.clip(kept + current + bias, 1 - STATE_LIMIT, STATE_LIMIT - 1)
    fired = v > threshold << CURRENT_SHIFT
    return np.where(fired, 0, v), fired


def _attention(process: dict[str, Any], gathered: dict[str, Any]) -> Array:
    tokens = process["tokens"]
    if "qkv" in gathered:
        rows = sum(process["heads_q"]) * tokens
        q, k, v = np.split(gathered["qkv"], [rows, 2 * rows])
    else:
        q, k, v = (gathered[port] for port in ("q", "k", "v"))
    count = q.shape[-1]
    q, k, v = (np.moveaxis(x.reshape(-1, tokens, count), -1, 0) for x in (q, k, v))
    out, row, column = np.empty_like(v), 0, 0
    for d, e in zip(process["heads_q"], process["heads_v"], strict=True):
        pairs = k[:, row : row + d] @ v[:, column : column + e].swapaxes(1, 2)
        out[:, column : column + e] = pairs.swapaxes(1, 2) @ q[:, row : row + d]
        row, column = row + d, column + e
    return np.moveaxis(out, 0, -1).reshape(-1, count)
