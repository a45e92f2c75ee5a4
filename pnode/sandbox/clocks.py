"""The two clocks of a command: the wall's, and the processor time that its worker uses, which the kernel counts."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# The processor clock moves while it is read: below this it is asked again, and not slept for.
_LEAST_S = 0.001
_LONGEST_S = 86_400.0


class Poll(Protocol):
    """The part of select.poll that is used here: waits so many milliseconds for what was registered."""

    def poll(self, timeout: float, /) -> Sequence[object]: ...


def cpu_s(pid: int) -> float | None:
    """Processor time that a process has used, all of its threads together; None once it is gone."""
    # As clock_getcpuclockid(3) makes it: the complement of the number, and the scheduler's clock of the process.
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return None


@dataclass
class Allowance:
    """What one command may use, from the moment that it is made."""

    pid: int
    cpu_s: float
    wall_s: float
    num_threads: int

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        self._used = cpu_s(self.pid) or 0.0

    @property
    def elapsed_s(self) -> float:
        """Of the wall's clock."""
        return time.monotonic() - self._began

    @property
    def used_s(self) -> float:
        """Of the processor's clock; 0 for a worker that is gone, whose socket tells."""
        now = cpu_s(self.pid)
        return 0.0 if now is None else now - self._used

    def await_readable(self, channel: Poll) -> str | None:
        """Wait until what is polled can be read; the name of the clock that ran out before that, or None.

        Nobody can use up processor time faster than all of its threads together, so that is how long this sleeps.
        """
        wall_left, used = self.wall_s, 0.0
        while True:
            cpu_left = (self.cpu_s - used) / self.num_threads
            pause = min(max(wall_left, 0.0), max(cpu_left, _LEAST_S), _LONGEST_S)
            if channel.poll(math.ceil(pause * 1000)):
                return None
            if wall_left <= pause:
                return "wall"
            wall_left, used = self.wall_s - self.elapsed_s, self.used_s
            if used > self.cpu_s:
                return "cpu"
