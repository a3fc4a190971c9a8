"""trace: a user's PyTorch model to a graph, and the model itself as an executor beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from stdeploy.errors import UnsupportedError, UserError
from stdeploy.graph import Graph, ParameterError, validate
from stdeploy.graph.execution import Execution
from stdeploy.graph.interpreter import check_forced, steps_first
from stdeploy.graph.ops import Output
from stdeploy.graph.weight import Array
from stdeploy.trace.aten_border import without_overwritten
from stdeploy.trace.aten_neuron import leaks
from stdeploy.trace.axes import Role, arrange, restore
from stdeploy.trace.lowering import Ranked, Recorded
from stdeploy.trace.neurons import NeuronSpec, check_settings, is_neuron, read_neurons
from stdeploy.trace.opaque import forwards, settings_applied
from stdeploy.trace.program import (
    check_evaluated,
    check_precision,
    decomposed,
    example_batch,
    export_program,
    placement,
)
from stdeploy.trace.ranking import UNLIKE_TRACE, UNLIKE_TRACE_HINT, RankingMode, rankings_of
from stdeploy.trace.tracer import InputSpec, refuse_all, translate

InputLayout = Literal["B", "BT", "TB"]

_LEAD: dict[str, tuple[Role, ...]] = {"B": ("batch",), "BT": ("batch", "time"), "TB": ("time", "batch")}


@dataclass(frozen=True, eq=False)
class TracedModel:
    """A graph and the module that it was traced from; `run` executes the module, not the graph."""

    graph: Graph
    module: nn.Module
    neurons: Mapping[str, list[Recorded]]
    outputs: Mapping[int, Recorded]
    settings: Mapping[str, Any]
    stateful: frozenset[str]
    one_by_one: bool = False
    ranked: tuple[Ranked, ...] = ()
    rankings: int = 0

    @property
    def name(self) -> str:
        return f"torch {type(self.module).__name__}"

    def run(self, inputs: Array, forced: Mapping[str, Array] | None = None) -> Execution:
        """Run the user's model on a batch in the Input's layout, in its own floating-point type.

        Of equal scores its selections take the token with the lower index (stdeploy.trace.ranking).
        `forced` as in Executor. Where the model's neurons would leak from sample to sample (`one_by_one`), it
        runs one sample at a time. UserError where the input's shape does not fit, or forced names are unknown.
        """
        if not self.one_by_one:
            return self._run(inputs, forced)
        array, axis = np.asarray(inputs), 1 if self._layout() == "TB" else 0
        samples = array.shape[axis] if array.ndim > axis else 1
        parts = [
            self._run(
                array.take(range(i, i + 1), axis),
                {n: np.asarray(s)[:, i : i + 1] for n, s in (forced or {}).items()},
            )
            for i in range(samples)
        ]
        axes = {n.op.label: int(n.op.layout == "TB") for n in self.graph.outputs if isinstance(n.op, Output)}
        return Execution(
            outputs={k: np.concatenate([p.outputs[k] for p in parts], a) for k, a in axes.items()},
            spikes={k: np.concatenate([p.spikes[k] for p in parts], 1) for k in parts[0].spikes},
            selections={k: np.concatenate([p.selections[k] for p in parts], 1) for k in parts[0].selections},
        )

    def _run(self, inputs: Array, forced: Mapping[str, Array] | None) -> Execution:
        node = self.graph.inputs[0]
        array = np.asarray(inputs)
        batch = steps_first(node, array, self.graph.steps).shape[0 if self._layout() == "B" else 1]
        forced = dict(forced or {})
        check_forced(self.graph, forced)
        check_evaluated(self.module)
        spikes: dict[str, Array] = {}
        replaced = {
            path: self._recording(path, self.module.get_submodule(path).forward, spikes, forced, batch)
            for path in self.neurons
        }
        dtype, device = placement(self.module)
        x = torch.as_tensor(array).to(device, dtype)
        with torch.no_grad(), settings_applied(self.module, self.settings, is_neuron):
            self._reset()
            ranking = RankingMode(self.graph, self.ranked, forced, batch)
            with forwards(self.module, replaced), ranking:
                result = self.module(x)
            self._reset()
        if self.ranked and ranking.calls != self.rankings:
            raise UserError(UNLIKE_TRACE, hint=UNLIKE_TRACE_HINT)
        return Execution(self._outputs(result, batch), spikes, selections=ranking.selections)

    def _layout(self) -> str:
        return str(getattr(self.graph.inputs[0].op, "layout", "B"))

    def _reset(self) -> None:
        """Neurons that keep their membrane start from rest, and are left so."""
        for path in self.stateful:
            self.module.get_submodule(path).reset()  # type: ignore[operator]

    def _recording(
        self,
        path: str,
        original: Callable[..., Tensor],
        spikes: dict[str, Array],
        forced: Mapping[str, Array],
        batch: int,
    ) -> Callable[..., Tensor]:
        """The neuron's own forward that notes its spikes and passes forced ones on."""
        calls = iter(self.neurons[path])

        def forward(x: Tensor, *rest: Any, **options: Any) -> Tensor:
            out = original(x, *rest, **options)
            recorded = next(calls, None)
            if recorded is None or recorded.name not in self.graph.nodes:
                return out
            array = arrange(out.detach().cpu().numpy(), recorded.layout, ("time", "batch"), batch)
            spikes[recorded.name] = array.astype(np.uint8)
            if recorded.name not in forced:
                return out
            value = np.asarray(forced[recorded.name])
            if value.shape != array.shape:
                raise UserError(
                    f"forced spikes of {recorded.name} have shape {value.shape}, the neuron {array.shape}"
                )
            given = restore(value, recorded.layout, ("time", "batch"), batch)
            return torch.as_tensor(given).to(out)

        return forward

    def _outputs(self, result: Any, batch: int) -> dict[str, Array]:
        leaves = pytree.tree_leaves(result)
        out: dict[str, Array] = {}
        for position, recorded in self.outputs.items():
            op = self.graph[recorded.name].op
            if not isinstance(op, Output):
                raise TypeError(f"{recorded.name} is not an Output")
            array = leaves[position].detach().cpu().numpy()
            value = arrange(array, recorded.layout, _LEAD[op.layout], batch)
            out[op.label] = np.ascontiguousarray(op.returned(value))
        return out


