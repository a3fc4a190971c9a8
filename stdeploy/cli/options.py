"""Options that several sub-commands share, and how their values are read."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from stdeploy.errors import UserError

Command = Callable[..., Any]

NEURON_KEYS = ("tau", "v_threshold", "v_reset", "decay_input")
_BOOLEANS = {"true": True, "false": False}


class Shape(click.ParamType[tuple[int, ...]]):
    """`3x32x32` as a tuple of positive integers."""

    name = "shape"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        parts = str(value).lower().split("x")
        if not all(p.isdecimal() and int(p) > 0 for p in parts):
            self.fail(f"{value!r} is not a shape; give one sample without batch, as 3x32x32", param, ctx)
        return tuple(int(p) for p in parts)


class Counts(click.ParamType[tuple[int, ...]]):
    """`1,8` as a tuple of positive integers, each once."""

    name = "counts"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(p.isascii() and p.isdecimal() and int(p) > 0 for p in parts):
            self.fail(f"{value!r} is not a list of positive numbers; write it as 1,8", param, ctx)
        return tuple(dict.fromkeys(int(p) for p in parts))


class NeuronSettings(click.ParamType[dict[str, Any]]):
    """`tau=2.0,v_threshold=1.0,v_reset=none,decay_input=true` as a dictionary."""

    name = "settings"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, dict):
            return value
        out: dict[str, float | bool | None] = {}
        for item in str(value).split(","):
            key, _, text = (part.strip().lower() for part in item.partition("="))
            if key not in NEURON_KEYS:
                self.fail(f"no setting {key!r}; there are {', '.join(NEURON_KEYS)}", param, ctx)
            try:
                out[key] = _setting(key, text)
            except (KeyError, ValueError):
                self.fail(f"{text!r} is not a value of {key}", param, ctx)
        return out


def _setting(key: str, text: str) -> float | bool | None:
    if key == "decay_input":
        return _BOOLEANS[text]
    if key == "v_reset" and text in ("none", "soft"):
        return None
    value = float(text)
    if not math.isfinite(value) or (key == "tau" and value < 1):  # tau < 1: the membrane changes sign
        raise ValueError
    return value


class JsonFile(click.ParamType[str]):
    """Where `--json` writes: `-` for stdout, or a file that ends in .json.

    The suffix is required because the file is optional: `--json model.pt` must not overwrite a model.
    """

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value != "-" and not str(value).endswith(".json"):
            self.fail(
                f"{value!r} does not end in .json; for stdout put --json last or write --json=-", param, ctx
            )
        return str(value)


class Output(click.ParamType[Path]):
    """A file to write, with the suffix of its format, so that an option never overwrites a model."""

    def __init__(self, *suffixes: str) -> None:
        self.suffixes, self.name = suffixes, "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(value)
        if path.suffix not in self.suffixes:
            self.fail(f"{str(value)!r} does not end in {' or '.join(self.suffixes)}", param, ctx)
        return path


_PATH = click.Path(path_type=Path)


def model_options(function: Command) -> Command:
    """What a file may not say about its model, which `function` gets as `source_options`."""

    @functools.wraps(function)
    def command(**given: Any) -> Any:
        from stdeploy.workflow import SourceOptions

        told = {field.name: given.pop(field.name) for field in fields(SourceOptions)}
        return function(source_options=SourceOptions(**told), **given)

    for option in reversed(
        (
            click.option(
                "--model",
                metavar="PACKAGE.MODULE:FACTORY",
                help="Code that builds the model (called without arguments), where the file holds weights only. "
                "It is imported and run: name only code that you trust.",
            ),
            click.option(
                "--state-dict-key", metavar="KEY", help="Entry of a container that holds the weights."
            ),
            click.option(
                "--input",
                "input_shape",
                type=Shape(),
                help="One sample without batch: 3x32x32; 16x2x128x128 for event frames.",
            ),
            click.option(
                "--layout",
                type=click.Choice(["B", "BT", "TB"]),
                help="Order of batch and time in the model's input (default: B, or BT for 4-d samples).",
            ),
            click.option(
                "--steps", type=click.IntRange(min=1), help="Time steps T; checked against the model."
            ),
            click.option(
                "--dt",
                type=float,
                help="Length of a step in the unit of a NIR file's tau, for .nir files that stdeploy did not write.",
            ),
            click.option(
                "--neuron",
                type=NeuronSettings(),
                help="Neuron settings that override the model's: tau=2.0,v_threshold=1.0,v_reset=none.",
            ),
            click.option(
                "--assume-reset-per-sample",
                is_flag=True,
                default=None,
                help="Take a neuron called on [T*B, ...], whose membrane leaks from sample to sample, as it "
                "is for one sample at a time.",
            ),
        )
    ):
        command = option(command)
    return command


TARGET_OPTIONS: dict[str, tuple[str, click.Option]] = {
    "plan": (
        "event",
        click.Option(
            ["--plan"],
            metavar="JSON",
            help="event: the kernels of some layers, fixed (stdeploy inspect FILE.sev --json plan.json writes all); "
            "the others' are chosen by cost, from --data.",
        ),
    ),
    "dialect": (
        "nir",
        click.Option(
            ["--dialect"],
            metavar="NAME|TOML",
            help="nir: what the file may use: portable (default), arrays, compact or a file of your own "
            "(stdeploy targets --dialects).",
        ),
    ),
    "attention": (
        "lava",
        click.Option(
            ["--attention"],
            type=click.Choice(["auto", "process", "units"]),
            help="lava: each attention as one custom process, or of stock units (small nets).",
        ),
    ),
    "format": (
        "lava",
        click.Option(
            ["--format"],
            type=click.Choice(["processes", "netx"]),
            help="lava: a folder of core processes, or lava-dl's netx file (sequential nets only).",
        ),
    ),
    "fixed": (
        "lava",
        click.Option(
            ["--fixed"],
            is_flag=True,
            default=None,
            help="lava: Loihi's integers (8-bit weights); approximate, and the effect is measured.",
        ),
    ),
    "opset": (
        "onnx",
        click.Option(
            ["--opset"], type=click.IntRange(17, 21), help="onnx: standard operator set (default 17)."
        ),
    ),
    "sparse": (
        "onnx",
        click.Option(
            ["--sparse"],
            is_flag=True,
            default=None,
            help="onnx: store weights as sparse initialisers where that is smaller.",
        ),
    ),
    "precision": (
        "onnx",
        click.Option(
            ["--precision"],
            type=click.Choice(["fp32", "fp16"]),
            help="onnx: fp16 is approximate; its effect on the spikes is measured and printed.",
        ),
    ),
    "weights": (
        "onnx",
        click.Option(
            ["--weights"],
            type=click.Choice(["fp32", "int8"]),
            help="onnx: int8 per output channel in products of spikes; approximate, measured and printed.",
        ),
    ),
}
"""An option of `export` that one target takes: its name there, the target, and how it is read."""


def target_options(function: Command) -> Command:
    """The options of TARGET_OPTIONS."""
    for _, option in reversed(TARGET_OPTIONS.values()):
        flag = {"is_flag": True, "default": None} if option.is_flag else {"type": option.type}
        function = click.option(*option.opts, help=option.help, metavar=option.metavar, **flag)(function)
    return function


def chosen_for(target: str, options: dict[str, Any]) -> dict[str, Any]:
    """Those of TARGET_OPTIONS that are given; UserError where one is not `target`'s."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        owner, option = TARGET_OPTIONS[name]
        if owner != target:
            raise UserError(f"{option.opts[0]} is an option of {owner}, not of {target}", hint="leave it out")
    return given


def common_options(function: Command) -> Command:
    """-v, -q, --json and --traceback, by which `function` gets its `talk`."""

    @functools.wraps(function)
    def command(json_file: str | None, verbose: int, quiet: bool, traceback: bool, **given: Any) -> Any:
        from stdeploy.cli.console import Talk

        return function(talk=Talk(json_file, verbose, quiet), **given)

    for option in reversed(
        (
            click.option(
                "--json",
                "json_file",
                type=JsonFile(),
                is_flag=False,
                flag_value="-",
                help="Write the result as JSON to stdout, or to a .json file.",
            ),
            click.option("-v", "--verbose", count=True, help="Say more."),
            click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors."),
            click.option("--traceback", is_flag=True, help="Show the traceback of an error."),
        )
    ):
        command = option(command)
    return command


def data_option(function: Command) -> Command:
    """--data."""
    return click.option(
        "--data",
        type=_PATH,
        metavar="NPZ",
        help="Inputs to run on: array images (float32, as the model takes them), optionally labels.",
    )(function)
