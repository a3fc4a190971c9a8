"""The command line: one file per sub-command, none with logic of its own."""

from __future__ import annotations

from stdeploy.cli.app import main

__all__ = ["main"]
