"""Turns that wait for more: they keep what they hold, it is counted, and they never come to wait for each other."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transport_fakes import WAIT_S, Calling

from pnode.errors import Busy, DeadlineExceeded
from pnode.transport.deadline import Deadline
from pnode.transport.turns import Bounds, FairTurns, Ticket

CAPACITY, SHARE = 12, 6
PASSED = Deadline.after(-1.0)


class Plain:
    """What FairTurns promises, looked up anew at each step."""

    def __init__(self) -> None:
        self.callers: dict[int, str] = {}
        self.holds: dict[int, int] = {}
        self.wants: dict[int, int] = {}
        self.asks: dict[int, int] = {}
        self.circle: list[str] = []

    def of(self, caller: str) -> list[int]:
        return [number for number in self.holds if self.callers[number] == caller]

    def free(self) -> int:
        return CAPACITY - sum(self.holds.values())

    def ends(self, number: int, amount: int) -> bool:
        """Whether each of those who hold and wait fits in beside the others of them, with this one more."""
        wants = {**self.wants, number: amount}
        return all(
            wanted + sum(self.holds[other] for other in wants if other != each) <= CAPACITY
            for each, wanted in wants.items()
        )

    def next(self) -> int | None:
        for number, wanted in self.wants.items():
            busy = sum(self.holds[each] for each in self.of(self.callers[number]) if each not in self.wants)
            if not busy or busy + wanted <= SHARE:
                return number if wanted - self.holds[number] <= self.free() else None
        for caller in self.circle:
            first = next(number for number in self.asks if self.callers[number] == caller)
            held = sum(self.holds[each] for each in self.of(caller))
            if any(self.callers[each] == caller for each in self.wants):
                continue
            if not held or held + self.asks[first] <= SHARE:
                return first if self.asks[first] <= self.free() else None
        return None

    def settle(self) -> None:
        while (number := self.next()) is not None:
            if number in self.wants:
                self.holds[number] = self.wants.pop(number)
                continue
            self.holds[number] = self.asks.pop(number)
            caller = self.callers[number]
            self.circle.remove(caller)
            if any(self.callers[each] == caller for each in self.asks):
                self.circle.append(caller)

    def leave(self, number: int) -> None:
        self.wants.pop(number, None)
        if self.asks.pop(number, None) is not None:
            caller = self.callers[number]
            if not any(self.callers[each] == caller for each in self.asks):
                self.circle.remove(caller)


class Act(NamedTuple):
    """What happens: to the caller, or to one of those that have asked so far."""

    what: str
    caller: str
    which: int
    amount: int


ACTS = st.builds(
    Act,
    st.sampled_from(["ask", "ask", "more", "more", "end", "shrink", "leave"]),
    st.sampled_from("abc"),
    st.integers(0, 30),
    st.integers(1, CAPACITY),
)


class Both:
    """The turns and the plain account of them."""

    def __init__(self) -> None:
        self.turns = FairTurns("it", capacity=CAPACITY, share=SHARE)
        self.plain = Plain()
        self.tickets: dict[int, Ticket] = {}

    def act(self, act: Act) -> None:
        if act.what == "ask":
            self.ask(act.caller, act.amount)
        elif self.tickets:
            number = sorted(self.tickets)[act.which % len(self.tickets)]
            getattr(self, act.what)(number, act.amount)
        self.plain.settle()
        assert self.held() == self.plain.holds
        assert self.turns._free == self.plain.free() >= 0
        assert self.turns.num_waiting == len(self.plain.asks) + len(self.plain.wants)

    def held(self) -> dict[int, int]:
        waiting = [ticket for queue in self.turns._queues.values() for ticket in queue]
        return {number: ticket.amount for number, ticket in self.tickets.items() if ticket not in waiting}

    def ask(self, caller: str, amount: int) -> None:
        number = len(self.plain.callers)
        self.plain.callers[number], self.plain.asks[number] = caller, amount
        if caller not in self.plain.circle:
            self.plain.circle.append(caller)
        self.tickets[number] = self.turns.ask(caller, amount)

    def more(self, number: int, amount: int) -> None:
        if number not in self.plain.holds or number in self.plain.wants or amount < self.plain.holds[number]:
            return
        if not self.plain.ends(number, amount):
            with pytest.raises(Busy):
                self.turns.more(self.tickets[number], amount)
            return
        self.plain.wants[number] = amount
        self.turns.more(self.tickets[number], amount)

    def end(self, number: int, amount: int = 0) -> None:
        if number in self.plain.holds and number not in self.plain.wants:
            del self.plain.holds[number]
            self.turns.give(self.tickets.pop(number))

    def shrink(self, number: int, amount: int) -> None:
        if number in self.plain.holds and number not in self.plain.wants:
            self.plain.holds[number] = min(amount, self.plain.holds[number])
            self.turns.resize(self.tickets[number], self.plain.holds[number])

    def leave(self, number: int, amount: int) -> None:
        """Its caller leaves while it waits: what it holds is still there afterwards."""
        if number not in self.plain.asks and number not in self.plain.wants:
            return
        with pytest.raises(DeadlineExceeded):
            self.turns.wait(self.tickets[number], PASSED)
        self.plain.leave(number)
        if number not in self.plain.holds:
            del self.tickets[number]


@settings(max_examples=500)
@given(st.lists(ACTS, max_size=40))
def test_turns_are_those_of_the_plain_account_and_everybody_gets_what_it_waits_for(acts: list[Act]) -> None:
    both = Both()
    for act in acts:
        both.act(act)
    # Whoever holds its all ends, sooner or later. Nothing more is needed for the others.
    while both.tickets:
        done = [number for number in both.plain.holds if number not in both.plain.wants]
        assert done, "they wait for each other"
        both.end(done[0])
        both.plain.settle()
        assert both.held() == both.plain.holds
    assert both.turns._free == CAPACITY
    assert not both.turns._held


def test_two_that_hold_and_want_all_do_not_wait_for_each_other() -> None:
    turns = FairTurns("it", capacity=10)
    one, other = turns.ask("a", 1), turns.ask("b", 1)
    runs = turns.ask("c", 8)
    turns.more(one, 10)
    with pytest.raises(Busy, match="1 calls wait for it already") as refusal:
        turns.more(other, 10)
    assert refusal.value.retry_after_s is not None
    turns.give(other)
    assert not one._awake.is_set()
    turns.give(runs)
    assert turns.wait(one, PASSED)


def test_those_that_hold_come_first_and_count_among_those_that_wait() -> None:
    turns, bounds = FairTurns("it", capacity=10, share=10), Bounds(most=2, most_each=1)
    one = turns.ask("a", 2, bounds=bounds)
    other = turns.ask("b", 5)
    begins = turns.ask("c", 4, bounds=bounds)
    turns.more(one, 6, bounds=bounds)
    with pytest.raises(Busy, match="1 calls of this client"):
        turns.ask("a", 1, bounds=bounds)
    with pytest.raises(Busy, match="2 calls wait"):
        turns.ask("d", 1, bounds=bounds)
    turns.resize(other, 4)
    assert turns.wait(one, PASSED)
    assert not begins._awake.is_set()


def test_a_place_that_is_given_up_makes_way_for_those_behind_it() -> None:
    turns = FairTurns("it", capacity=10)
    turns.ask("a", 4)
    large, small = turns.ask("b", 10), turns.ask("c", 2)
    with pytest.raises(DeadlineExceeded):
        turns.wait(large, PASSED)
    assert turns.wait(small, PASSED)


def test_threads_that_hold_and_want_more_all_come_to_an_end() -> None:
    turns = FairTurns("it", capacity=10, share=5)

    def work(name: str) -> None:
        deadline = Deadline.after(WAIT_S)
        for amount in (2, 5, 9, 10) * 10:
            ticket = turns.ask(name, 2)
            turns.wait(ticket, deadline)
            with ExitStack() as stack:
                stack.callback(turns.give, ticket)
                with suppress(Busy):
                    turns.more(ticket, amount)
                    turns.wait(ticket, deadline)
                    assert ticket.amount == amount

    calls = [Calling(lambda name=name: work(name)) for name in "aabbccdd"]  # type: ignore[misc]
    assert [call.wait().error for call in calls] == [None] * 8
    assert turns._free == 10
