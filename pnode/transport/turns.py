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
    GROWING = 4


class Ticket:
    """A place in the queue. `offer` is what whoever holds the turn may do along with its own work."""

    __slots__ = ("_awake", "_state", "_wanted", "amount", "bounded", "caller", "offer")
    # Of one that waits, and of one that grows.
    _awake: threading.Event
    _wanted: int

    def __init__(self, caller: str, amount: int, offer: object, bounded: bool) -> None:
        self.caller = caller
        self.amount = amount
        self.offer = offer
        self.bounded = bounded
        self._state = _State.WAITING

    @property
    def held(self) -> bool:
        """Whether the turn came."""
        return self._state is _State.HELD

    def finish(self) -> None:
        """What was taken along is done: wake whoever waits for it."""
        self._awake.set()


class FairTurns:
    """`capacity` units, of which each turn holds some. Of one caller's turns at most `share` units are held at once.

    Whoever holds a turn may wait for a larger one and keeps meanwhile what it has. Such turns come before those that
    begin, in the order in which they asked, and one is refused where some of them could come to wait for each other.
    """

    def __init__(self, what: str, *, capacity: int = 1, share: int | None = None) -> None:
        self._what = what
        self._capacity = capacity
        self._share = capacity if share is None else share
        self._lock = threading.Lock()
        self._free = capacity
        self._held: dict[str, int] = {}
        # In the order in which the callers come next.
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()
        # Those who hold a turn and wait for more.
        self._growing: list[Ticket] = []

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
        """Those who asked and have not got yet what they asked for."""
        with self._lock:
            return sum(map(len, self._queues.values())) + len(self._growing)

    def ask(self, caller: str, amount: int = 1, *, offer: object = None, bounds: Bounds | None = None) -> Ticket:
        """Queue up. `wait` must follow. Raises Busy where as many wait already as `bounds` allow."""
        ticket = Ticket(caller, amount, offer, bounds is not None)
        with self._lock:
            if not self._queues and not self._growing and self._is_free(caller, amount):
                # As if it had queued and come at once; most turns are of this kind.
                self._account(caller, amount)
                ticket._state = _State.HELD
                return ticket
            if bounds is not None:
                self._check_room(caller, bounds)
            ticket._awake = threading.Event()
            self._queues.setdefault(caller, deque()).append(ticket)
            self._grant()
        return ticket

    def _is_free(self, caller: str, amount: int) -> bool:
        return amount <= self._free and self._may_hold(caller, amount)

    def _may_hold(self, caller: str, amount: int) -> bool:
        """Whether its share allows so much more; who holds nothing may hold anything."""
        held = self._held.get(caller, 0)
        return held == 0 or held + amount <= self._share

    def more(self, ticket: Ticket, amount: int, *, bounds: Bounds | None = None) -> None:
        """Queue up for `amount` in all, while the turn keeps what it holds; `wait` must follow.

        Raises Busy where as many wait already as `bounds` allow, or hold so much that not each could get its amount.
        Whether it is that or `wait` that fails, the turn holds what it held.
        """
        with self._lock:
            if bounds is not None:
                self._check_room(ticket.caller, bounds)
            self._check_each_can(ticket, amount)
            ticket._wanted = amount
            ticket._state = _State.GROWING
            ticket._awake = threading.Event()
            self._growing.append(ticket)
            self._grant()

    def wait(self, ticket: Ticket, deadline: Deadline) -> bool:
        """Wait for the turn, or for more: True when it came, False when the work was taken along by someone else's.

        Raises DeadlineExceeded when neither happened in time; the place in the queue is given up then.
        """
        if ticket.held:
            return True
        if not ticket._awake.is_set():
            deadline.await_event(ticket._awake)
        with self._lock:
            if ticket._state in (_State.WAITING, _State.GROWING):
                self._give_up(ticket)
                raise DeadlineExceeded(f"{self._what} was busy until the deadline, or until its caller left")
            return ticket.held

    def give(self, ticket: Ticket) -> None:
        """End a turn."""
        self.resize(ticket, 0)

    def resize(self, ticket: Ticket, amount: int) -> None:
        """Hold more or less than was asked for. More is taken even where it is not free: it exists already."""
        with self._lock:
            self._account(ticket.caller, amount - ticket.amount)
            ticket.amount = amount
            if self._queues or self._growing:
                self._grant()

    def take_along(self, wanted: Callable[[object], bool]) -> list[Ticket]:
        """Take out of the queue those whose offer is wanted, in the order of their turns; `finish` must follow."""
        taken: list[Ticket] = []
        if not self._queues:
            return taken
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
        if self._growing:
            waiting += len(self._growing)
            mine += sum(ticket.caller == caller for ticket in self._growing)
        if mine >= bounds.most_each:
            raise Busy(f"{mine} calls of this client wait for {self._what} already", retry_after_s=_RETRY_AFTER_S)
        if waiting >= bounds.most:
            raise Busy(f"{waiting} calls wait for {self._what} already", retry_after_s=_RETRY_AFTER_S)

    def _check_each_can(self, ticket: Ticket, amount: int) -> None:
        """Whether each of those who hold and wait gets its amount, once all others have ended; Busy if not."""
        growing = [(each.amount, each._wanted) for each in self._growing] + [(ticket.amount, amount)]
        held = sum(holds for holds, _ in growing)
        if any(held - holds + wants > self._capacity for holds, wants in growing):
            raise Busy(f"{len(self._growing)} calls wait for {self._what} already", retry_after_s=_RETRY_AFTER_S)

    def _grant(self) -> None:
        """Give what is free to those whose turn it is."""
        while (ticket := self._next()) is not None:
            if ticket._state is _State.GROWING:
                self._growing.remove(ticket)
                self._account(ticket.caller, ticket._wanted - ticket.amount)
                ticket.amount = ticket._wanted
            else:
                self._remove(ticket)
                if ticket.caller in self._queues:
                    self._queues.move_to_end(ticket.caller)
                self._account(ticket.caller, ticket.amount)
            ticket._state = _State.HELD
            ticket._awake.set()

    def _next(self) -> Ticket | None:
        for ticket in self._growing:
            if self._may_grow(ticket):
                return ticket if ticket._wanted - ticket.amount <= self._free else None
        for caller, queue in self._queues.items():
            if self._growing and any(ticket.caller == caller for ticket in self._growing):
                # Further turns of the same caller would use up the share that it waits for.
                continue
            if self._may_hold(caller, queue[0].amount):
                # The first who may hold more is waited for, or what asks for much would never get it.
                return queue[0] if queue[0].amount <= self._free else None
        return None

    def _may_grow(self, ticket: Ticket) -> bool:
        """Whether its caller's share allows it, of which what waits for more takes nothing: it may be all there is."""
        waiting = sum(each.amount for each in self._growing if each.caller == ticket.caller)
        held = self._held.get(ticket.caller, 0) - waiting
        return held == 0 or held + ticket._wanted <= self._share

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

    def _give_up(self, ticket: Ticket) -> None:
        if ticket._state is _State.WAITING:
            self._remove(ticket)
        else:
            self._growing.remove(ticket)
            ticket._state = _State.HELD
        # Those behind it may have waited for it alone.
        self._grant()
