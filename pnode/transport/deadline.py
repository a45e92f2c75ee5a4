"""Deadlines: every call has one, and a chain passes down what is left of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

from pnode.errors import DeadlineExceeded


class Call(Protocol):
    """The part of a gRPC servicer context that a deadline is made from."""

    def time_remaining(self) -> float | None: ...
    def is_active(self) -> bool: ...


def _never() -> bool:
    return False


class Deadline:
    """A moment on a clock (seconds) by which a call must have ended, and whether its caller still waits."""

    __slots__ = ("_at_s", "_cancelled", "_clock")

    def __init__(
        self, at_s: float, *, clock: Callable[[], float] = time.monotonic, cancelled: Callable[[], bool] = _never
    ) -> None:
        if not math.isfinite(at_s):
            raise ValueError("a deadline is a finite moment: nothing waits for ever")
        self._at_s = at_s
        self._clock = clock
        self._cancelled = cancelled

    @classmethod
    def after(cls, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> Deadline:
        """The deadline so many seconds from now."""
        return cls(clock() + seconds, clock=clock)

    @classmethod
    def of_call(
        cls, call: Call, *, default_s: float, max_s: float, clock: Callable[[], float] = time.monotonic
    ) -> Deadline:
        """The deadline of a call that came in: the caller's own, at most `max_s`; `default_s` where it set none."""
        remaining_s = call.time_remaining()
        # gRPC gives calls without a deadline one some 292 thousand million years away.
        seconds = default_s if remaining_s is None or remaining_s > _FOREVER_S else remaining_s
        return cls(clock() + min(seconds, max_s), clock=clock, cancelled=lambda: not call.is_active())

    def left_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self._at_s - self._clock())

    @property
    def passed(self) -> bool:
        """Whether the moment has come."""
        return self._clock() >= self._at_s

    @property
    def cancelled(self) -> bool:
        """Whether the caller has gone: it cancelled, lost its connection, or its own deadline passed."""
        return self._cancelled()

    def check(self) -> None:
        """Raise DeadlineExceeded when the deadline has passed or nobody waits for the answer."""
        if self.passed:
            raise DeadlineExceeded("the deadline of the call has passed")
        if self.cancelled:
            raise DeadlineExceeded("the caller no longer waits for the answer")

    def at_most(self, seconds: float) -> Deadline:
        """This deadline, or the one so many seconds from now if that is sooner."""
        return Deadline(min(self._at_s, self._clock() + seconds), clock=self._clock, cancelled=self._cancelled)

    def __repr__(self) -> str:
        return f"Deadline(left_s={self.left_s():.3f})"


# Ten years: more than any caller means, far less than gRPC's "no deadline".
_FOREVER_S = 10 * 365 * 86_400.0
