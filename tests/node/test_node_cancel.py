"""A caller that leaves: work stops wherever it is, until a backward has begun; a retry finds everything in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from node_world import World, reference, soon

from pnode.errors import Busy, DeadlineExceeded
from pnode.transport.deadline import Caller, Deadline
from pnode.v1 import vnode_pb2


def train_all(world: World, steps: int = 1) -> str:
    for step in range(steps):
        with ThreadPoolExecutor(4) as threads:
            for future in [threads.submit(world.train, world.request(step, i)) for i in range(4)]:
                future.result(timeout=30)
        world.apply(step)
    return world.digest()


def when(world: World, stage: str, command: str, act: Callable[[], None]) -> list[str]:
    """Once the worker of a stage has run `command`, `act`, once. Returns the commands that it ran."""
    worker, ran = world.homes[stage].workers[stage], list[str]()
    acts = [act]

    def note(name: str) -> None:
        ran.append(name)
        if name == command and acts:
            acts.pop()()

    worker._ran = note
    return ran


@pytest.fixture
def world(tmp_path: Path) -> World:
    """With its workers up."""
    world = World(tmp_path)
    world.train(world.request(0, 0))
    world.restore([vnode_pb2.StateRecord(vnode=spec.id) for spec in world.specs])
    return world


def test_while_it_waits_for_its_turn(world: World) -> None:
    caller, began = Caller("driver"), threading.Event()
    when(world, "stage3", "begin", began.set)
    with ThreadPoolExecutor(1) as threads:
        deadline = Deadline.after(60.0, caller=caller)
        waiting = threads.submit(world.homes["stage1"].serving.train, world.request(0, 1), deadline)
        assert began.wait(20)
        caller.leave()
        assert isinstance(waiting.exception(timeout=20), DeadlineExceeded)
    assert [world.vnode(f"stage{i}").ledger.next for i in (1, 2, 3)] == [0, 0, 0]
    assert train_all(world) == reference(1)


def test_a_forward_that_runs_ends_and_is_dropped(world: World) -> None:
    caller = Caller("driver")
    first = when(world, "stage1", "begin", caller.leave)
    second = when(world, "stage2", "begin", lambda: None)
    with pytest.raises(DeadlineExceeded, match="no longer waits"):
        world.homes["stage1"].serving.train(world.request(0, 0), Deadline.after(60.0, caller=caller))
    assert (first, second) == (["begin", "discard"], [])
    assert train_all(world) == reference(1)


def test_a_backward_that_has_begun_goes_to_its_end_and_counts(world: World) -> None:
    caller = Caller("driver")
    when(world, "stage3", "finish", caller.leave)
    with pytest.raises(DeadlineExceeded):
        world.homes["stage1"].serving.train(world.request(0, 0), Deadline.after(60.0, caller=caller))
    # The last stage was in its backward: that microbatch is in there, and nowhere above.
    assert [world.vnode(f"stage{i}").ledger.next for i in (1, 2, 3)] == [0, 0, 1]
    assert not world.train(world.request(0, 0)).duplicate, "stage 1 had not accumulated it"
    assert train_all(world) == reference(1)


def test_a_retry_takes_over_from_the_call_that_its_caller_left(world: World) -> None:
    caller, began = Caller("driver"), threading.Event()
    when(world, "stage3", "begin", began.set)
    with ThreadPoolExecutor(2) as threads:
        deadline = Deadline.after(60.0, caller=caller)
        left = threads.submit(world.homes["stage1"].serving.train, world.request(0, 1), deadline)
        assert began.wait(20)
        again = threads.submit(world.homes["stage1"].serving.train, world.request(0, 1), soon(60.0))
        caller.leave()
        assert isinstance(left.exception(timeout=20), DeadlineExceeded)
        world.train(world.request(0, 0))
        assert not again.result(timeout=30).head.duplicate
    assert train_all(world) == reference(1)


def test_a_caller_that_left_before_it_was_heard_costs_nothing(world: World) -> None:
    caller = Caller("driver")
    caller.leave()
    ran = when(world, "stage1", "begin", lambda: None)
    with pytest.raises(DeadlineExceeded):
        world.homes["stage1"].serving.train(world.request(0, 0), Deadline.after(60.0, caller=caller))
    assert "begin" not in ran
    assert train_all(world) == reference(1)


def test_a_flood_of_retries_is_refused_and_the_call_that_runs_is_not(world: World) -> None:
    began = threading.Event()
    when(world, "stage1", "begin", began.set)
    caller = Caller("driver")
    with ThreadPoolExecutor(20) as threads:
        # Microbatch 1 waits for its turn; window 4 leaves room for 15 calls that join it.
        deadline = Deadline.after(60.0, caller=caller)
        serving = world.homes["stage1"].serving
        calls = [threads.submit(serving.train, world.request(0, 1), deadline)]
        assert began.wait(20)
        calls += [threads.submit(serving.train, world.request(0, 1), deadline) for _ in range(15)]
        while world.vnode("stage1")._num_trains < 16:
            pass
        with pytest.raises(Busy, match="16 microbatches and retries of them") as refusal:
            serving.train(world.request(0, 0), soon())
        assert refusal.value.retry_after_s
        caller.leave()
        assert {type(call.exception(timeout=20)) for call in calls} == {DeadlineExceeded}
    assert train_all(world) == reference(1)
