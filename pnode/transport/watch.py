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


class Watch:
    """Thread-safe. Its thread begins with the first call and ends with `close`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: dict[object, tuple[float, Callable[[], object]]] = {}
        self._looks_at = 0.0
        self._thread: threading.Thread | None = None
        self._closed = False

    def begin(self, seconds: float, end: Callable[[], object]) -> Callable[[], None]:
        """Call `end`, once, so many seconds from now. Returns what calls that off."""
        token, due = object(), time.monotonic() + seconds
        with self._changed:
            self._due[token] = (due, end)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._look, name="pnode-watch", daemon=True)
                self._thread.start()
            elif due < self._looks_at:
                self._changed.notify_all()

        def call_off() -> None:
            with self._changed:
                self._due.pop(token, None)

        return call_off

    @contextmanager
    def over(self, seconds: float, end: Callable[[], object]) -> Iterator[None]:
        """Call `end` if what happens inside takes longer than so many seconds."""
        call_off = self.begin(seconds, end)
        try:
            yield
        finally:
            call_off()

    def close(self) -> None:
        """Watch no more; what is due later is not ended."""
        with self._changed:
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
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                late = {token: end for token, (due, end) in self._due.items() if due <= now}
                for token in late:
                    del self._due[token]
                if late:
                    return list(late.values())
                self._looks_at = min([now + _LONGEST_S, *(due for due, _ in self._due.values())])
                self._changed.wait(self._looks_at - now)
        return None
