"""Operators of the exported program, one after another, to nodes of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from stdeploy.errors import Unsupported, UnsupportedError
from stdeploy.graph.graph import Graph, GraphBuilder, GraphError
from stdeploy.graph.ops import Flatten, Input, Output, Readout, Reduce
from stdeploy.trace import (
    aten_border,
    aten_einsum,
    aten_elementwise,
    aten_join,
    aten_layers,
    aten_matmul,
    aten_neuron,
    aten_reduce,
    aten_select,
    aten_views,
)
from stdeploy.trace.axes import Atom, Layout, LayoutError
from stdeploy.trace.lowering import REGISTRY, Chosen, Lowering, Ranked, Recorded, Refusal, Traced, Withheld
from stdeploy.trace.neurons import NeuronSpec
from stdeploy.trace.program import call_of, constants, line_of, module_path, operator_name
from stdeploy.trace.ragged import join_heads
from stdeploy.trace.ranking import numbered

HANDLERS = (
    aten_border,
    aten_einsum,
    aten_elementwise,
    aten_join,
    aten_layers,
    aten_matmul,
    aten_neuron,
    aten_reduce,
    aten_select,
    aten_views,
)
"""Modules that register lowerings."""

_AXES = {1: ("channel",), 2: ("channel", "token"), 3: ("channel", "y", "x")}


class _Unknown:
    """Stands for the result of an operator that was refused; what reads it is not judged."""


UNKNOWN = _Unknown()


@dataclass(frozen=True, eq=False)
class Translation:
    """The graph, where each neuron's calls and each output are in it, and whether decomposing may help."""

    graph: Graph | None
    neurons: dict[str, list[Recorded]]
    outputs: dict[int, Recorded]
    refused: list[Unsupported]
    decomposable: bool
    ranked: list[Ranked]


@dataclass(frozen=True)
class InputSpec:
    """One sample's `shape` (without T and B), layout and the example's batch size.

    `assume_reset`: take a neuron over time and batch together as it is for one sample.
    """

    shape: tuple[int, ...]
    layout: Any
    steps: int
    batch: int
    assume_reset: bool = False


def translate(
    program: Any,
    module: nn.Module,
    spec: InputSpec,
    neurons: dict[str, NeuronSpec],
    metadata: Mapping[str, Any],
    original: Any = None,
) -> Translation:
    """Lower every operator; what cannot be expressed is collected, not raised.

    `original`: the program that `program` was decomposed from, where it was.
    """
    translator = _Translator(program, module, spec, neurons, metadata)
    translator.ctx.rankings = numbered(program, original or program)
    return translator.run()


