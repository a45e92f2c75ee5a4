"""Errands to the store: whoever sends one waits no longer than its deadline, and the errand ends behind its back.

A store that hangs is found out by its own time limits, several tries of many seconds each: longer than most calls
last. No call's thread and no VNode's turn is held by that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, NoReturn, TypeVar

from pnode.errors import DeadlineExceeded, StoreUnavailable
from pnode.transport.deadline import Deadline

T = TypeVar("T")

# As many as boto3 keeps connections; those that nobody waits for any more are among them until they have ended.
MOST = 32
_RETRY_AFTER_S = 1.0


class Errands:
    """Each runs in a thread of its own, at most `most` at once. Of those with one key there is never more than one."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._under_way: dict[Hashable, _Errand[Any]] = {}
        # The last one that nobody waited for to its end: whoever comes again for it has it at once, and so gets on.
        self._unclaimed: tuple[Hashable, _Errand[Any]] | None = None

    def run(
        self, doing: str, key: Hashable, errand: Callable[[], T], deadline: Deadline, *, lasting: bool = False
    ) -> T:
        """What it returns or raises. Where one with this key is under way already, that one is waited for.

        lasting: what it returns stays true, so a result that nobody waited for is kept until another one is.

        Raises DeadlineExceeded where it has not ended in time or the caller has left: it goes to its end all the same,
        so it must be one that may be done twice. Raises StoreUnavailable where too many are under way.
        """
        deadline.check()
        one = self._one(doing, key, errand, lasting)
        deadline.await_event(one.ended)
        with self._lock:
            one.num_waiting -= 1
        if one.outcome is None:
            raise DeadlineExceeded(f"{doing}: the store takes longer than the call may")
        return one.outcome()

    def _one(self, doing: str, key: Hashable, errand: Callable[[], T], lasting: bool) -> _Errand[T]:
        """The errand to wait for: one that is known, or a new one."""
        with self._lock:
            one = self._under_way.get(key)
            if one is None and self._unclaimed is not None and self._unclaimed[0] == key:
                one = self._unclaimed[1]
                self._unclaimed = None
            if one is None:
                if len(self._under_way) >= self._most:
                    why = f"{doing}: too many calls to the store are under way"
                    raise StoreUnavailable(why, retry_after_s=_RETRY_AFTER_S)
                one = _Errand(errand, lambda: self._ended(key, lasting))
                # A daemon: a store that hangs does not keep the process from ending.
                threading.Thread(target=one.run, name="pnode-store", daemon=True).start()
                self._under_way[key] = one
            one.num_waiting += 1
            return one

    def _ended(self, key: Hashable, lasting: bool) -> None:
        with self._lock:
            one = self._under_way.pop(key)
            if lasting and not one.num_waiting and not one.failed:
                self._unclaimed = (key, one)


class _Errand(Generic[T]):
    """One of them and, once it has ended, its outcome: what returns its result or raises its error."""

    def __init__(self, errand: Callable[[], T], leave: Callable[[], None]) -> None:
        self._errand = errand
        self._leave = leave
        self.num_waiting = 0
        self.failed = False
        self.ended = threading.Event()
        self.outcome: Callable[[], T] | None = None

    def run(self) -> None:
        try:
            result = self._errand()
            self.outcome = lambda: result
        except BaseException as error:  # noqa: BLE001 - it is for whoever waits
            self.failed, self.outcome = True, _raising(error)
        finally:
            self._leave()
            self.ended.set()


def _raising(error: BaseException) -> Callable[[], NoReturn]:
    def raises() -> NoReturn:
        raise error

    return raises
