"""What the lowerings of ATen operators share: traced tensors, the calls, and adding nodes with names."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
from torch import Tensor, fx

from stdeploy.graph.graph import GraphBuilder
from stdeploy.graph.ops import Op
from stdeploy.graph.value import Value
from stdeploy.graph.weight import Array, Weight
from stdeploy.trace.axes import Atom, Atoms, Layout
from stdeploy.trace.neurons import NeuronSpec


class Refusal(Exception):
    """An operator that cannot be expressed; the trace notes it and goes on."""

    def __init__(self, reason: str, hint: str | None = None, *, unknown: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.hint, self.unknown = reason, hint, unknown


@dataclass(frozen=True, eq=False)
class Traced:
    """A torch tensor that is the graph's value `name` seen through views.

    `padding`: zeros around the last dimensions (as torch.nn.functional.pad lists them), which a
    convolution takes over. `border`: what is there instead of zeros, `[C, *padded]` (its inside is void).
    """

    name: str
    layout: Layout
    padding: tuple[int, ...] = ()
    border: Array | None = None

    def view(self, layout: Layout) -> Self:
        return replace(self, layout=layout)


@dataclass(frozen=True, eq=False, kw_only=True)
class Chosen(Traced):
    """The positions that a ranking yields, an index tensor of the model; `name` is the value of the scores.

    The only axis of its layout is the slots, best first. They are the ranks `start` to `stop` of `tokens`
    positions; `order` "any" is torch.topk(sorted=False), which leaves it open. `ranking`: number of the call.
    The model added `shift` to the positions, behind `ahead` positions that are always kept, and, where `lead`
    is not None, `stride` times the index of the atoms `lead`, to look them up in a flat list. `ranked`: the
    layout of what the ranking call itself returned.
    """

    ranking: int
    tokens: int
    stop: int
    largest: bool
    order: Literal["score", "index", "any"]
    ranked: Layout
    start: int = 0
    shift: int = 0
    ahead: tuple[int, ...] = ()
    lead: Atoms | None = None
    stride: int = 0

    @property
    def slots(self) -> Atoms:
        return self.layout.axes[0]


class Withheld(Traced):
    """The ranked scores themselves, which the graph does not keep."""


@dataclass(frozen=True)
class Call:
    """One operator of the exported program with its arguments by schema name."""

    node: fx.Node
    operator: str
    arguments: dict[str, Any]
    path: str
    leaf: bool

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.arguments.get(name, default)


@dataclass(frozen=True, eq=False)
class Recorded:
    """How a torch tensor of the model maps to a value of the graph."""

    name: str
    layout: Layout


@dataclass(frozen=True, eq=False)
class Ranked:
    """A Select (its node's `name`) and the ranking call of the model, counted from 0, that chooses its tokens.

    `layout` is that of the call's indices, its last axis the slots.
    """

    name: str
    ranking: int
    layout: Layout


@dataclass
class Lowering:
    """The graph under construction."""

    builder: GraphBuilder
    neurons: dict[str, NeuronSpec]
    steps: int
    names: dict[Tensor, str]
    time: Atom
    batch: Atom
    calls: dict[str, list[Recorded]] = field(default_factory=dict)
    weights: dict[tuple[int, str], tuple[Tensor, Weight]] = field(default_factory=dict)
    assume_reset: bool = False
    """Whether a neuron over time and batch together is taken to start each sample at rest."""
    rankings: dict[fx.Node, int] = field(default_factory=dict)
    """Number of every call of the program that ranks values, in order."""
    ranked: list[Ranked] = field(default_factory=list)
    shift_errors: dict[str, Array] = field(default_factory=dict)
    """[C] by an Affine's name: how far the model's own arithmetic may put its shift off."""

    def add(self, op: Op, inputs: list[str], call: Call, suffix: str = "") -> str:
        """Add a node named after the module (a leaf's path, or `path.suffix`)."""
        base = call.path if call.leaf and not suffix else ".".join(p for p in (call.path, suffix) if p)
        return self.builder.add(op, inputs, name=safe_name(base or call.operator), source=call.path)

    def value(self, traced: Traced) -> Value:
        return self.builder.value(traced.name)

    def viewed(self, argument: Any) -> Traced:
        """As `tensor`, for what only looks at it another way: positions that a ranking yields too."""
        return argument if isinstance(argument, Chosen) else self.tensor(argument)

    def tensor(self, argument: Any, *, padded: bool = False) -> Traced:
        """An argument that has to be computed from the input; Refusal where it is not."""
        if isinstance(argument, Withheld):
            raise Refusal("it computes with the scores that a ranking sorted", "gather them by the indices")
        if isinstance(argument, Chosen):
            raise Refusal("it computes with the positions of a selection", "gather the tokens with them only")
        if isinstance(argument, Tensor):
            raise Refusal("it is applied to a constant where the network's values are expected")
        if not isinstance(argument, Traced):
            raise Refusal(f"it is applied to {type(argument).__name__}")
        if argument.padding and not padded:
            raise Refusal("it follows a padding, which only a convolution can take over")
        return argument

    def constant(self, argument: Any) -> Array | None:
        """An argument that has to be a parameter or a constant, as numpy."""
        if argument is None:
            return None
        if not isinstance(argument, Tensor):
            raise Refusal("its parameter depends on the network's input")
        return to_numpy(argument)

    def weight(self, argument: Any, key: str, build: Callable[[Array], Array]) -> Weight:
        """A weight made by `build` from a parameter; the same parameter gives the same Weight."""
        array = self.constant(argument)
        if array is None:
            raise Refusal("it has no weight")
        index = (id(argument), key)
        if index not in self.weights:
            made = Weight.dense(np.array(build(array), order="C", copy=True))
            self.weights[index] = (argument, made)  # kept, so that its id stays its own
        return self.weights[index][1]


def to_numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array


def safe_name(name: str) -> str:
    """`name` without blanks and '/', which no graph name may have."""
    return re.sub(r"[\s/]+", "_", name)


def roles(atoms: Atoms) -> set[str]:
    return {a.role for a in atoms}


def fresh(size: int) -> Atoms:
    """A new axis of the value: one atom, or none where its size is 1."""
    return (Atom(size),) if size > 1 else ()


Result = Any
Handler = Callable[[Lowering, Call], Result]

REGISTRY: dict[str, Handler] = {}
"""ATen operator (schema name without namespace) to its lowering."""


def lowers(*operators: str) -> Callable[[Handler], Handler]:
    """Register a lowering."""

    def register(handler: Handler) -> Handler:
        for operator in operators:
            REGISTRY[operator] = handler
        return handler

    return register
