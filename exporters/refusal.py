"""Why a lowering cannot express a node; the lowering catches it, adds the module path and goes on with the rest."""

from __future__ import annotations


class Refusal(Exception):
    """One node's reason, and a next step where there is one."""

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.hint = reason, hint
