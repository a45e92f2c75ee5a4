"""What the sandbox's tests share: a callback that can be waited for, zygotes that misbehave, what is open now."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from pnode.sandbox.supervisor import Verdict, WorkerProcess

DEADLINE_S = 20.0


class Exits:
    """An on_exit that collects and can be waited for."""

    def __init__(self) -> None:
        self.seen: list[tuple[WorkerProcess, Verdict]] = []
        self._changed = threading.Condition()

    def __call__(self, worker: WorkerProcess, verdict: Verdict) -> None:
        with self._changed:
            self.seen.append((worker, verdict))
            self._changed.notify_all()

    def wait(self, num: int = 1) -> list[Verdict]:
        """The verdicts, once there are `num`."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= num, DEADLINE_S), "nobody told of the end"
            return [verdict for _, verdict in self.seen]


def hostile(wish: str = "none") -> tuple[str, ...]:
    """The command line of a zygote whose workers misbehave on command."""
    return ("-P", str(Path(__file__).with_name("hostile_program.py")), wish)


def outside(pid: int | None) -> dict[str, str]:
    """What /proc/PID/status says of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}


def open_fds() -> set[str]:
    """Of this process."""
    return set(os.listdir("/proc/self/fd"))
