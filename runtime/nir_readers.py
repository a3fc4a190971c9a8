"""Other people's NIR readers, unmodified, as executors; and those that cannot run these files, with the reason."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stdeploy.errors import UserError
from stdeploy.exporters.nir.dialect import require_proven
from stdeploy.graph.execution import Execution
from stdeploy.graph.weight import Array
from stdeploy.runtime.nir_file import NirFile
from stdeploy.runtime.nir_runner import Runner

READERS = ("snntorch", "spikingjelly", "spikingjelly-m", "norse", "stdeploy")
"""Readers that run the portable dialect spike for spike."""

REFUSED = {
    "norse-from-nir": "norse 1.1.0's own importer walks depth first and drops inputs where branches meet: 96 % of the"
    " values of three branches' sum were wrong; use norse, the same modules under nirtorch.nir_to_torch",
    "sinabs": "sinabs 3.1.3 decays by exp(-1 / tau) and subtracts the threshold instead of resetting: 32 % of the"
    " spikes were wrong; and it pins nir<=1.0.4, which cannot read a LIF with v_reset",
    "spyx": "spyx 1.0.0 follows one edge out of every node, and its LIF fires a step late: 35 % of the spikes were"
    " wrong",
    "rockpool": "rockpool 3.1.0 maps neither Conv2d nor LIF: 'LIF' object has no attribute 'tau_mem'",
}
"""Readers that do not, with what was measured (docs/nir.md)."""

MEMORY_BYTES = 1 << 30
"""Working set that a batch is cut for."""

_COPIES = 3
"""Values of a neuron's size that a step keeps: membrane, drive and spike."""


class StepModel(Protocol):
    """A loaded network: `steps` yields the output of every step, from reset membranes."""

    def steps(self, inputs: Array, static: bool, count: int) -> Array: ...


class NirReader:
    """One reader of a NIR file as an executor; `name` has the reader's version.

    `reader`: one of READERS. UserError for an unknown or refused reader, or one whose package is missing.
    """

    def __init__(self, file: NirFile | Path | str, reader: str = "snntorch") -> None:
        require_reader(reader)
        self.file = file if isinstance(file, NirFile) else NirFile(file)
        require_dialect(self.file, reader)
        self.reader = reader
        self._probe = Probe(self.file)
        try:
            self.name, self._model = _LOAD[reader](self.file, self._probe)
        except (
            ValueError,
            NotImplementedError,
        ) as error:  # what readers raise at nodes that they do not take
            raise UserError(
                f"{reader} cannot load {self.file.path}: {error}", hint="export with --dialect portable"
            ) from error

    def run(self, inputs: Array, forced: Mapping[str, Array] | None = None) -> Execution:
        """Run a batch given in the file's input layout, from reset membranes, in parts that fit MEMORY_BYTES."""
        array, static = self.file.steps_first(inputs)
        axis = 0 if static else 1
        batch = array.shape[axis]
        teacher = self.file.forced_nodes(forced or {}, batch)
        size = self._chunk()
        parts = []
        for start in range(0, batch, size):
            stop = min(start + size, batch)
            self._probe.start({name: s[:, start:stop] for name, s in teacher.items()})
            piece = np.take(array, range(start, stop), axis=axis)
            steps = self._model.steps(piece, static, self.file.steps)
            outputs, spikes = self.file.outputs(steps), self.file.neuron_spikes(self._probe.collect())
            parts.append(Execution(outputs, spikes))
        return self._join(parts)

    def _chunk(self) -> int:
        counts = self.file.counts
        neurons = sum(int(n) for key, n in counts.items() if key.endswith("_neurons"))
        spikes = self.file.steps * sum(int(math.prod(s)) for s in self.file.shapes.values())
        steps = self.file.steps if self.reader == "spikingjelly-m" else 1
        sample = 4 * _COPIES * neurons * steps + 2 * spikes
        return max(1, MEMORY_BYTES // max(1, sample))

    def _join(self, parts: list[Execution]) -> Execution:
        axis = 1 if self.file.output["layout"] == "TB" else 0
        outputs = {k: np.concatenate([p.outputs[k] for p in parts], axis) for k in parts[0].outputs}
        spikes = {k: np.concatenate([p.spikes[k] for p in parts], 1) for k in parts[0].spikes}
        return Execution(outputs, spikes)


def require_reader(reader: str) -> None:
    """UserError where no file of ours runs in `reader`, with what was measured."""
    if reader in REFUSED:
        raise UserError(f"{reader} cannot run this file: {REFUSED[reader]}", hint=f"use {', '.join(READERS)}")
    if reader not in READERS:
        raise UserError(f"unknown NIR reader {reader!r}", hint=f"known: {', '.join(READERS)}")


def require_dialect(file: NirFile, reader: str) -> None:
    """UserError where the file's dialect was not proven in `reader`; the file says in which it was."""
    if file.dialect.proven_in is not None:
        label = f"{file.dialect.name} of {file.path}"
        require_proven(label, file.dialect.proven_in, file.dialect.refused_by, reader)


class Probe:
    """Records what the nodes of model neurons compute, and hands out forced spikes in its place."""

    def __init__(self, file: NirFile) -> None:
        self.nodes = {p.node for parts in file.parts.values() for p in parts}
        self._forced: dict[str, Array] = {}
        self._seen: dict[str, list[Array]] = {}

    def start(self, forced: Mapping[str, Array]) -> None:
        self._forced = dict(forced)
        self._seen = {name: [] for name in self.nodes}

    def see(self, node: str, spikes: Array) -> Array | None:
        """Note a step's spikes `[B, C, H, W]`; the forced ones where there are."""
        step = len(self._seen[node])
        self._seen[node].append(spikes.astype(np.uint8))
        return self._forced[node][step] if node in self._forced else None

    def see_all(self, node: str, spikes: Array) -> Array | None:
        """As `see`, for all steps at once `[T, B, C, H, W]`."""
        self._seen[node] = list(spikes.astype(np.uint8))
        return self._forced.get(node)

    def collect(self) -> dict[str, Array]:
        return {name: np.stack(steps) for name, steps in self._seen.items()}


class TorchModel:
    """A reader's fx.GraphModule, driven step by step (or all steps at once), with a hook on each neuron."""

    def __init__(self, module: Any, probe: Probe, *, multi_step: bool = False, reset: Any = None) -> None:
        self.module, self.probe, self.multi_step, self.reset = module, probe, multi_step, reset
        modules = dict(module.named_children())
        for node in probe.nodes:
            modules[node.replace(".", "_")].register_forward_hook(partial(self._hook, node))

    def _hook(self, node: str, _module: Any, _args: Any, output: Any) -> Any:
        import torch

        pair = isinstance(output, tuple)
        spikes = (output[0] if pair else output).detach().numpy()
        forced = (self.probe.see_all if self.multi_step else self.probe.see)(node, spikes)
        if forced is None:
            return None
        given = torch.from_numpy(np.ascontiguousarray(forced))
        return (given, *output[1:]) if pair else given

    def steps(self, inputs: Array, static: bool, count: int) -> Array:
        import torch

        if self.reset is not None:
            self.reset(self.module)
        with torch.inference_mode():
            if self.multi_step:
                every = np.stack([inputs] * count) if static else inputs
                output = self.module(torch.from_numpy(np.ascontiguousarray(every)))[0]
                whole: Array = output.numpy()
                return whole
            state, seen = None, []
            for t in range(count):
                x = torch.from_numpy(inputs if static else np.ascontiguousarray(inputs[t]))
                output, state = self.module(x, state)
                seen.append(output.numpy().copy())
            return np.stack(seen)


def _require(package: str, extra: str) -> str:
    """The package's version; UserError that says how to install it."""
    try:
        importlib.import_module(package)
        return importlib.metadata.version(package)
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] == package:
            raise UserError(f"{package} is not installed", hint=f'pip install "stdeploy[{extra}]"') from error
        raise UserError(f"{package} is installed but does not import: {error}") from error
    except RuntimeError as error:  # snntorch imports torchvision, which fails so where it does not fit torch
        raise UserError(
            f"{package} is installed but does not import: {error}",
            hint="torchvision has to come from the same index and release as torch: reinstall both together",
        ) from error


