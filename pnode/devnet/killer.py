"""Kills nodes at the planned moments: SIGKILL somewhere inside a step, whatever is under way then."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pnode.client import events
from pnode.devnet.child import Process
from pnode.devnet.plan import Kill

# Of a step's time before any was measured.
_FIRST_STEP_S = 0.1
# A kill under way takes no longer.
_END_S = 60.0


@dataclass(frozen=True)
class Killed:
    """A kill that was carried out."""

    node: str
    pid: int
    step: int
    generation: int
    after_s: float


class Killer:
    """Watches the driver's events. `nodes`: those of now. `bring_back`: starts a node of this name again.

    `on_kill` is told from a timer's thread, just before the signal is sent.
    """

    def __init__(
        self,
        plan: Sequence[Kill],
        nodes: Callable[[], Sequence[Process]],
        on_kill: Callable[[Killed], None],
        bring_back: Callable[[str], None],
    ) -> None:
        self._left = list(plan)
        self._nodes = nodes
        self._on_kill = on_kill
        self._bring_back = bring_back
        self._seconds: deque[float] = deque([_FIRST_STEP_S], maxlen=20)
        self._hosting: set[str] = set()
        self._timer: threading.Timer | None = None
        self.done: list[Killed] = []

    def event(self, event: events.Event) -> None:
        """Take one of the driver's events in."""
        match event:
            case events.Serving():
                self._hosting = {address for _, _, address in event.places}
            case events.StepDone():
                self._seconds.append(event.seconds)
            case events.StepStarted() if self._left and event.step >= self._left[0].step:
                self._schedule(self._left.pop(0), event)

    def _schedule(self, kill: Kill, event: events.StepStarted) -> None:
        self.close()
        after_s = kill.fraction * sum(self._seconds) / len(self._seconds)
        self._timer = threading.Timer(after_s, self._kill, (kill, event, after_s))
        self._timer.daemon = True
        self._timer.start()

    def _kill(self, kill: Kill, event: events.StepStarted, after_s: float) -> None:
        alive = [node for node in self._nodes() if node.exit_code is None]
        if not alive:
            return
        hosting = [node for node in alive if node.address in self._hosting] or alive
        victim = hosting[int(kill.draw * len(hosting))]
        killed = Killed(victim.name, victim.pid, event.step, event.generation, after_s)
        self.done.append(killed)
        # Told first, so that nobody takes its end for an accident.
        self._on_kill(killed)
        victim.kill()
        if kill.returns:
            self._bring_back(victim.name)

    def close(self) -> None:
        """Let a kill that is under way be carried out."""
        if self._timer is not None:
            self._timer.join(_END_S)
