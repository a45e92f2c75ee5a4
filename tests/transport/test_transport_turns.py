"""Turns: one after the other of each caller, the callers in a circle; bounded, in time, and given up by who leaves."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transport_fakes import Calling

from pnode.errors import Busy, DeadlineExceeded
from pnode.transport.deadline import Caller, Deadline
from pnode.transport.turns import Bounds, FairTurns, Ticket


def served(turns: FairTurns, holder: Ticket, tickets: list[Ticket]) -> list[Ticket]:
    """The order in which those who wait get their turns."""
    order: list[Ticket] = []
    turns.give(holder)
    while len(order) < len(tickets):
        (now,) = [each for each in tickets if each not in order and turns_came(turns, each)]
        order.append(now)
        turns.give(now)
    return order


def turns_came(turns: FairTurns, ticket: Ticket) -> bool:
    return ticket.held


def test_a_flood_of_one_caller_does_not_starve_another() -> None:
    turns = FairTurns("it")
    holder = turns.ask("flood")
    flood = [turns.ask("flood") for _ in range(100)]
    other = [turns.ask("other") for _ in range(3)]
    order = served(turns, holder, flood + other)
    # The flood is first in line, then they alternate until the other has had its three turns.
    assert [ticket.caller for ticket in order[:7]] == ["flood", "other"] * 3 + ["flood"]
    assert [ticket for ticket in order if ticket.caller == "flood"] == flood


@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_nobody_gets_two_turns_while_another_waits(callers: list[str]) -> None:
    turns = FairTurns("it")
    holder = turns.ask("holder")
    tickets = [turns.ask(caller) for caller in callers]
    order = served(turns, holder, tickets)
    assert sorted(map(id, order)) == sorted(map(id, tickets))
    for caller in "abc":
        assert [each for each in order if each.caller == caller] == [each for each in tickets if each.caller == caller]
    for index, (now, then) in enumerate(pairwise(order)):
        if now.caller == then.caller:
            assert {each.caller for each in order[index:]} == {now.caller}
    assert turns.num_waiting == 0


def test_the_queue_is_bounded_in_all_and_for_each() -> None:
    turns, bounds = FairTurns("it"), Bounds(most=3, most_each=2)
    turns.ask("a", bounds=bounds)
    waiting = [turns.ask("a", bounds=bounds), turns.ask("a", bounds=bounds)]
    with pytest.raises(Busy, match="2 calls of this client wait for it already") as refusal:
        turns.ask("a", bounds=bounds)
    assert refusal.value.retry_after_s is not None
    waiting.append(turns.ask("b", bounds=bounds))
    with pytest.raises(Busy, match="3 calls wait for it already"):
        turns.ask("c", bounds=bounds)
    waiting.append(turns.ask("c"))  # work under way is never refused
    assert turns.num_waiting == 4


def test_a_turn_that_does_not_come_in_time_is_given_up() -> None:
    turns = FairTurns("it")
    holder = turns.ask("a")
    with pytest.raises(DeadlineExceeded, match="it was busy"):
        turns.wait(turns.ask("b"), Deadline.after(0.05))
    assert turns.num_waiting == 0
    turns.give(holder)
    with turns.taken(Deadline.after(5.0)):
        assert turns.num_waiting == 0


def test_a_caller_that_leaves_gives_up_its_place_at_once() -> None:
    turns, caller = FairTurns("it"), Caller("b")
    holder = turns.ask("a")
    ticket = turns.ask("b")
    waiting = Calling(lambda: turns.wait(ticket, Deadline.after(60.0, caller=caller)))
    caller.leave()
    assert isinstance(waiting.wait().error, DeadlineExceeded)
    assert turns.num_waiting == 0
    turns.give(holder)


def test_what_is_taken_along_gets_no_turn_of_its_own() -> None:
    turns = FairTurns("it")
    holder = turns.ask("a")
    offers = ["a1", "b1", None, "b2", "a2"]
    tickets = [turns.ask(caller, offer=offer) for caller, offer in zip("abbba", offers, strict=True)]
    seen: list[object] = []

    def wanted(offer: object) -> bool:
        seen.append(offer)
        return offer != "b2"

    along = turns.take_along(wanted)
    assert seen == ["a1", "b1", "a2", "b2"]  # in the order of their turns; what offers nothing is not asked
    assert [ticket.offer for ticket in along] == ["a1", "b1", "a2"]
    for each in along:
        each.finish()
        assert not turns.wait(each, Deadline.after(5.0))
    turns.give(holder)
    assert turns.wait(tickets[2], Deadline.after(5.0))


def test_units_are_shared_and_what_exists_already_is_counted() -> None:
    turns = FairTurns("it", capacity=10, share=6)
    first = turns.ask("a", 4)
    second = turns.ask("a", 4)  # over its share
    other = turns.ask("b", 4)
    assert (turns_came(turns, first), turns_came(turns, second), turns_came(turns, other)) == (True, False, True)
    turns.resize(first, 1)
    assert turns_came(turns, second)
    third = turns.ask("c", 4)
    turns.resize(other, 9)  # it grew: nothing is free any more
    assert not turns_came(turns, third)
    turns.give(other)
    assert turns_came(turns, third)


def test_who_asks_for_much_is_not_passed_over_for_ever() -> None:
    turns = FairTurns("it", capacity=10)
    small = turns.ask("a", 2)
    large = turns.ask("b", 10)
    later = turns.ask("c", 2)
    assert not turns_came(turns, later)
    turns.give(small)
    assert turns_came(turns, large)
    turns.give(large)
    assert turns_came(turns, later)


def test_turns_under_many_threads_are_one_at_a_time() -> None:
    turns, inside, most = FairTurns("it"), [0], [0]
    lock = threading.Lock()

    def work(name: str) -> None:
        for _ in range(50):
            with turns.taken(Deadline.after(30.0, caller=Caller(name))):
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                with lock:
                    inside[0] -= 1

    calls = [Calling(lambda name=name: work(name)) for name in "aabbccdd"]  # type: ignore[misc]
    assert [call.wait().error for call in calls] == [None] * 8
    assert most == [1]
