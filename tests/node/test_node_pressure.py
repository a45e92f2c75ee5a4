"""Memory runs short: refuse, drain, end the newest, in this order; and all is well again once it is there."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest

from pnode.errors import Busy
from pnode.node.gate import Gate
from pnode.node.pressure import Guard, Reading, Relief, Step, Thresholds, read

CALM = Reading(0.0, 50.0)
SHORT = Reading(12.0, 50.0)
VERY_SHORT = Reading(60.0, 1.0)
LIMITS = Thresholds()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def after(relief: Relief, clock: Clock, seconds: float, reading: Reading) -> Step | None:
    clock.now += seconds
    return relief.judge(reading)


def test_one_step_at_a_time_and_each_has_time_to_help() -> None:
    clock = Clock()
    relief = Relief(clock, LIMITS)
    assert after(relief, clock, 1, CALM) is None
    assert after(relief, clock, 1, SHORT) is Step.REFUSE
    assert after(relief, clock, 5, SHORT) is None
    assert after(relief, clock, 5, SHORT) is Step.DRAIN
    assert after(relief, clock, 9, SHORT) is None
    assert after(relief, clock, 1, SHORT) is Step.KILL
    assert after(relief, clock, 10, SHORT) is Step.KILL


def test_what_is_very_short_waits_for_nothing() -> None:
    clock = Clock()
    relief = Relief(clock, LIMITS)
    assert [after(relief, clock, 1, VERY_SHORT) for _ in range(4)] == [Step.REFUSE, Step.DRAIN, Step.KILL, Step.KILL]


def test_peace_takes_a_while_to_be_believed() -> None:
    clock = Clock()
    relief = Relief(clock, LIMITS)
    assert after(relief, clock, 0, SHORT) is Step.REFUSE
    assert after(relief, clock, 29, CALM) is None
    assert after(relief, clock, 0, SHORT) is Step.DRAIN
    assert after(relief, clock, 300, CALM) is None, "a drain is not taken back"
    relief = Relief(clock, LIMITS)
    assert after(relief, clock, 0, SHORT) is Step.REFUSE
    assert after(relief, clock, 30, CALM) is Step.NONE
    assert after(relief, clock, 0, SHORT) is Step.REFUSE


@pytest.mark.parametrize(
    ("text", "stalled"),
    [
        ("some avg10=12.50 avg60=1.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n", 12.5),
        ("nonsense\n", None),
        (None, None),
    ],
)
def test_readings_of_this_machine(tmp_path: Path, text: str | None, stalled: float | None) -> None:
    file = tmp_path / "memory"
    if text is not None:
        file.write_text(text)
    reading = read(file)
    assert reading.stalled == stalled
    assert 0 < reading.free <= 100


def test_free_memory_counts_where_the_kernel_counts_no_stalls() -> None:
    assert Reading(None, 4.0).is_short(LIMITS)
    assert not Reading(None, 6.0).is_short(LIMITS)
    assert Reading(None, 1.0).is_very_short(LIMITS)
    assert "1 % of memory is free" in str(Reading(None, 1.0))


def test_thresholds_are_the_operators() -> None:
    assert Reading(12.0, 50.0).is_short(LIMITS)
    assert not Reading(12.0, 50.0).is_short(Thresholds(stalled=20))
    assert Reading(12.0, 50.0).is_very_short(Thresholds(badly_stalled=12))
    assert Reading(0.0, 50.0).is_short(Thresholds(free=60))
    clock = Clock()
    relief = Relief(clock, Thresholds(patience_s=1, peace_s=2))
    assert [after(relief, clock, 1, each) for each in (SHORT, CALM, CALM, SHORT)] == [1, None, 0, 1]
    relief.limits = Thresholds(stalled=20, peace_s=1)
    assert [after(relief, clock, 1, each) for each in (SHORT, SHORT)] == [Step.NONE, None]


def test_an_owner_who_takes_memory_back_is_obeyed_step_by_step() -> None:
    clock = Clock()
    relief = Relief(clock, LIMITS)
    over = Reading(0.0, 50.0, over_bytes=5)
    assert not over.is_very_short(LIMITS)
    assert "VNodes have 5 bytes more than limits.memory grants" in str(over)
    assert [after(relief, clock, 10, over) for _ in range(3)] == [Step.REFUSE, Step.DRAIN, Step.KILL]


def test_the_guard_tells_its_node() -> None:
    told: queue.Queue[tuple[Step, str]] = queue.Queue()
    guard = Guard(lambda step, why: told.put((step, why)), limits=LIMITS, look=lambda: VERY_SHORT, every_s=0.001)
    guard.start()
    assert [told.get(timeout=10)[0] for _ in range(3)] == [Step.REFUSE, Step.DRAIN, Step.KILL]
    guard.close()
    guard.close()


def test_a_gate_that_holds_back_refuses_with_a_reason_and_a_time() -> None:
    gate = Gate()
    gate.hold_back("memory is short")
    with pytest.raises(Busy, match="memory is short") as refusal, gate:
        pass
    assert refusal.value.retry_after_s
    gate.hold_back("")
    with gate:
        assert gate.inside == 1
