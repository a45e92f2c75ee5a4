"""Errands to the store: whoever sends one waits no longer than its deadline, and the errand ends behind its back.

A store that hangs is found out by its own time limits, several tries of many seconds each: longer than most calls
last. No call's thread and no VNode's turn is held by that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, NoReturn, TypeVar

from pnode.errors import DeadlineExceeded, StoreUnavailable
from pnode.transport.deadline import Deadline

T = TypeVar("T")

# As many as boto3 keeps connections; those that nobody waits for any more are among them until they have ended.
MOST = 32
_RETRY_AFTER_S = 1.0


class Errands:
    """Each runs in a thread of its own, at most `most` at once."""

    def __init__(self, most: int = MOST) -> None:
        self._places = threading.BoundedSemaphore(most)

    def run(self, doing: str, errand: Callable[[], T], deadline: Deadline) -> T:
        """What it returns or raises.

        Raises DeadlineExceeded where it has not ended in time or the caller has left: it goes to its end all the same,
        so it must be one that may be done twice. Raises StoreUnavailable where too many are under way.
        """
        deadline.check()
        if not self._places.acquire(blocking=False):
            raise StoreUnavailable(f"{doing}: too many calls to the store are under way", retry_after_s=_RETRY_AFTER_S)
        one = _Errand(errand, self._places.release)
        # A daemon: a store that hangs does not keep the process from ending.
        threading.Thread(target=one.run, name="pnode-store", daemon=True).start()
        deadline.await_event(one.ended)
        if one.outcome is None:
            raise DeadlineExceeded(f"{doing}: the store takes longer than the call may")
        return one.outcome()


class _Errand(Generic[T]):
    """One of them and, once it has ended, its outcome: what returns its result or raises its error."""

    def __init__(self, errand: Callable[[], T], leave: Callable[[], None]) -> None:
        self._errand = errand
        self._leave = leave
        self.ended = threading.Event()
        self.outcome: Callable[[], T] | None = None

    def run(self) -> None:
        try:
            result = self._errand()
            self.outcome = lambda: result
        except BaseException as error:  # noqa: BLE001 - it is for whoever waits
            self.outcome = _raising(error)
        finally:
            self._leave()
            self.ended.set()


def _raising(error: BaseException) -> Callable[[], NoReturn]:
    def raises() -> NoReturn:
        raise error

    return raises
