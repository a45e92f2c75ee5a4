"""Deadlines that no test should reach, and a clock that stands until it is moved."""

from __future__ import annotations

from pnode.transport.deadline import Deadline

WAIT_S = 30.0


def soon() -> Deadline:
    """A deadline that no test should ever reach."""
    return Deadline.after(WAIT_S)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
