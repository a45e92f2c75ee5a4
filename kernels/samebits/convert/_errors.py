"""What convert raises: every reason at once, so that a user can judge what is left to do."""

from __future__ import annotations

from typing import NamedTuple


class Reason(NamedTuple):
    """One thing that stands in the way."""

    path: str
    """Of the submodule, as in named_modules(); the module itself is ''."""
    text: str


class CannotConvert(TypeError):
    """convert refuses a module. `reasons` has a Reason for everything that it cannot convert."""

    def __init__(self, reasons: list[Reason]) -> None:
        self.reasons = tuple(reasons)
        lines = [f"{reason.path or '(the module itself)'}: {reason.text}" for reason in reasons]
        super().__init__("\n  ".join(["convert: samebits has no counterpart for", *lines]))


class Unfit(Exception):
    """A layer's option that has no counterpart; turned into a Reason where the path is known."""