class _Translator:
    def __init__(
        self,
        program: Any,
        module: nn.Module,
        spec: InputSpec,
        neurons: dict[str, NeuronSpec],
        metadata: Mapping[str, Any],
    ) -> None:
        self.program, self.module, self.spec = program, module, spec
        self.known = constants(program)
        self.environment: dict[fx.Node, Any] = {}
        self.refused: list[Unsupported] = []
        self.decomposable = False
        self.outputs: dict[int, Recorded] = {}
        names = {tensor: name for name, tensor in self.known.values()}
        time, batch = Atom(spec.steps, "time"), Atom(spec.batch, "batch")
        builder = GraphBuilder(spec.steps, metadata)
        self.ctx = Lowering(builder, neurons, spec.steps, names, time, batch, assume_reset=spec.assume_reset)

    def run(self) -> Translation:
        user_inputs = set(self.program.graph_signature.user_inputs)
        for node in self.program.graph_module.graph.nodes:
            if node.op == "placeholder":
                self.environment[node] = (
                    self._input() if node.name in user_inputs else self.known.get(node.name, ("", None))[1]
                )
            elif node.op == "call_function":
                self.environment[node] = self._call(node)
            elif node.op == "get_attr":
                self.environment[node] = getattr(self.program.graph_module, node.target, None)
            elif node.op == "output":
                self._finish(node)
        graph = None if self.refused else _reachable(join_heads(self.ctx.builder.build()))
        return Translation(
            graph, self.ctx.calls, self.outputs, self.refused, self.decomposable, self.ctx.ranked
        )

    def _input(self) -> Traced:
        spec = self.spec
        axes = _AXES.get(len(spec.shape), ("channel", *(f"axis{i}" for i in range(1, len(spec.shape)))))
        name = self.ctx.builder.add(Input(spec.shape, axes, spec.layout), name="input")
        atoms = tuple((Atom(n),) if n > 1 else () for n in spec.shape)
        lead = {"B": ["batch"], "BT": ["batch", "time"], "TB": ["time", "batch"]}[spec.layout]
        return Traced(name, Layout((*((getattr(self.ctx, role),) for role in lead), *atoms), atoms))

    def _call(self, node: fx.Node) -> Any:
        mapped: Any = fx.node.map_arg((node.args, node.kwargs), lambda n: self.environment[n])
        args, kwargs = mapped
        leaves = [*pytree.tree_leaves(args), *pytree.tree_leaves(kwargs)]
        mutable = bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))
        if any(leaf is UNKNOWN for leaf in leaves):
            self.decomposable |= mutable
            return UNKNOWN
        operator = operator_name(node)
        if operator == "getitem":
            return args[0][args[1]]
        if not mutable and operator != "neuron" and not any(isinstance(leaf, Traced) for leaf in leaves):
            with torch.no_grad():
                return node.target(*args, **kwargs)  # type: ignore[operator]
        if not mutable and not node.users and operator not in REGISTRY:
            return None  # an assertion, or a result that nothing reads
        try:
            handler = None if mutable else REGISTRY.get(operator)
            if handler is None:
                raise Refusal("there is no lowering for this operator", unknown=True)
            return handler(self.ctx, call_of(node, self.module, tuple(args), kwargs))
        except Refusal as refusal:
            self.decomposable |= refusal.unknown
            return self._refuse(node, operator, refusal.reason, refusal.hint)
        except (LayoutError, GraphError) as error:
            return self._refuse(node, operator, str(error), None)

    def _refuse(self, node: fx.Node, operator: str, reason: str, hint: str | None) -> _Unknown:
        path, line = module_path(node), line_of(node)
        where = f"{path} ({line})".strip() if line else path
        self.refused.append(Unsupported(where, operator, reason, hint))
        return UNKNOWN

    def _finish(self, node: fx.Node) -> None:
        leaves: Any = node.args[0]
        values = [self.environment.get(a) if isinstance(a, fx.Node) else a for a in leaves]
        specs = self.program.graph_signature.output_specs
        written = [str(s.target) for s in specs if _written(s)]
        self.refused += [
            Unsupported(name, "a buffer", "it is written in every call and read by the network")
            for name in written
            if self._read_by_network(name)
        ]
        returned = [v for s, v in zip(specs, values, strict=True) if not _written(s)]
        for position, value in enumerate(returned):
            if not isinstance(value, Traced):
                continue
            count = len(self.outputs)
            try:
                self.outputs[position] = self._output(value, f"output.{count}" if count else "output")
            except (Refusal, LayoutError, GraphError) as error:
                hint = error.hint if isinstance(error, Refusal) else None
                self.refused.append(Unsupported("(output)", f"output {position}", str(error), hint))
        if not self.outputs and not self.refused:
            reason = "the model returns nothing that depends on its input"
            self.refused.append(Unsupported("(output)", "output", reason))

    def _read_by_network(self, buffer: str) -> bool:
        """Whether a buffer takes part in what is computed from the input."""
        nodes = [
            n
            for n in self.environment
            if n.op == "placeholder" and self.known.get(n.name, ("",))[0] == buffer
        ]
        seen = set(nodes)
        while nodes:
            node = nodes.pop()
            if isinstance(self.environment.get(node), Traced):
                return True
            new = set(node.users) - seen
            seen |= new
            nodes += new
        return False

    def _output(self, x: Traced, label: str) -> Recorded:
        if isinstance(x, Chosen | Withheld):
            raise Refusal(
                "it is what a ranking yields, positions or scores", "return the tokens that it chooses"
            )
        x = self.ctx.tensor(x)
        layout = x.layout
        if any(a.role == "new" for d in layout.dims for a in d):
            raise Refusal("it is repeated along a dimension")
        name = x.name
        lead = _lead(layout, self.ctx.time, self.ctx.batch)
        if lead == "B" and self.ctx.value(x).time == "step":
            if self.spec.steps > 1:
                raise Refusal("its time dimension has disappeared in views")
            name = self.ctx.builder.add(Readout("last"), (name,), name="readout")
        name, layout = self._squeezed(name, layout, len(lead))
        name, layout, order = self._ordered(name, layout, len(lead))
        out = self.ctx.builder.add(Output(label, lead, order), (name,), name=label)  # type: ignore[arg-type]
        return Recorded(out, layout)

    def _ordered(self, name: str, layout: Layout, lead: int) -> tuple[str, Layout, tuple[int, ...]]:
        """In which order the model returns the axes; positions become one axis where it returns one dimension."""
        rest = layout.dims[lead:]
        if rest == layout.axes:
            return name, layout, ()
        every = tuple(a for axis in layout.axes[1:] for a in axis)
        if every in rest and every not in layout.axes:
            name = self.ctx.builder.add(Flatten(tokens=True), (name,), name="tokens")
            layout = Layout(layout.dims, (layout.axes[0], every))
        left = list(range(len(layout.axes)))
        order = []
        for dim in rest:
            found = [k for k in left if layout.axes[k] == dim]
            order += found[:1]
            left = [k for k in left if k not in found[:1]]
        if len(order) == len(rest) and not left:
            return name, layout, () if order == sorted(order) else tuple(order)
        if [a for d in rest for a in d] == [a for axis in layout.axes for a in axis]:
            return name, layout, ()
        raise Refusal(
            "its dimensions are not whole axes of the value: channel, then space",
            "permute and reshape it to [.., channels, height, width] or [.., tokens, channels]",
        )

    def _squeezed(self, name: str, layout: Layout, lead: int) -> tuple[str, Layout]:
        """Without axes of size 1 that the torch tensor has not, and flat where it is."""
        rest = layout.dims[lead:]
        add = self.ctx.builder.add
        if len(rest) == 1 and len(layout.axes) > 1:
            flat = tuple(a for axis in layout.axes for a in axis)
            return add(Flatten(), (name,), name="flatten"), Layout(layout.dims, (flat,))
        single = tuple(k for k, axis in enumerate(layout.axes) if not axis)
        surplus = len(layout.axes) - len(rest)
        if surplus > 0 and len(single) >= surplus:
            gone = single[-surplus:]
            name = add(Reduce(gone, False), (name,), name="squeeze")
            return name, Layout(layout.dims, tuple(a for k, a in enumerate(layout.axes) if k not in gone))
        return name, layout


