"""Backoff and retry: bounded pauses, peers' wishes honoured, deadlines and shutdown obeyed."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pnode.errors import BadRequest, Busy, DeadlineExceeded, PeerUnavailable, WorkerLost
from pnode.transport.deadline import Deadline
from pnode.transport.retry import Backoff, retry


class Clock:
    """A clock that waiting moves."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.now_s += seconds
        return False


class Flaky:
    """Fails so many times, then answers."""

    def __init__(self, failures: list[Exception]) -> None:
        self.failures = failures
        self.num_calls = 0

    def __call__(self) -> str:
        self.num_calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"


@settings(deadline=None)
@given(
    st.floats(0, 10),
    st.floats(1, 1e300),
    st.floats(0, 100),
    st.integers(0, 2**32),
    st.integers(1, 100),
    st.floats(0, 9),
)
def test_pauses_lie_between_what_was_asked_and_that_plus_the_cap(
    base_s: float, factor: float, cap_s: float, seed: int, attempts: int, asked_s: float
) -> None:
    backoff = Backoff(base_s, factor=factor, cap_s=cap_s, rng=random.Random(seed))
    for attempt in range(attempts):
        assert backoff.attempts == attempt
        assert asked_s <= backoff.next_s(Busy("full", retry_after_s=asked_s)) <= asked_s + cap_s


def test_ceilings_grow_by_the_factor_to_the_cap_and_reset() -> None:
    class Highest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    backoff = Backoff(1.0, factor=3.0, cap_s=10.0, rng=Highest())
    assert [backoff.next_s() for _ in range(5)] == [1.0, 3.0, 9.0, 10.0, 10.0]
    backoff.reset()
    assert (backoff.attempts, backoff.next_s()) == (0, 1.0)


def test_jitter_is_the_injected_generators() -> None:
    pauses = [Backoff(1.0, rng=random.Random(7)).next_s() for _ in range(2)]
    assert pauses[0] == pauses[1] == random.Random(7).uniform(0.0, 1.0)


@pytest.mark.parametrize("wrong", [{"base_s": -1.0}, {"factor": 0.5}, {"cap_s": -1.0}, {"base_s": float("nan")}])
def test_senseless_backoffs_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="backoff"):
        Backoff(**wrong)  # type: ignore[arg-type]


def test_what_waiting_can_mend_is_tried_again() -> None:
    clock = Clock()
    call = Flaky([PeerUnavailable("gone"), Busy("full", retry_after_s=2.0), PeerUnavailable("gone")])
    answer = retry(call, Deadline.after(60.0, clock=clock), Backoff(0.1, rng=random.Random(1)), clock.wait)
    assert (answer, call.num_calls, len(clock.pauses)) == ("done", 4, 3)
    assert clock.pauses[1] >= 2.0


@pytest.mark.parametrize("error", [BadRequest("no"), WorkerLost("dead"), KeyError("bug")])
def test_everything_else_is_raised_at_once(error: Exception) -> None:
    clock = Clock()
    call = Flaky([error])
    with pytest.raises(type(error)):
        retry(call, Deadline.after(60.0, clock=clock), Backoff(), clock.wait)
    assert (call.num_calls, clock.pauses) == (1, [])


def test_the_caller_chooses_what_is_tried_again() -> None:
    clock = Clock()
    call = Flaky([WorkerLost("dead")])
    assert retry(call, Deadline.after(60.0, clock=clock), Backoff(), clock.wait, on=(WorkerLost,)) == "done"


def test_the_last_error_is_raised_when_the_deadline_leaves_no_room() -> None:
    clock = Clock()
    call = Flaky([Busy("full", retry_after_s=4.0) for _ in range(9)])
    with pytest.raises(Busy):
        retry(call, Deadline.after(10.0, clock=clock), Backoff(0.0), clock.wait)
    assert (call.num_calls, clock.now_s) == (3, 8.0)


def test_a_spent_deadline_tries_nothing() -> None:
    call = Flaky([])
    with pytest.raises(DeadlineExceeded):
        retry(call, Deadline.after(0.0), Backoff(), Clock().wait)
    assert call.num_calls == 0


def test_shutdown_interrupts_the_pause() -> None:
    stopping = threading.Event()
    stopping.set()
    call = Flaky([Busy("full", retry_after_s=1000.0)])
    with pytest.raises(Busy):
        retry(call, Deadline.after(5000.0), Backoff(), stopping.wait)
    assert call.num_calls == 1
