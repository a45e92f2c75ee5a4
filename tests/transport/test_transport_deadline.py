"""Deadlines: what is left, what is capped, and who has gone."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import pytest

from pnode.errors import DeadlineExceeded
from pnode.transport.deadline import Caller, Deadline


class Clock:
    """A clock that tests move."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Call:
    """A gRPC context, as far as a deadline looks."""

    def __init__(self, remaining_s: float | None) -> None:
        self.remaining_s = remaining_s
        self.active = True
        self.callbacks: list[Callable[[], None]] = []

    def time_remaining(self) -> float | None:
        return self.remaining_s

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self.callbacks.append(callback)
        return self.active

    def end(self) -> None:
        self.active = False
        for callback in self.callbacks:
            callback()


def test_what_is_left_shrinks_to_zero_and_stays() -> None:
    clock = Clock()
    deadline = Deadline.after(5.0, clock=clock)
    assert deadline.left_s() == 5.0
    deadline.check()
    clock.now_s = 105.0
    assert deadline.left_s() == 0.0
    assert deadline.passed
    clock.now_s = 200.0
    assert deadline.left_s() == 0.0
    with pytest.raises(DeadlineExceeded, match="has passed"):
        deadline.check()


@pytest.mark.parametrize(
    ("remaining_s", "left_s"),
    [(None, 60.0), (9.2e18, 60.0), (math.inf, 60.0), (2.0, 2.0), (500.0, 300.0), (0.0, 0.0)],
    ids=["none", "grpc's none", "infinite", "own", "capped", "spent"],
)
def test_a_call_has_its_own_deadline_or_the_default_and_never_more_than_the_maximum(
    remaining_s: float | None, left_s: float
) -> None:
    deadline = Deadline.of_call(Call(remaining_s), default_s=60.0, max_s=300.0, clock=Clock())
    assert deadline.left_s() == left_s


def test_a_caller_that_has_gone_is_noticed_by_every_deadline_made_from_its_own() -> None:
    call = Call(10.0)
    deadline = Deadline.of_call(call, default_s=60.0, max_s=300.0, clock=Clock())
    sooner = deadline.at_most(1.0)
    assert not deadline.cancelled
    call.end()
    assert deadline.cancelled
    with pytest.raises(DeadlineExceeded, match="no longer waits"):
        sooner.check()


def test_at_most_takes_the_sooner_one() -> None:
    clock = Clock()
    deadline = Deadline.after(5.0, clock=clock)
    assert deadline.at_most(2.0).left_s() == 2.0
    assert deadline.at_most(9.0).left_s() == 5.0


@pytest.mark.parametrize("seconds", [math.inf, math.nan])
def test_there_is_no_endless_deadline(seconds: float) -> None:
    with pytest.raises(ValueError, match="for ever"):
        Deadline.after(seconds)


def test_a_caller_that_leaves_wakes_who_works_for_it() -> None:
    call = Call(None)
    deadline = Deadline.of_call(call, default_s=60.0, max_s=300.0)
    changed, waits = threading.Condition(), threading.Event()

    def work() -> bool:
        with changed:
            waits.set()
            return deadline.pause(changed) and not deadline.pause(changed)

    ended: list[bool] = []
    worker = threading.Thread(target=lambda: ended.append(work()))
    worker.start()
    assert waits.wait(20)
    with changed:
        # From here on it waits: it has given up the lock.
        pass
    call.end()
    worker.join(20)
    assert ended == [True]


def test_whoever_asks_late_is_told_at_once_and_nobody_twice() -> None:
    caller = Caller("a client")
    told: list[str] = []
    with caller.telling(lambda: told.append("early")):
        caller.leave()
    with caller.telling(lambda: told.append("late")):
        pass
    with Caller().telling(lambda: told.append("never")):
        pass
    assert told == ["early", "late"]
    assert caller.gone


def test_a_call_that_has_ended_already_is_a_caller_that_has_gone() -> None:
    call = Call(5.0)
    call.active = False
    assert Deadline.of_call(call, default_s=60.0, max_s=300.0, clock=Clock()).cancelled


@pytest.mark.parametrize(("seconds", "left_s"), [(100.0, 99.95), (0.1, 0.09), (0.0, 0.0)])
def test_a_callee_is_given_a_little_less(seconds: float, left_s: float) -> None:
    clock = Clock()
    assert Deadline.after(seconds, clock=clock).passed_down().left_s() == pytest.approx(left_s)
