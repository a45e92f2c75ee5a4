"""The ledger by example; tests/properties holds it to a model."""

from __future__ import annotations

import pytest

from pnode.errors import Busy, Conflict, StepMismatch
from pnode.vnode.ledger import Answer, Join, Ledger, New, Replay, StepKey


def train(ledger: Ledger, step: int, microbatch: int) -> None:
    key = StepKey(step, microbatch)
    assert isinstance(ledger.admit(key, b"%d" % microbatch), New)
    ledger.complete(key, microbatch)


def test_a_retry_joins_and_is_then_answered() -> None:
    ledger = Ledger(window=2)
    key = StepKey(0, 0)
    assert isinstance(ledger.admit(key, b"a"), New)
    assert isinstance(ledger.admit(key, b"a"), Join)
    with pytest.raises(Conflict):
        ledger.admit(key, b"b")
    ledger.complete(key, "reply")
    assert ledger.next == 1
    assert ledger.admit(key, b"a") == Answer("reply")
    with pytest.raises(Conflict):
        ledger.admit(key, b"b")


def test_a_failed_microbatch_is_new_again_even_with_another_request() -> None:
    ledger = Ledger(window=2)
    ledger.admit(StepKey(0, 0), b"a")
    ledger.abandon(StepKey(0, 0))
    assert isinstance(ledger.admit(StepKey(0, 0), b"b"), New)


def test_backwards_take_turns() -> None:
    ledger = Ledger(window=3)
    for microbatch in (2, 0, 1):
        ledger.admit(StepKey(0, microbatch), b"a")
    assert [ledger.is_turn(StepKey(0, microbatch)) for microbatch in range(3)] == [True, False, False]
    ledger.complete(StepKey(0, 0), None)
    assert [ledger.is_turn(StepKey(0, microbatch)) for microbatch in range(3)] == [True, True, False]


def test_outside_the_window_is_busy_with_a_hint() -> None:
    ledger = Ledger(window=2)
    with pytest.raises(Busy) as busy:
        ledger.admit(StepKey(0, 2), b"a")
    assert busy.value.retry_after_s is not None
    assert busy.value.retry_after_s > 0.0


def test_an_evicted_reply_is_replayed_one_at_a_time() -> None:
    ledger = Ledger(window=2)
    for microbatch in range(4):
        train(ledger, 0, microbatch)
    assert ledger.admit(StepKey(0, 3), b"3") == Answer(3)
    with pytest.raises(Conflict):
        ledger.admit(StepKey(0, 0), b"other")
    assert isinstance(ledger.admit(StepKey(0, 0), b"0"), Replay)
    assert ledger.is_turn(StepKey(0, 0))
    with pytest.raises(Busy):
        ledger.admit(StepKey(0, 1), b"1")
    ledger.complete(StepKey(0, 0), "again")
    assert ledger.next == 4
    assert ledger.admit(StepKey(0, 0), b"0") == Answer("again")


def test_replies_are_bounded_in_bytes_too() -> None:
    """What weighs too much is dropped, the oldest first, and computed again when it is asked for."""
    ledger = Ledger(window=4, max_reply_bytes=10)
    for microbatch, num_bytes in enumerate((4, 4, 4, 11)):
        ledger.admit(StepKey(0, microbatch), b"%d" % microbatch)
        ledger.complete(StepKey(0, microbatch), microbatch, num_bytes)
        if microbatch == 2:
            assert ledger.admit(StepKey(0, 1), b"1") == Answer(1)
            assert isinstance(ledger.admit(StepKey(0, 0), b"0"), Replay)
            ledger.abandon(StepKey(0, 0))
    assert isinstance(ledger.admit(StepKey(0, 3), b"3"), Replay)


def test_the_step_just_applied_is_still_answered_and_no_older_one() -> None:
    ledger = Ledger(window=2)
    train(ledger, 0, 0)
    ledger.applied(0)
    assert (ledger.version, ledger.next) == (1, 0)
    assert ledger.admit(StepKey(0, 0), b"0") == Answer(0)
    with pytest.raises(Conflict):
        ledger.admit(StepKey(0, 0), b"other")
    with pytest.raises(StepMismatch):
        ledger.admit(StepKey(2, 0), b"0")
    with pytest.raises(StepMismatch):
        ledger.is_turn(StepKey(0, 1))
    ledger.applied(1)
    with pytest.raises(StepMismatch):
        ledger.admit(StepKey(0, 0), b"0")


def test_a_reset_forgets_everything() -> None:
    ledger = Ledger(window=2)
    train(ledger, 0, 0)
    ledger.admit(StepKey(0, 1), b"1")
    ledger.reset(generation=3, version=7)
    ledger.complete(StepKey(0, 1), "late")
    assert (ledger.generation, ledger.version, ledger.next) == (3, 7, 0)
    assert isinstance(ledger.admit(StepKey(7, 0), b"x"), New)


def test_a_window_must_hold_something() -> None:
    with pytest.raises(ValueError, match="window"):
        Ledger(0)
