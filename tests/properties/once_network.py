"""A network of fibers: what was sent arrives when the scheduler says so, once, twice or never; answers likewise."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from once_fibers import PATIENCE, Fiber, FiberDeadline, Scheduler

from pnode.errors import DeadlineExceeded, PeerUnavailable, PNodeError
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Caller, Deadline

T = TypeVar("T")
# What may befall a call. Delays and reordering need no fate: they are the scheduler's choices.
FATES = ("lose request", "lose reply", "twice", "twice, late", "time out", "cancel")
# So late comes a duplicate that is late: steps and recoveries after its original.
LATE = 70


class Slot:
    """Where the answer to a call arrives."""

    def __init__(self) -> None:
        self.arrived = False
        self.reply: Any = None
        self.error: PNodeError | None = None

    def put(self, reply: Any, error: PNodeError | None = None) -> None:
        self.arrived, self.reply, self.error = True, reply, error


class Process:
    """A process with an address: a node or the orchestrator. `serves`: its interfaces by name."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.dead = False
        self.serves: dict[str, Any] = {}


class Network:
    """Calls between processes. `fates` befall the next calls, one each."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.fates: deque[str] = deque()
        self.processes: dict[str, Process] = {}
        self._senders: dict[Fiber, object] = {}
        self.num_calls = 0
        self.befell: deque[str] = deque()

    def stub(self, address: str, interface: str) -> Any:
        """The interface of whoever lives at an address."""
        return Stub(self, address, interface)

    def kill(self, process: Process) -> None:
        """SIGKILL: what it was doing ends, callers learn that they will get no answer."""
        process.dead = True
        self.scheduler.kill(process)

    def lose_what_left(self, sender: object) -> None:
        """What a process sent and nobody has received yet never arrives."""
        on_the_way = [fiber for fiber in self.scheduler.fibers if self._senders.get(fiber) is sender]
        self.scheduler.kill_each([fiber for fiber in on_the_way if not fiber.begun])

    def call(self, address: str, interface: str, name: str, request: Any, deadline: Deadline) -> Any:
        deadline.check()
        self.num_calls += 1
        fate = self.fates.popleft() if self.fates else ""
        if fate:
            self.befell.append(fate)
        slot, caller = Slot(), Caller()
        if fate != "lose request":
            self._send(address, interface, name, request, caller, Slot() if fate == "lose reply" else slot)
        if fate.startswith("twice"):
            self._send(address, interface, name, request, Caller(), Slot(), LATE if fate == "twice, late" else 0)
        process = self.processes[address]
        ends = self.scheduler.turns + PATIENCE if fate and not fate.startswith("twice") else 10**9
        self.scheduler.give_way(lambda: slot.arrived or process.dead or deadline.over or self.scheduler.turns >= ends)
        if not slot.arrived:
            if fate != "lose reply":
                caller.leave()  # the wire tells the callee that nobody waits
            if fate in ("time out", "cancel") or deadline.over:
                raise DeadlineExceeded(f"{name} at {address} was not answered in time")
            raise PeerUnavailable(f"{name} at {address}: the connection broke")
        if slot.error is not None:
            raise type(slot.error)(slot.error.message, retry_after_s=slot.error.retry_after_s)
        return copied(slot.reply)

    def _send(
        self, address: str, interface: str, name: str, request: Any, caller: Caller, slot: Slot, late: int = 0
    ) -> None:
        process = self.processes[address]
        arrives = copied(request)

        def serve() -> None:
            try:
                if process.dead:
                    raise PeerUnavailable(f"{address}: connection refused")
                answer = getattr(process.serves[interface], name)
                slot.put(answer(arrives, FiberDeadline(self.scheduler, caller)))
            except PNodeError as error:
                slot.put(None, error)

        arrival = self.scheduler.turns + late
        fiber = self.scheduler.spawn(f"{name} at {address}", process, serve)
        fiber.until = lambda: self.scheduler.turns >= arrival
        assert self.scheduler.current is not None, "only fibers call"
        self._senders[fiber] = self.scheduler.current.process


class Stub:
    """Any interface of api.py over the network."""

    def __init__(self, network: Network, address: str, interface: str) -> None:
        self._network = network
        self._address = address
        self._interface = interface

    def __getattr__(self, name: str) -> Callable[[Any, Deadline], Any]:
        return lambda request, deadline: self._network.call(self._address, self._interface, name, request, deadline)


def copied(message: T) -> T:
    """What arrives shares nothing with what was sent."""
    if isinstance(message, Parcel):
        return Parcel(copied(message.head), [bytes(payload) for payload in message.payloads])  # type: ignore[return-value]
    copy: Any = type(message)()
    copy.CopyFrom(message)
    return copy  # type: ignore[no-any-return]
