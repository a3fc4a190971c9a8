"""`stdeploy doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from stdeploy.cli.options import common_options

if TYPE_CHECKING:
    from stdeploy.cli.console import Talk

EPILOG = """\b
Examples:
  stdeploy doctor
  stdeploy doctor --json report.json
\b
Exit code 1 where something installed is broken; what is merely not installed is no fault.
"""


@click.command(epilog=EPILOG, short_help="Show what is installed here, and what is broken.")
@common_options
def command(talk: Talk) -> int:
    """Show versions, devices and readers found here, and what is broken."""
    from stdeploy.environment import examine

    found = examine()
    for part in found.parts:
        talk.result(f"{part.name:<16} {part.version or 'not installed':<16} {part.remark}".rstrip())
    for warning in found.warnings:
        talk.result(f"warning: {warning}")
    for problem in found.problems:
        talk.result(f"problem: {problem}")
    talk.document(found.to_dict())
    return 1 if found.problems else 0
