"""When memory runs short on the machine, its owner comes first: refuse new work, then drain, then end the newest VNode.

A pure machine: it is told how short memory is and says what to do. One step a time, each only after the one before it
had time to help, and back to normal once memory has been there for a while.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from pnode.node import budget

log = logging.getLogger(__name__)

# Share of the last ten seconds in which some process waited for memory, in per cent, as the kernel counts it.
_STALLED = 10.0
_BADLY_STALLED = 40.0
# The same in free memory, for kernels that count no stalls: shares of the machine's.
_SHORT = 0.05
_VERY_SHORT = 0.02
# How long a step may take to help before the next one, and how long there must be peace before all is well again.
_PATIENCE_S = 10.0
_PEACE_S = 30.0

_LOOK_EVERY_S = 1.0

_SOME = re.compile(r"^some avg10=([0-9.]+)", re.MULTILINE)


class Step(IntEnum):
    """What a node does about it, from nothing to the worst."""

    NONE = 0
    REFUSE = 1
    DRAIN = 2
    KILL = 3


@dataclass(frozen=True)
class Reading:
    """How short memory is. stalled: in per cent; None where the kernel does not tell. free: as a share of all."""

    stalled: float | None
    free: float

    @property
    def is_short(self) -> bool:
        """Whether to begin to do something."""
        return (self.stalled or 0.0) >= _STALLED or self.free < _SHORT

    @property
    def is_very_short(self) -> bool:
        """Whether the machine is close to its end: no step waits for the one before it."""
        return (self.stalled or 0.0) >= _BADLY_STALLED or self.free < _VERY_SHORT

    def __str__(self) -> str:
        stalled = "" if self.stalled is None else f"programs waited for memory in {self.stalled:.0f} % of the time, "
        return f"{stalled}{100 * self.free:.0f} % of memory is free"


def read(pressure: Path = Path("/proc/pressure/memory")) -> Reading:
    """How short memory is on this machine now."""
    try:
        found = _SOME.search(pressure.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError):
        found = None
    return Reading(float(found[1]) if found else None, budget.free_bytes() / max(1, budget.machine_bytes()))


class Relief:
    """Turns readings into steps."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.step = Step.NONE
        self._since = clock()
        self._short_at = clock()

    def judge(self, reading: Reading) -> Step | None:
        """The step to take now, or None where nothing changes. KILL is said again as long as it does not help."""
        now = self._clock()
        if not reading.is_short:
            return self._recover(now)
        self._short_at = now
        if self.step is Step.NONE or reading.is_very_short or now - self._since >= _PATIENCE_S:
            return self._take(Step(min(self.step + 1, Step.KILL)), now)
        return None

    def _recover(self, now: float) -> Step | None:
        # A drain is not taken back: the node is leaving.
        if self.step is Step.REFUSE and now - self._short_at >= _PEACE_S:
            return self._take(Step.NONE, now)
        return None

    def _take(self, step: Step, now: float) -> Step:
        self.step, self._since = step, now
        return step


class Guard:
    """A thread that looks once a second, and tells its node of every step, with the figures in words."""

    def __init__(
        self, act: Callable[[Step, str], None], *, look: Callable[[], Reading] = read, every_s: float = _LOOK_EVERY_S
    ) -> None:
        self._act = act
        self._look = look
        self._every_s = every_s
        self._relief = Relief(time.monotonic)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pressure", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def _watch(self) -> None:
        while not self._closing.wait(self._every_s):
            reading = self._look()
            step = self._relief.judge(reading)
            if step is not None:
                log.warning("memory: %s: %s", step.name.lower(), reading)
                self._act(step, str(reading))

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
