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

_LOOK_EVERY_S = 1.0
# Whoever looks and acts is done by then.
_END_S = 30.0

_SOME = re.compile(r"^some avg10=([0-9.]+)", re.MULTILINE)


class Step(IntEnum):
    """What a node does about it, from nothing to the worst."""

    NONE = 0
    REFUSE = 1
    DRAIN = 2
    KILL = 3


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When to act. All but the times are in per cent.

    stalled: of the last ten seconds, those in which some program waited for memory, as the kernel counts it. free: of
    the memory of the machine, or of the cgroup that has less. The `badly` ones: the machine is close to its end, and
    no step waits for the one before it. patience_s: how long a step may take to help before the next one. peace_s: how
    long there must be memory before all is well again.
    """

    stalled: float = 10.0
    badly_stalled: float = 40.0
    free: float = 5.0
    badly_free: float = 2.0
    patience_s: float = 10.0
    peace_s: float = 30.0


@dataclass(frozen=True)
class Reading:
    """How short memory is. stalled: in per cent; None where the kernel does not tell. free: in per cent.

    over_bytes: promised to VNodes that are at work, beyond what the owner grants by now.
    """

    stalled: float | None
    free: float
    over_bytes: int = 0

    def is_short(self, limits: Thresholds) -> bool:
        """Whether to begin to do something."""
        return (self.stalled or 0.0) >= limits.stalled or self.free < limits.free or self.over_bytes > 0

    def is_very_short(self, limits: Thresholds) -> bool:
        """Whether the machine is close to its end. An owner who takes memory back is no such haste."""
        return (self.stalled or 0.0) >= limits.badly_stalled or self.free < limits.badly_free

    def __str__(self) -> str:
        stalled = "" if self.stalled is None else f"programs waited for memory in {self.stalled:.0f} % of the time, "
        over = f", VNodes have {self.over_bytes} bytes more than limits.memory grants" if self.over_bytes else ""
        return f"{stalled}{self.free:.0f} % of memory is free{over}"


def read(pressure: Path = Path("/proc/pressure/memory"), *, over_bytes: int = 0) -> Reading:
    """How short memory is on this machine now."""
    try:
        found = _SOME.search(pressure.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError):
        found = None
    return Reading(float(found[1]) if found else None, 100 * budget.free_share(), over_bytes)


class Relief:
    """Turns readings into steps. `limits` may be set at any time."""

    def __init__(self, clock: Callable[[], float], limits: Thresholds) -> None:
        self._clock = clock
        self.limits = limits
        self.step = Step.NONE
        self._since = clock()
        self._short_at = clock()

    def judge(self, reading: Reading) -> Step | None:
        """The step to take now, or None where nothing changes. KILL is said again as long as it does not help."""
        now = self._clock()
        if not reading.is_short(self.limits):
            return self._recover(now)
        self._short_at = now
        waited = now - self._since >= self.limits.patience_s
        if self.step is Step.NONE or waited or reading.is_very_short(self.limits):
            return self._take(Step(min(self.step + 1, Step.KILL)), now)
        return None

    def _recover(self, now: float) -> Step | None:
        # A drain is not taken back: the node is leaving.
        if self.step is Step.REFUSE and now - self._short_at >= self.limits.peace_s:
            return self._take(Step.NONE, now)
        return None

    def _take(self, step: Step, now: float) -> Step:
        self.step, self._since = step, now
        return step


class Guard:
    """A thread that looks once a second, and tells its node of every step, with the figures in words."""

    def __init__(
        self,
        act: Callable[[Step, str], None],
        *,
        limits: Thresholds,
        look: Callable[[], Reading] = read,
        every_s: float = _LOOK_EVERY_S,
    ) -> None:
        self._act = act
        self._look = look
        self._every_s = every_s
        self._relief = Relief(time.monotonic, limits)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pressure", daemon=True)

    def judge_by(self, limits: Thresholds) -> None:
        """Other thresholds, from the next look on."""
        self._relief.limits = limits

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
            self._thread.join(_END_S)
