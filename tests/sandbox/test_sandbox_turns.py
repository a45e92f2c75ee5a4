"""Turns: in the order of asking, each wait bounded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pnode.errors import DeadlineExceeded
from pnode.sandbox.turns import Turns


@contextmanager
def taken(turns: Turns, deadline_s: float | None) -> Iterator[None]:
    turns.take(deadline_s)
    yield
    turns.give()


def test_a_turn_that_does_not_come_is_refused_and_harms_nobody() -> None:
    turns = Turns()
    with taken(turns, None):
        for deadline_s in (0.0, -1.0, 0.01):
            with pytest.raises(DeadlineExceeded), taken(turns, deadline_s):
                pass
        assert not turns.try_take()
    assert turns.try_take()
    turns.give()
    with taken(turns, 0.0):
        pass


def test_first_come_first_served() -> None:
    turns = Turns()
    served: list[int] = []
    waiting = []

    def take(number: int) -> None:
        with taken(turns, 20):
            served.append(number)

    with taken(turns, None):
        for number in range(8):
            thread = threading.Thread(target=take, args=(number,))
            thread.start()
            waiting.append(thread)
            while len(turns._waiting) != number + 1:
                thread.join(0.001)
    for thread in waiting:
        thread.join(20)
    assert served == list(range(8))