def _snntorch(file: NirFile, probe: Probe) -> tuple[str, StepModel]:
    version = _require("snntorch", "readers")
    from snntorch import utils
    from snntorch.import_nir import import_from_nir

    with contextlib.redirect_stdout(io.StringIO()):  # it prints every scaled threshold
        module = import_from_nir(file.graph())
    return f"snntorch {version}", TorchModel(module, probe, reset=utils.reset)


def _spikingjelly(mode: str, file: NirFile, probe: Probe) -> tuple[str, StepModel]:
    version = _require("spikingjelly", "spikingjelly")
    try:
        from spikingjelly.activation_based.nir_exchange import import_from_nir
    except ImportError as error:
        raise UserError(
            f"spikingjelly {version} does not read NIR here: {error}", hint='pip install "stdeploy[readers]"'
        ) from error
    module = import_from_nir(file.graph(), dt=file.dt, step_mode=mode)
    return f"spikingjelly {version} {mode}", TorchModel(module, probe, multi_step=mode == "m")


def _norse(file: NirFile, probe: Probe) -> tuple[str, StepModel]:
    """Norse's own modules; its from_nir uses nirtorch.load, which gets branches wrong."""
    version = _require("norse", "readers")
    import nir
    import nirtorch
    from norse.torch.utils.import_nir import _import_norse_module

    module = nirtorch.nir_to_torch(file.graph(), {nir.LIF: partial(_import_norse_module, dt=file.dt)})
    return f"norse {version} modules in nirtorch {importlib.metadata.version('nirtorch')}", TorchModel(
        module, probe
    )


def _own(file: NirFile, probe: Probe) -> tuple[str, StepModel]:
    return "stdeploy NIR runner", Runner(file.network, file.dt, probe.nodes, probe.see)


_LOAD: dict[str, Callable[[NirFile, Probe], tuple[str, StepModel]]] = {
    "snntorch": _snntorch,
    "spikingjelly": partial(_spikingjelly, "s"),
    "spikingjelly-m": partial(_spikingjelly, "m"),
    "norse": _norse,
    "stdeploy": _own,
}
