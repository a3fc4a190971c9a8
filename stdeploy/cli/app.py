"""The program: sub-commands loaded only when used, and errors as text with an exit code."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import click

from stdeploy import __version__
from stdeploy.errors import StdeployError, StdeployWarning

EXIT_USAGE, EXIT_BUG, EXIT_INTERRUPTED = 2, 70, 130

COMMANDS = {
    "compress": "stdeploy.cli.compress",
    "inspect": "stdeploy.cli.inspect",
    "export": "stdeploy.cli.export",
    "verify": "stdeploy.cli.verify",
    "energy": "stdeploy.cli.energy",
    "bench": "stdeploy.cli.bench",
    "doctor": "stdeploy.cli.doctor",
    "targets": "stdeploy.cli.targets",
}
"""Sub-command to the module that holds its `command`; those modules load neither torch nor onnx."""

PACKAGES = {
    "torch": "install torch in the way pytorch.org tells you; a .stg graph needs none",
    "onnx": "pip install onnx",
    "nir": "pip install nir",
    "safetensors": "pip install safetensors",
}
"""Packages that a command may need, and how to get them."""

EPILOG = """\b
Examples:
  stdeploy inspect pruned.pt
  stdeploy export pruned.pt --target onnx -o model.onnx --data images.npz
  stdeploy verify pruned.pt model.nir --data images.npz
\b
Exit codes: 0 done; 1 a check failed; 2 wrong input or option; 3 the model cannot be expressed;
70 a bug in stdeploy.
\b
Shell completion: eval "$(_STDEPLOY_COMPLETE=bash_source stdeploy)"   (or zsh_source, fish_source)
"""


class LazyGroup(click.Group):
    """A group whose sub-commands are imported by name, when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(COMMANDS[cmd_name]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{COMMANDS[cmd_name]}.command is not a command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"commands: {', '.join(COMMANDS)}"
            raise click.UsageError(f"no such command {name!r}\nhint: {hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)
@click.version_option(__version__, prog_name="stdeploy", message="%(prog)s %(version)s")
def app() -> None:
    """Compile compressed spiking transformers to ONNX, NIR, Lava and SEV, and prove each file spike for spike."""


def run(arguments: Sequence[str]) -> int:
    """Run the program and return its exit code; errors are printed to stderr, never raised."""
    # Libraries' warnings and torch's word about a missing Triton concern nothing the user can change here;
    # our own do. python -W shows all.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", StdeployWarning)
        warnings.showwarning = _warn
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
    try:
        result: Any = app.main(args=list(arguments), prog_name="stdeploy", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.UsageError as error:
        _complain(*f"error: {error.format_message()}".splitlines())
        if error.ctx is not None:
            _complain(f"usage: {error.ctx.command_path} --help explains it")
        return EXIT_USAGE
    except click.ClickException as error:
        _complain(f"error: {error.format_message()}")
        return EXIT_USAGE
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        _trace(arguments)
        if package not in PACKAGES:
            return _bug(error)
        _complain(f"error: {package} is not installed", f"hint: {PACKAGES[package]}")
        return EXIT_USAGE
    except StdeployError as error:
        _trace(arguments)
        _complain(*error.lines())
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe (head, less) went away: nothing is wrong, but Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the last line of defence: whatever escapes is our bug
        _trace(arguments)
        return _bug(error)


def _bug(error: Exception) -> int:
    _complain(f"error: {type(error).__name__}: {error}")
    _complain("hint: this is a bug in stdeploy; please report it with the output of --traceback")
    return EXIT_BUG


def _trace(arguments: Sequence[str]) -> None:
    if "--traceback" in arguments:
        traceback.print_exc()


def _complain(*lines: str) -> None:
    for line in lines:
        click.echo(line, err=True)


def _warn(message: Warning | str, *where: Any, **more: Any) -> None:
    """Stands in for warnings.showwarning: a line, without the place in our code, unless -q is given."""
    context = click.get_current_context(silent=True)
    if context is None or not context.params.get("quiet"):
        _complain(f"warning: {message}")


def _terminate(number: int, _frame: Any) -> None:
    """Leave as an exception does, so that no half-written file stays behind."""
    sys.exit(128 + number)


def main() -> None:
    """Entry point of the `stdeploy` program."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))
