"""The two clocks of a command: the wall's, and the processor time that its worker uses, which the kernel counts."""

from __future__ import annotations

import math
import select
import time
from dataclasses import dataclass
from typing import Protocol

# The processor clock moves while it is read: below this it is asked again, and not slept for.
_LEAST_S = 0.001
_LONGEST_S = 86_400.0


class Socket(Protocol):
    """What can be polled."""

    def fileno(self) -> int: ...


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

    def await_readable(self, channel: Socket) -> str | None:
        """Wait until `channel` can be read; the name of the clock that ran out before that, or None.

        Nobody can use up processor time faster than all of its threads together, so that is how long this sleeps.
        """
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        while True:
            wall_left = self.wall_s - self.elapsed_s
            cpu_left = (self.cpu_s - self.used_s) / self.num_threads
            pause = min(max(wall_left, 0.0), max(cpu_left, _LEAST_S), _LONGEST_S)
            if poll.poll(math.ceil(pause * 1000)):
                return None
            if wall_left <= pause:
                return "wall"
            if self.used_s > self.cpu_s:
                return "cpu"
