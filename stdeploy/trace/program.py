"""torch.export of a model whose neurons are opaque, and what each of its operators is called with."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from stdeploy.errors import Unsupported, UnsupportedError, UserError
from stdeploy.trace.lowering import Call
from stdeploy.trace.opaque import MembraneRead, forwards, membranes_hidden, opaque

_PRIMES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)


def example_batch(shape: tuple[int, ...]) -> int:
    """A batch size that divides no dimension of the input, so that no view mistakes it for one."""
    return next((p for p in _PRIMES if all(n % p for n in shape)), 53)


def check_evaluated(module: nn.Module) -> None:
    """UserError where a part of the model is in training mode."""
    training = [path or type(child).__name__ for path, child in module.named_modules() if child.training]
    if training:
        shown = ", ".join(training[:3]) + (", ..." if len(training) > 3 else "")
        raise UserError(f"the model is in training mode ({shown})", hint="call .eval() on it first")


def placement(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Floating-point type and device of the parameters."""
    first = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(0))
    return first.dtype, first.device


def check_precision(module: nn.Module) -> None:
    """UserError where a parameter is of half precision: graph, artefacts and their proof are float32."""
    half = [n for n, p in module.named_parameters() if p.dtype in (torch.float16, torch.bfloat16)]
    if half:
        kind = str(module.get_parameter(half[0]).dtype).removeprefix("torch.")
        raise UserError(
            f"{half[0]} is {kind}: a model of half precision rounds its membranes otherwise than any artefact",
            hint="call .float() on the model; its weights keep their values",
        )


def export_program(module: nn.Module, example: Tensor, neurons: Mapping[str, Any]) -> Any:
    """The ExportedProgram of a model in evaluation mode (UserError where it does not run or is not traceable)."""
    replaced = {path: opaque(path) for path in neurons}
    try:
        with torch.no_grad(), forwards(module, replaced), membranes_hidden(module, neurons), _quiet():
            return torch.export.export(module, (example,), strict=False)
    except MembraneRead as error:
        reason = "its membrane is read by the model, and the graph has only its spikes"
        refused = Unsupported(error.path, "membrane", reason, "return spikes, or what a Linear makes of them")
        raise UnsupportedError(
            "an operator of the model cannot be expressed in the graph", [refused]
        ) from error
    except Exception as error:  # whatever the user's forward raises
        text = str(error).strip().splitlines()
        shape = "x".join(str(n) for n in example.shape)
        raise UserError(
            f"the model cannot be traced on an input of shape {shape}: {text[0] if text else type(error).__name__}",
            where=_raised_at(error),
            hint="check --input and --layout; a forward whose control flow depends on values cannot be traced",
        ) from error


_OWN_FILES = (__file__, opaque.__code__.co_filename)


def _raised_at(error: BaseException) -> str | None:
    """`file:line` of the user's code that an exception came through last."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/" not in f.filename and f.filename not in _OWN_FILES]
    own = [f for f in own if not f.filename.endswith(("/contextlib.py", "/functools.py"))]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None


def decomposed(program: Any) -> Any:
    """The program in operators without side effects, for what has no lowering of its own."""
    with torch.no_grad(), _quiet():
        return program.run_decompositions({})


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch logs what its own exceptions say again, and warns of packages that are not needed."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        # torch prints the whole program where it cannot decide a condition; the exception says which
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def constants(program: Any) -> dict[str, tuple[str, Tensor]]:
    """Placeholder name to (name in the model, tensor) of every parameter, buffer and constant."""
    signature = program.graph_signature
    tensors = {**program.state_dict, **program.constants}
    found: dict[str, tuple[str, Tensor]] = {}
    plain = {id(t): t.detach() for t in tensors.values() if isinstance(t, Tensor)}  # tied ones stay one
    for table in (
        signature.inputs_to_parameters,
        signature.inputs_to_buffers,
        signature.inputs_to_lifted_tensor_constants,
    ):
        for placeholder, name in table.items():
            tensor = tensors[name]
            found[placeholder] = (name, plain.get(id(tensor), tensor))
    return found


def operator_name(node: fx.Node) -> str:
    """Schema name without namespace: `conv2d` of aten.conv2d.default."""
    schema = getattr(node.target, "_schema", None)
    return (
        str(schema.name).split("::")[-1]
        if schema is not None
        else getattr(node.target, "__name__", str(node.target))
    )


def call_of(node: fx.Node, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    """The node's operator with `args` bound to the schema's names, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    bound: dict[str, Any] = {}
    if schema is not None:
        for i, argument in enumerate(schema.arguments):
            if i < len(args):
                bound[argument.name] = args[i]
            elif argument.name in kwargs:
                bound[argument.name] = kwargs[argument.name]
            elif argument.has_default_value():
                bound[argument.name] = argument.default_value
    path = module_path(node)
    return Call(node, operator_name(node), bound, path, _is_leaf(module, path))


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that the operator was called in."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return re.sub(r"@\d+", "", str(path))


def _is_leaf(module: nn.Module, path: str) -> bool:
    try:
        child = module.get_submodule(path)
    except AttributeError:
        return False
    return bool(path) and type(child).__module__.startswith("torch.nn.") and not list(child.children())


def line_of(node: fx.Node) -> str:
    """`file:line` of the user's code that called the operator, or nothing where it is not known."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [f for f in frames if "/torch/nn/" not in f[0] and f[0] not in _OWN_FILES]
    return f"{own[-1][0]}:{own[-1][1]}" if own else ""
