"""What a devnet run looks like right now: one state, changed by what happens, shown by a view. Thread-safe."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pnode.client import events
from pnode.devnet.child import Process, described
from pnode.devnet.killer import Killed


@dataclass
class NodeRow:
    """One process as it is shown."""

    name: str
    pid: int = 0
    address: str = ""
    state: str = "starting"
    vnodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Moment:
    """Something that happened, `at_s` seconds after the start."""

    at_s: float
    text: str


@dataclass
class Track:
    """A training on its way: losses by step, and the moments of its steps."""

    steps: int
    losses: dict[int, float] = field(default_factory=dict)
    last_step: int = -1
    points: list[tuple[float, int, float]] = field(default_factory=list)

    def add(self, at_s: float, step: int, loss: float) -> None:
        """A step is done, perhaps again."""
        self.losses[step] = loss
        self.last_step = step
        self.points.append((at_s, step, loss))


class Board:
    """Everything to show and to report. `on_moment` is told each moment as it comes."""

    def __init__(self, title: str, steps: int, on_moment: Callable[[Moment], None] = lambda moment: None) -> None:
        self.title = title
        self.phase = "starting"
        self.rows: dict[str, NodeRow] = {}
        self.moments: list[Moment] = []
        self.run = Track(steps)
        self.reference = Track(steps)
        self.num_differing_replays = 0
        self.recovery_s: list[float] = []
        self.lock = threading.RLock()
        self._started = time.monotonic()
        self._on_moment = on_moment
        self._hurt_at_s: float | None = None
        self._generation = 0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def note(self, text: str) -> None:
        """Remember and tell something that happened."""
        with self.lock:
            moment = Moment(self.seconds, text)
            self.moments.append(moment)
        self._on_moment(moment)

    def enter(self, phase: str) -> None:
        """What is done now."""
        with self.lock:
            self.phase = phase
        self.note(phase)

    # Processes

    def starting(self, name: str) -> None:
        """A process is about to be started."""
        with self.lock:
            self.rows[name] = NodeRow(name)

    def started(self, child: Process) -> None:
        """A process was started."""
        with self.lock:
            self.rows[child.name].pid = child.pid

    def busy(self, child: Process) -> None:
        """A process is still starting: its log says with what."""
        words = child.tail(1).split(": ", 1)[-1].strip()
        with self.lock:
            self.rows[child.name].state = f"starting: {words[:60]}" if words else "starting"

    def serves(self, child: Process) -> None:
        """A process serves."""
        with self.lock:
            row = self.rows[child.name]
            row.address, row.state = child.address, "serving"
        self.note(f"{child.name} serves on {child.address} (pid {child.pid})")

    def ended(self, name: str, code: int, *, expected: bool) -> None:
        """A process has ended."""
        with self.lock:
            row = self.rows[name]
            killed = row.state.startswith("killed")
            row.vnodes = ()
            if not killed:
                row.state = "left" if code == 0 else f"ended ({described(code)})"
        if not (expected or killed):
            self.note(f"{name} ended by itself: {described(code)}")

    def killed(self, killed: Killed) -> None:
        """A node was killed on purpose."""
        with self.lock:
            self.rows[killed.node].state = f"killed at step {killed.step}"
            self.rows[killed.node].vnodes = ()
            self._hurt_at_s = self.seconds
        self.note(f"SIGKILL to {killed.node} (pid {killed.pid}) during step {killed.step}")

    # The driver

    def event(self, event: events.Event) -> None:
        """Take one of the driver's events in."""
        match event:
            case events.Waiting() if event.why:
                self.note(f"waiting: {event.why}")
            case events.Serving():
                self._serving(event)
            case events.Interrupted():
                self.note(f"interrupted: {event.reason}: {event.message}")
            case events.StepDone():
                self._step_done(event)
            case events.Checkpointed():
                self.note(f"checkpoint at version {event.version}: {event.manifest_sha256[:12]}")
            case events.CheckpointMissed():
                self.note(f"no checkpoint at version {event.version}: {event.message}")

    def _serving(self, event: events.Serving) -> None:
        with self.lock:
            is_new, self._generation = event.generation > self._generation, event.generation
            names = {row.address: row.name for row in self.rows.values() if row.address}
            places = [(vnode, names.get(address, address)) for vnode, _, address in event.places]
            for row in self.rows.values():
                row.vnodes = tuple(vnode for vnode, name in places if name == row.name)
            if self._hurt_at_s is not None and is_new:
                self.recovery_s.append(self.seconds - self._hurt_at_s)
                self._hurt_at_s = None
        where = ", ".join(f"{vnode} on {name}" for vnode, name in places)
        if is_new:
            begins = f"from step {event.version}" if event.version else "from the beginning"
            self.note(f"generation {event.generation}: {where}; training {begins}")
        else:  # the driver was faster than the orchestrator, or nothing was lost: it asks the VNodes where they stand
            self.note(f"generation {event.generation} again: {where}")

    def _step_done(self, event: events.StepDone) -> None:
        with self.lock:
            before = self.run.losses.get(event.step)
            if event.loss is None:
                return
            if before is not None and before != event.loss:
                self.num_differing_replays += 1
            self.run.add(self.seconds, event.step, event.loss)

    # The reference

    def reference_line(self, line: dict[str, object]) -> None:
        """Take one line of the reference process in."""
        if line.get("event") == "step":
            step, loss = line["step"], line["loss"]
            assert isinstance(step, int), "our own child wrote it"
            assert isinstance(loss, float), "our own child wrote it"
            with self.lock:
                self.reference.add(self.seconds, step, loss)
