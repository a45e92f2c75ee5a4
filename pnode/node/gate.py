"""The node's front gate: counts the calls inside, and closes for a drain."""

from __future__ import annotations

import threading

from pnode.errors import Busy, Draining

# While the node holds back, calls should come again after this long.
_RETRY_AFTER_S = 2.0


class Gate:
    """Open until `close`, but for the time that it holds back; `wait_empty` then tells when the last call has left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._inside = 0
        self._closed = False
        self._held_for = ""

    @property
    def inside(self) -> int:
        """Calls inside now."""
        return self._inside

    @property
    def closed(self) -> bool:
        """Whether new work is refused."""
        return self._closed

    def __enter__(self) -> None:
        """Hold one place inside. Raises Draining once the gate is closed, Busy while it holds back."""
        with self._lock:
            if self._closed:
                raise Draining("this node is draining and takes no new work", retry_after_s=1.0)
            self.check_not_held()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._changed.notify_all()

    def check_not_held(self) -> None:
        """Raises Busy while the gate holds back."""
        if self._held_for:
            raise Busy(f"this node takes no new work for now: {self._held_for}", retry_after_s=_RETRY_AFTER_S)

    def hold_back(self, reason: str) -> None:
        """Refuse new calls for now, and say why; with no reason, take them again."""
        self._held_for = reason

    def close(self) -> None:
        """Refuse new calls from now on."""
        with self._lock:
            self._closed = True

    def wait_empty(self, timeout_s: float) -> bool:
        """Wait until nobody is inside; False when `timeout_s` passed first."""
        with self._changed:
            return self._changed.wait_for(lambda: self._inside == 0, timeout=timeout_s)
