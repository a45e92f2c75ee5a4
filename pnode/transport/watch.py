"""A watch over calls: whatever is not done in time is ended, by one thread for all of them.

gRPC's synchronous server ends no call by itself: a caller that sets no deadline and sends nothing, or never reads its
reply, would hold a thread or memory for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# The thread looks again at least so often.
_LONGEST_S = 60.0


class Due:
    """What will be ended, and when, on the monotonic clock."""

    __slots__ = ("_watch", "at_s", "end")

    def __init__(self, watch: Watch, end: Callable[[], object]) -> None:
        self._watch = watch
        self.end = end
        self.at_s = 0.0

    def move(self, seconds: float) -> None:
        """End it so many seconds from now instead; what was ended already stays so."""
        with self._watch._lock:
            self._watch._expect(self, seconds)

    def call_off(self) -> None:
        """Do not end it."""
        with self._watch._lock:
            self._watch._due.discard(self)


class Watch:
    """Thread-safe. Its thread begins with the first call and ends with `close`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._due: set[Due] = set()
        self._looks_at = 0.0
        self._thread: threading.Thread | None = None
        self._closed = False

    def begin(self, seconds: float, end: Callable[[], object]) -> Due:
        """Call `end`, once, so many seconds from now, unless that is moved or called off."""
        due = Due(self, end)
        with self._lock:
            self._due.add(due)
            self._expect(due, seconds)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._look, name="pnode-watch", daemon=True)
                self._thread.start()
        return due

    def _expect(self, due: Due, seconds: float) -> None:
        due.at_s = time.monotonic() + seconds
        if due.at_s < self._looks_at:
            self._changed.notify_all()

    @contextmanager
    def over(self, seconds: float, end: Callable[[], object]) -> Iterator[None]:
        """Call `end` if what happens inside takes longer than so many seconds."""
        due = self.begin(seconds, end)
        try:
            yield
        finally:
            due.call_off()

    def close(self) -> None:
        """Watch no more; what is due later is not ended."""
        with self._lock:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_LONGEST_S)

    def _look(self) -> None:
        while (late := self._late()) is not None:
            for end in late:
                end()

    def _late(self) -> list[Callable[[], object]] | None:
        """Those whose time has come, once there are some; None when the watch has ended."""
        with self._lock:
            while not self._closed:
                now = time.monotonic()
                late = sorted((due for due in self._due if due.at_s <= now), key=lambda due: due.at_s)
                self._due.difference_update(late)
                if late:
                    return [due.end for due in late]
                self._looks_at = min([now + _LONGEST_S, *(due.at_s for due in self._due)])
                self._changed.wait(self._looks_at - now)
        return None
