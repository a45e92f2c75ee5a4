"""The gate counts who is inside and refuses after it closed."""

from __future__ import annotations

import threading

import pytest

from pnode.errors import Draining
from pnode.node.gate import Gate


def test_counts_calls_inside() -> None:
    gate = Gate()
    with gate, gate:
        assert gate.inside == 2
    assert gate.inside == 0


def test_a_closed_gate_refuses_and_still_lets_out() -> None:
    gate = Gate()
    with gate:
        gate.close()
        with pytest.raises(Draining) as refusal, gate:
            pass
        assert refusal.value.retry_after_s is not None
        assert not gate.wait_empty(0.0)
    assert gate.wait_empty(0.0)


def test_wait_empty_wakes_when_the_last_call_leaves() -> None:
    gate = Gate()
    entered, leave = threading.Event(), threading.Event()

    def call() -> None:
        with gate:
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=call)
    thread.start()
    assert entered.wait(10)
    gate.close()
    leave.set()
    assert gate.wait_empty(10)
    thread.join(10)