def _written(spec: Any) -> bool:
    """Whether an output of the program is what the model writes to a buffer (or to its input)."""
    return str(spec.kind.name) != "USER_OUTPUT"


def _lead(layout: Layout, time: Atom, batch: Atom) -> str:
    lead = [d for d in layout.dims[:2] if d in ((time,), (batch,))]
    text = "".join("T" if d == (time,) else "B" for d in lead)
    others = [a for d in layout.dims[len(lead) :] for a in d if a.role != "axis"]
    if text not in ("B", "BT", "TB") or others:
        raise Refusal("its first dimensions are not the batch, or time and batch")
    return text


def _reachable(graph: Graph) -> Graph:
    """Only what the outputs depend on, and the input."""
    wanted: set[str] = set()
    for node in reversed(list(graph)):
        if node.name in wanted or isinstance(node.op, Input | Output):
            wanted |= {node.name, *node.inputs}
    return Graph(graph.steps, {n: v for n, v in graph.nodes.items() if n in wanted}, graph.metadata)


def refuse_all(refused: list[Unsupported]) -> None:
    """UnsupportedError that lists everything, if there is anything."""
    if refused:
        count = f"{len(refused)} operators" if len(refused) > 1 else "an operator"
        raise UnsupportedError(f"{count} of the model cannot be expressed in the graph", refused)
