"""A lock that is given in the order of asking and waited for no longer than a deadline."""

from __future__ import annotations

import threading
from collections import deque

from pnode.errors import DeadlineExceeded


class Turns:
    """First come, first served. `threading.Lock` makes no such promise, and a busy VNode must starve nobody."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Event] = deque()

    def try_take(self) -> bool:
        """Take the turn if it is free now; `give` it back."""
        with self._lock:
            free = not self._taken
            self._taken = True
            return free

    def take(self, deadline_s: float | None) -> None:
        """Take the turn; `give` it back. Raises DeadlineExceeded where it does not come in time (None: no limit)."""
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Event()
            self._waiting.append(mine)
        if mine.wait(None if deadline_s is None else max(0.0, deadline_s)):
            return
        with self._lock:
            if mine.is_set():
                # The turn came just now; giving it up again would be slower for everyone than keeping it.
                return
            self._waiting.remove(mine)
        raise DeadlineExceeded("the worker was busy until the deadline")

    def give(self) -> None:
        """Give back the turn, to whoever waits longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._taken = False
