"""Turns at something scarce: first come, first served within a caller, and the callers one after the other.

A flood by one caller makes that caller wait, and nobody else for more than one turn of it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from itertools import zip_longest
from typing import NamedTuple

from pnode.errors import Busy, DeadlineExceeded
from pnode.transport.deadline import Deadline

# What a caller that found the queue full should wait: about the time of one short command.
_RETRY_AFTER_S = 0.1


class Bounds(NamedTuple):
    """How many may wait: in all, and of one caller."""

    most: int
    most_each: int


class _State(Enum):
    WAITING = 1
    HELD = 2
    TAKEN_ALONG = 3


class Ticket:
    """A place in the queue. `offer` is what whoever holds the turn may do along with its own work."""

    __slots__ = ("_awake", "_state", "amount", "bounded", "caller", "offer")

    def __init__(self, caller: str, amount: int, offer: object, bounded: bool) -> None:
        self.caller = caller
        self.amount = amount
        self.offer = offer
        self.bounded = bounded
        self._state = _State.WAITING
        self._awake = threading.Event()

    def finish(self) -> None:
        """What was taken along is done: wake whoever waits for it."""
        self._awake.set()


class FairTurns:
    """`capacity` units, of which each turn holds some. Of one caller's turns at most `share` units are held at once."""

    def __init__(self, what: str, *, capacity: int = 1, share: int | None = None) -> None:
        self._what = what
        self._share = capacity if share is None else share
        self._lock = threading.Lock()
        self._free = capacity
        self._held: dict[str, int] = {}
        # In the order in which the callers come next.
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()

    @contextmanager
    def taken(self, deadline: Deadline) -> Iterator[None]:
        """Hold one unit. Raises DeadlineExceeded where the turn does not come in time, or nobody waits any more."""
        ticket = self.ask(deadline.caller.name)
        self.wait(ticket, deadline)
        try:
            yield
        finally:
            self.give(ticket)

    @property
    def num_waiting(self) -> int:
        """Those who asked and have no turn yet."""
        with self._lock:
            return sum(map(len, self._queues.values()))

    def ask(self, caller: str, amount: int = 1, *, offer: object = None, bounds: Bounds | None = None) -> Ticket:
        """Queue up. `wait` must follow. Raises Busy where as many wait already as `bounds` allow."""
        ticket = Ticket(caller, amount, offer, bounds is not None)
        with self._lock:
            if bounds is not None:
                self._check_room(caller, bounds)
            self._queues.setdefault(caller, deque()).append(ticket)
            self._grant()
        return ticket

    def wait(self, ticket: Ticket, deadline: Deadline) -> bool:
        """Wait for the turn: True when it came, False when the work was taken along by someone else's.

        Raises DeadlineExceeded when neither happened in time; the place in the queue is given up then.
        """
        if not ticket._awake.is_set():
            with deadline.caller.telling(ticket._awake.set):
                while not ticket._awake.is_set() and not deadline.over:
                    ticket._awake.wait(deadline.left_s())
        with self._lock:
            if ticket._state is _State.WAITING:
                self._remove(ticket)
                raise DeadlineExceeded(f"{self._what} was busy until the deadline, or until its caller left")
            return ticket._state is _State.HELD

    def give(self, ticket: Ticket) -> None:
        """End a turn."""
        self.resize(ticket, 0)

    def resize(self, ticket: Ticket, amount: int) -> None:
        """Hold more or less than was asked for. More is taken even where it is not free: it exists already."""
        with self._lock:
            self._account(ticket.caller, amount - ticket.amount)
            ticket.amount = amount
            self._grant()

    def take_along(self, wanted: Callable[[object], bool]) -> list[Ticket]:
        """Take out of the queue those whose offer is wanted, in the order of their turns; `finish` must follow."""
        taken = []
        with self._lock:
            rounds = zip_longest(*self._queues.values())
            for ticket in [each for turn in rounds for each in turn if each is not None and each.offer is not None]:
                if wanted(ticket.offer):
                    ticket._state = _State.TAKEN_ALONG
                    self._remove(ticket)
                    taken.append(ticket)
        return taken

    def _check_room(self, caller: str, bounds: Bounds) -> None:
        waiting = sum(ticket.bounded for queue in self._queues.values() for ticket in queue)
        mine = sum(ticket.bounded for ticket in self._queues.get(caller, ()))
        if mine >= bounds.most_each:
            raise Busy(f"{mine} calls of this client wait for {self._what} already", retry_after_s=_RETRY_AFTER_S)
        if waiting >= bounds.most:
            raise Busy(f"{waiting} calls wait for {self._what} already", retry_after_s=_RETRY_AFTER_S)

    def _grant(self) -> None:
        """Give what is free to those whose turn it is."""
        while (ticket := self._next()) is not None:
            self._remove(ticket)
            if ticket.caller in self._queues:
                self._queues.move_to_end(ticket.caller)
            self._account(ticket.caller, ticket.amount)
            ticket._state = _State.HELD
            ticket._awake.set()

    def _next(self) -> Ticket | None:
        for caller, queue in self._queues.items():
            held = self._held.get(caller, 0)
            if held == 0 or held + queue[0].amount <= self._share:
                # The first who may hold more is waited for, or what asks for much would never get it.
                return queue[0] if queue[0].amount <= self._free else None
        return None

    def _account(self, caller: str, amount: int) -> None:
        self._free -= amount
        held = self._held.get(caller, 0) + amount
        if held:
            self._held[caller] = held
        else:
            self._held.pop(caller, None)

    def _remove(self, ticket: Ticket) -> None:
        queue = self._queues[ticket.caller]
        queue.remove(ticket)
        if not queue:
            del self._queues[ticket.caller]
