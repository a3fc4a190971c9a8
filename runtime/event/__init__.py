"""The event-driven CPU engine: runs a `.sev` file (stdeploy.exporters.event). Importing it needs numba (UserError)."""

from __future__ import annotations

import importlib.util

from stdeploy.errors import UserError

if importlib.util.find_spec("numba") is None:
    raise UserError(
        "numba is not installed, which the event engine needs", hint='pip install "stdeploy[event]"'
    )
