"""`stdeploy targets`."""

from __future__ import annotations

import click

from stdeploy.cli.options import common_options

EPILOG = """\b
Examples:
  stdeploy targets
  stdeploy targets --json
"""


@click.command(epilog=EPILOG)
@common_options
def command(json_file: str | None, verbose: int, quiet: bool, traceback: bool) -> None:
    """List the targets that `export` knows, plug-ins included."""
    from stdeploy.cli.console import Talk
    from stdeploy.environment import target_states

    talk = Talk(json_file, verbose, quiet)
    states = target_states()
    for state in states:
        talk.result(f"{state.name:<8} {state.suffix:<7} {state.module:<28} {state.problem or 'ok'}")
    talk.document({"schema_version": 1, "targets": [state.to_dict() for state in states]})
