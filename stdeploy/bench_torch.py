"""PyTorch's candidates for the benchmark: the user's model as it is, compiled, and as torch's own ONNX export.

Worker processes call these factories by name; see `stdeploy.runtime.bench.worker`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from stdeploy.checkpoint_foreign import open_checkpoint
from stdeploy.errors import UserError
from stdeploy.graph.weight import Array
from stdeploy.trace.neurons import is_neuron
from stdeploy.trace.opaque import settings_applied

_SETTINGS = contextlib.ExitStack()
"""Holds the settings of every opened model: they are to last as long as the process."""


class TorchCandidate:
    """A model in PyTorch; neurons that keep their membrane are reset before each call, as a user has to.

    `one_by_one`: the model leaks from sample to sample and is right for one at a time only, so a batch is
    as many calls.
    """

    def __init__(self, module: nn.Module, device: str, compiled: bool, one_by_one: bool, axis: int) -> None:
        self.module = module.to(device)
        self.call = torch.compile(self.module) if compiled else self.module
        self.stateful = _stateful(module)
        self.device, self.one_by_one, self.axis = device, one_by_one, axis
        where = f"CPU {torch.get_num_threads()} threads" if device == "cpu" else torch.cuda.get_device_name(0)
        self.name = f"torch {torch.__version__}{' compiled' if compiled else ''} {where}"

    def prepare(self, inputs: Array) -> _TorchRun:
        """The model with a batch, which stays on the device."""
        parts = np.split(inputs, inputs.shape[self.axis], self.axis) if self.one_by_one else [inputs]
        return _TorchRun(self, [torch.from_numpy(np.ascontiguousarray(p)).to(self.device) for p in parts])


class _TorchRun:
    def __init__(self, owner: TorchCandidate, parts: list[torch.Tensor]) -> None:
        self.owner, self.parts = owner, parts
        self.last: list[Any] = []

    def call(self) -> None:
        """One forward pass in inference mode, done when it returns."""
        owner = self.owner
        with torch.inference_mode():
            self.last = []
            for part in self.parts:
                for module in owner.stateful:
                    module.reset()  # type: ignore[operator]
                self.last.append(owner.call(part))
        if owner.device != "cpu":
            torch.cuda.synchronize()

    def outputs(self) -> dict[str, Array]:
        """Tensors of the result in the order in which the model returns them."""
        leaves = [[t for t in pytree.tree_leaves(r) if isinstance(t, torch.Tensor)] for r in self.last]
        return {str(i): torch.cat(ts).cpu().numpy() for i, ts in enumerate(zip(*leaves, strict=True))}


def torch_model(
    path: str,
    threads: int,
    *,
    compiled: bool = False,
    device: str = "cpu",
    one_by_one: bool = False,
    axis: int = 0,
    **options: Any,
) -> TorchCandidate:
    """A checkpoint's model as a candidate; `options` as `opened` takes them."""
    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):  # it can be set once only
        torch.set_num_interop_threads(1)
    if device != "cpu" and not torch.cuda.is_available():
        raise UserError("this torch finds no CUDA device", hint="--device cpu")
    return TorchCandidate(opened(path, **options), device, compiled, one_by_one, axis)


def opened(
    path: str,
    model: str | None = None,
    state_dict_key: str | None = None,
    neuron: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The model in a checkpoint, with the user's neuron settings for good."""
    module = open_checkpoint(path, model=model, key=state_dict_key).module
    _SETTINGS.enter_context(settings_applied(module, neuron or {}, is_neuron))
    return module


def _stateful(module: nn.Module) -> list[nn.Module]:
    """Neurons that keep their membrane from call to call."""
    return [m for m in module.modules() if is_neuron(m) and callable(getattr(m, "reset", None))]


class _Exported:
    """What the process that exported tells; there is nothing to run in it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def prepare(self, inputs: Array) -> Any:
        """Never called: the file runs in another process."""
        raise UserError("an export cannot be run; its file can")


def torch_onnx(
    path: str, files: Mapping[str, str], shape: Sequence[int], axis: int, threads: int, **options: Any
) -> _Exported:
    """Write `torch.onnx.export(dynamo=True)` of a checkpoint, one file for each batch size with the size fixed.

    `files`: path by batch size. `shape`: a batch of one; its `axis` is the batch's. A fixed size is torch's
    best case: sizes are constants that it folds.
    """
    torch.set_num_threads(threads)
    module = opened(path, **options)
    for batch, file in files.items():
        sizes = list(shape)
        sizes[axis] = int(batch)
        for child in _stateful(module):
            child.reset()  # type: ignore[operator]
        torch.onnx.export(
            module, (torch.zeros(sizes),), Path(file), dynamo=True, external_data=False, verbose=False
        )
    return _Exported(f"torch {torch.__version__} torch.onnx.export(dynamo=True)")
