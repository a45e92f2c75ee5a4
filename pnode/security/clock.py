"""The orchestrator's time, as a member knows it: the last word of the orchestrator, carried on by the steady clock.

Clocks at home are wrong, and tokens must not be judged by them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class NetworkClock:
    """Unknown until it is `set`. Thread-safe."""

    def __init__(self, steady: Callable[[], float] = time.monotonic) -> None:
        self._steady = steady
        self._lock = threading.Lock()
        self._set: tuple[float, float] | None = None

    def set(self, unix_s: float) -> None:
        """The orchestrator said that it is now so late."""
        with self._lock:
            self._set = (unix_s, self._steady())

    def now(self) -> float | None:
        """Unix seconds at the orchestrator, give or take a message's way; None before it ever answered."""
        with self._lock:
            if self._set is None:
                return None
            said, at = self._set
            return said + (self._steady() - at)
