"""Counters of one process: how often something happened, by name. They only go up."""

from __future__ import annotations

import threading
from collections import Counter

# Names come from our own code, so there are few; a mistake must not become a leak all the same.
_MAX_NAMES = 4096


class Counters:
    """Named counts, thread-safe. A name is words joined by dots, the general one first: `refused.train.BUSY`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, number: int = 1) -> None:
        """Count `number` more."""
        with self._lock:
            if name in self._counts or len(self._counts) < _MAX_NAMES:
                self._counts[name] += number

    def value(self, name: str) -> int:
        """How often so far."""
        with self._lock:
            return self._counts.get(name, 0)

    def total(self, prefix: str) -> int:
        """Of all names that begin with these words."""
        return sum(count for name, count in self.read().items() if f"{name}.".startswith(f"{prefix}."))

    def read(self) -> dict[str, int]:
        """All of them, by name in order."""
        with self._lock:
            return dict(sorted(self._counts.items()))
