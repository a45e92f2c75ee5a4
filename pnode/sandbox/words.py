"""What a worker says on stderr: kept in a pipe, whose capacity is the bound, and read once, when it has ended."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

# A pipe's capacity by default. What does not fit is lost: writing to a full one fails, and hinders nobody.
_MAX_BYTES = 65_536


class LastWords:
    """Both ends of the pipe; the writing one is handed to the worker."""

    def __init__(self) -> None:
        self._ours, self.theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._lock = threading.Lock()

    def read(self) -> str:
        """What was said, printable; nothing after `close`. The worker must have ended."""
        said = b""
        with self._lock, suppress(BlockingIOError):
            if self._ours >= 0:
                said = os.read(self._ours, _MAX_BYTES)
        lines = said.decode("utf-8", "replace").splitlines()
        return "\n".join("".join(each if each.isprintable() else "?" for each in line) for line in lines)

    def close(self) -> None:
        """Our end, once."""
        with self._lock:
            os.close(self._ours)
            self._ours = -1