def trace(
    module: nn.Module,
    input_shape: tuple[int, ...],
    *,
    steps: int | None = None,
    layout: InputLayout | str | None = None,
    neuron: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    assume_reset_per_sample: bool = False,
) -> TracedModel:
    """The graph of a spiking network in evaluation mode, and the network as its own executor.

    `input_shape` is one sample without batch: `(C, H, W)` or `(C,)` for layout "B", `(T, C, H, W)` for
    frames (layout "BT", or "TB" where the model takes `[T, B, ...]`). `steps` is checked against the
    model's T. `neuron` overrides tau, v_threshold, v_reset or decay_input of every neuron. A neuron that is
    called on `[T*B, ...]`, whose membrane leaks from sample to sample, is refused, or with
    `assume_reset_per_sample` taken as what the model computes for a batch of one. Raises
    UserError (training mode, shapes, settings) and UnsupportedError with everything that has no place
    in the graph.
    """
    check_evaluated(module)
    check_precision(module)
    settings = dict(neuron or {})
    check_settings(settings)
    chosen = layout or ("BT" if len(input_shape) == 4 else "B")
    if chosen not in _LEAD:
        raise UserError(f"unknown layout {chosen!r}", hint="known: B, BT, TB")
    if not input_shape or (chosen != "B" and len(input_shape) < 2) or min(input_shape) < 1:
        raise UserError(f"an input of shape {input_shape} does not fit layout {chosen}")
    with settings_applied(module, settings, is_neuron):
        found, refused = read_neurons(module, settings)
        if refused:
            raise UnsupportedError("neurons of the model cannot be expressed", refused)
        return _traced(
            module,
            tuple(input_shape),
            chosen,
            steps,
            found,
            settings,
            metadata or {},
            assume_reset_per_sample,
        )


def _traced(
    module: nn.Module,
    shape: tuple[int, ...],
    layout: str,
    steps: int | None,
    neurons: dict[str, NeuronSpec],
    settings: Mapping[str, Any],
    metadata: Mapping[str, Any],
    assume_reset: bool,
) -> TracedModel:
    batch = example_batch(shape)
    dtype, device = placement(module)
    sizes = {"B": (batch, *shape), "BT": (batch, *shape), "TB": (shape[0], batch, *shape[1:])}[layout]
    program = export_program(module, torch.zeros(sizes, dtype=dtype, device=device), neurons)
    found = _steps(program, layout, shape, steps)
    spec = InputSpec(shape if layout == "B" else shape[1:], layout, found, batch, assume_reset)
    kept = {"model": type(module).__name__, "dtype": str(dtype).removeprefix("torch."), **metadata}
    result = translate(program, module, spec, neurons, kept)
    if result.refused and result.decomposable:
        again = translate(without_overwritten(decomposed(program)), module, spec, neurons, kept, program)
        result = result if again.decomposable else again
    refuse_all(result.refused)
    if result.graph is None:
        raise TypeError("a translation without refusals has no graph")
    try:
        graph = validate(result.graph)
    except ParameterError as error:
        broken = "; ".join(line.strip() for line in str(error).splitlines()[1:])
        hint = "check the checkpoint for NaN and infinite parameters, and for tau below 1"
        raise UserError(f"the model holds values that no network runs with: {broken}", hint=hint) from error
    stateful = frozenset(path for path in result.neurons if neurons[path].stateful)
    leaky = any(leaks(call.layout) for calls in result.neurons.values() for call in calls)
    return TracedModel(
        graph,
        module,
        result.neurons,
        result.outputs,
        settings,
        stateful,
        leaky,
        tuple(result.ranked),
        len(rankings_of(program)),
    )


def _steps(program: Any, layout: str, shape: tuple[int, ...], wanted: int | None) -> int:
    """T: the frames' or the neurons' leading dimension; UserError where that is not what the user says."""
    leading = [
        int(node.args[0].meta["val"].shape[0])
        for node in program.graph_module.graph.nodes
        if node.op == "call_function"
        and getattr(node.target, "_schema", None) is not None
        and node.target._schema.name == "stdeploy::neuron"
    ]
    if not leading:
        raise UserError(
            "the model calls no spiking neuron", hint="multi-step IF, LIF, PLIF and sLIF neurons are known"
        )
    found = shape[0] if layout != "B" else min(leading)
    if wanted is not None and wanted != found:
        raise UserError(
            f"the model runs {found} time steps, not {wanted}", hint=f"leave --steps out, or say {found}"
        )
    return found
