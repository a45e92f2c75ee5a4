"""Trying again: exponential backoff with full jitter, bounded by the caller's deadline, interrupted by shutdown.

Retries belong to the caller: only it knows which of its calls are idempotent. The stubs never retry.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from pnode.errors import Busy, PeerUnavailable, PNodeError, StoreUnavailable
from pnode.transport.deadline import Deadline

T = TypeVar("T")

# Waits so many seconds and returns False, or returns True at once when waiting is over, as Event.wait does.
Wait = Callable[[float], bool]

# What waiting can mend. WorkerLost is not among them: its VNode needs Restore, which is the orchestrator's to ask.
WORTH_A_RETRY: tuple[type[PNodeError], ...] = (Busy, PeerUnavailable, StoreUnavailable)


# Enough for connections that break now and then, one call in ten even.
FEW_TRIES = 4


class Backoff:
    """Pauses between tries: uniform in [0, min(cap_s, base_s * factor ** attempts)], after what the peer asked."""

    def __init__(
        self, base_s: float = 0.1, *, factor: float = 2.0, cap_s: float = 10.0, rng: random.Random | None = None
    ) -> None:
        if not (base_s >= 0 and factor >= 1 and cap_s >= 0):
            raise ValueError("a backoff needs base_s >= 0, factor >= 1 and cap_s >= 0")
        self._base_s = base_s
        self._factor = factor
        self._cap_s = cap_s
        self._ceiling_s = min(cap_s, base_s)
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries, guards nothing
        self.attempts = 0

    def next_s(self, error: PNodeError | None = None) -> float:
        """The next pause in seconds; never shorter than `error.retry_after_s`. Counts one attempt."""
        pause_s = self._rng.uniform(0.0, self._ceiling_s)
        self._ceiling_s = min(self._cap_s, self._ceiling_s * self._factor)
        self.attempts += 1
        asked_s = error.retry_after_s if error is not None and error.retry_after_s is not None else 0.0
        return asked_s + pause_s

    def reset(self) -> None:
        """Begin again from the shortest pause, after a success."""
        self.attempts = 0
        self._ceiling_s = min(self._cap_s, self._base_s)


def retry(
    call: Callable[[], T],
    deadline: Deadline,
    backoff: Backoff,
    wait: Wait,
    *,
    on: tuple[type[PNodeError], ...] = WORTH_A_RETRY,
    few: tuple[type[PNodeError], ...] = (),
) -> T:
    """What `call` returns, tried again after each error in `on` while the deadline leaves room for the pause.

    After those in `few` it is tried FEW_TRIES times in all: a connection may break once, while a peer that is gone
    stays gone until somebody mends it. Raises the last error, which says more than that time ran out, when no room is
    left or `wait` was interrupted.
    """
    broken = 0
    while True:
        deadline.check()
        try:
            return call()
        except (*on, *few) as error:
            broken += isinstance(error, few)
            if broken >= FEW_TRIES:
                raise
            pause_s = backoff.next_s(error)
            if pause_s >= deadline.left_s() or wait(pause_s):
                raise
