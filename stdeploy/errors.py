"""Errors, split by who has to act; anything else that escapes is a bug and keeps its traceback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


class StdeployError(Exception):
    """Base of the errors that the command line prints without a traceback."""

    exit_code = 70

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def lines(self) -> list[str]:
        """What the command line prints: `error:`, then `where:` and `hint:` where known."""
        out = [f"error: {self.message}"]
        if self.where:
            out.append(f"where: {self.where}")
        if self.hint:
            out.append(f"hint: {self.hint}")
        return out

    def __str__(self) -> str:
        return "\n".join(self.lines())[len("error: ") :]


class StdeployWarning(UserWarning):
    """What is asked for is done, but worse than it could be, and the user can change that."""


class UserError(StdeployError):
    """Input, option or environment is wrong and the user can change it (exit 2)."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Unsupported:
    """One thing a target or the trace cannot take.

    `where` is the module path (or the line of the model), `what` the operator, `reason` why not and
    `hint` what the user can do.
    """

    where: str
    what: str
    reason: str
    hint: str | None = None

    def __str__(self) -> str:
        text = f"{self.where or '(top level)'}: {self.what}: {self.reason}"
        return f"{text} ({self.hint})" if self.hint else text


class UnsupportedError(StdeployError):
    """The model is valid but something in it cannot be expressed (exit 3); lists every offender."""

    exit_code = 3

    def __init__(self, message: str, items: list[Unsupported], *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.items = list(items)

    def lines(self) -> list[str]:
        out = [f"error: {self.message}"]
        out += [f"where: {item}" for item in self.items]
        if self.hint:
            out.append(f"hint: {self.hint}")
        return out


class ParityError(StdeployError):
    """Two executors of one graph disagree by more than rounding (exit 1); `report` says where."""

    exit_code = 1

    def __init__(self, message: str, report: Any = None, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.report = report
