"""Training through chained VNodes: in order whatever the order of calls, once whatever is retried, fenced, replayed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node_world import World, batch, reference, soon

from pnode.client.batch import Batch
from pnode.errors import (
    BadRequest,
    Busy,
    Conflict,
    DeadlineExceeded,
    Draining,
    StaleFence,
    StepMismatch,
    UnknownVNode,
    WorkerLost,
)
from pnode.transport.codec import Parcel
from pnode.transport.tensors import metas, payloads
from pnode.v1 import vnode_pb2

STEPS = 2


@pytest.fixture(scope="module")
def expected() -> str:
    return reference(STEPS)


def train_step(world: World, step: int, order: Sequence[int] = (0, 1, 2, 3)) -> None:
    """All microbatches at once, submitted in the given order."""
    with ThreadPoolExecutor(len(order)) as threads:
        futures = [threads.submit(world.train, world.request(step, microbatch)) for microbatch in order]
        for future in futures:
            future.result(timeout=30)


@pytest.mark.parametrize("homes", [("a", "b", "c"), ("a", "a", "a"), ("a", "b", "a")])
@pytest.mark.parametrize("window", [1, 4])
def test_cut_placed_and_split_anyhow_it_ends_at_the_same_digest(
    tmp_path: Path, homes: tuple[str, ...], window: int, expected: str
) -> None:
    world = World(tmp_path, homes, window)
    for step in range(STEPS):
        if window == 1:
            for microbatch in range(4):
                world.train(world.request(step, microbatch))
        else:
            train_step(world, step, order=(3, 1, 2, 0))
        world.apply(step)
    assert world.digest() == expected


@settings(max_examples=15)
@given(
    calls=st.lists(st.permutations(range(4)), min_size=1, max_size=3),
    applies=st.lists(st.integers(1, 2), min_size=STEPS, max_size=STEPS),
)
def test_duplicates_in_any_order_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, expected: str, calls: list[list[int]], applies: list[int]
) -> None:
    world = World(tmp_path_factory.mktemp("world"))
    for step in range(STEPS):
        train_step(world, step, order=[microbatch for order in calls for microbatch in order])
        losses = [world.apply(step)[-1].loss for _ in range(applies[step])]
        assert len(set(losses)) == 1
    assert world.digest() == expected


def test_a_retry_is_answered_with_the_same_bytes(tmp_path: Path) -> None:
    world = World(tmp_path)
    first = world.train(world.request(0, 0))
    again = world.train(world.request(0, 0))
    assert (first.duplicate, again.duplicate) == (False, True)
    again.duplicate = False
    assert first.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert world.vnode("stage1").ledger.next == 1


def test_the_losses_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    world = World(tmp_path)
    train_step(world, 0)
    quarters = world.apply(0)[-1].loss
    other = World(tmp_path)
    other.train(other.request(0, 0, num_microbatches=1))
    assert other.apply(0, num_microbatches=1)[-1].loss == quarters


def test_the_same_key_with_another_request_is_a_conflict(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.train(world.request(0, 0))
    other = world.request(0, 0)
    zeros = [bytes(len(payload)) for payload in other.payloads]
    with pytest.raises(Conflict):
        world.train(Parcel(other.head, zeros))


def test_steps_of_the_past_and_the_future_are_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(StepMismatch):
        world.train(world.request(1, 0))
    with pytest.raises(StepMismatch):
        world.apply(0)
    for step in range(2):
        train_step(world, step)
        world.apply(step)
    with pytest.raises(StepMismatch):
        world.train(world.request(0, 0))
    with pytest.raises(StepMismatch):
        world.apply(0)
    assert [vnode.ledger.version for vnode in map(world.vnode, ("stage1", "stage2", "stage3"))] == [2, 2, 2]


def test_outside_the_window_is_busy_with_a_hint(tmp_path: Path) -> None:
    world = World(tmp_path, window=2)
    with pytest.raises(Busy) as refusal:
        world.train(world.request(0, 2))
    assert refusal.value.retry_after_s is not None


def test_fences_keep_zombies_and_strangers_out(tmp_path: Path) -> None:
    world = World(tmp_path)
    for generation, epoch in ((0, 1), (2, 1), (1, 0), (1, 2)):
        request = world.request(0, 0)
        request.head.fence.generation, request.head.fence.epoch = generation, epoch
        with pytest.raises(StaleFence):
            world.train(request)
    request = world.request(0, 0)
    request.head.fence.vnode = "nowhere"
    with pytest.raises(UnknownVNode):
        world.train(request)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda request: request.payloads.pop(),
        lambda request: request.payloads.__setitem__(0, request.payloads[0][:-1]),
        lambda request: request.head.inputs[0].shape.append(2),
        lambda request: request.head.inputs[0].shape.__setitem__(0, -1),
        lambda request: setattr(request.head.inputs[0], "dtype", 0),
        lambda request: setattr(request.head.inputs[0], "name", "other"),
        lambda request: setattr(request.head, "batch_rows", 0),
    ],
)
def test_malformed_tensors_are_refused_and_cost_nothing(tmp_path: Path, spoil: object) -> None:
    world = World(tmp_path)
    request = world.request(0, 0)
    assert callable(spoil)
    spoil(request)
    with pytest.raises(BadRequest):
        world.train(request)
    assert not world.train(world.request(0, 0)).duplicate, "the right request is still new"


def test_a_lost_worker_is_reported_and_restored_and_the_digest_stands(tmp_path: Path, expected: str) -> None:
    world = World(tmp_path)
    train_step(world, 0)
    world.apply(0)
    records = world.snapshot(1)
    world.train(world.request(1, 0))
    world.homes["stage2"].workers["stage2"].die()
    assert world.homes["stage2"].lost == [("stage2", "WORKER_LOST")]
    with pytest.raises(WorkerLost):
        world.train(world.request(1, 1))
    assert world.vnode("stage2").state == vnode_pb2.VNODE_STATE_LOST

    zombie = world.request(1, 1)
    world.restore(records)
    with pytest.raises(StaleFence):
        world.train(zombie)
    train_step(world, 1)
    world.apply(1)
    assert world.digest() == expected


def test_back_to_the_beginning(tmp_path: Path, expected: str) -> None:
    world = World(tmp_path)
    train_step(world, 0)
    world.apply(0)
    world.restore([vnode_pb2.StateRecord(vnode=spec.id) for spec in world.specs])
    for step in range(STEPS):
        train_step(world, step)
        world.apply(step)
    assert world.digest() == expected


def test_a_microbatch_that_waits_is_woken_by_a_restore(tmp_path: Path) -> None:
    world = World(tmp_path)
    with ThreadPoolExecutor(1) as threads:
        # Microbatch 1 comes to its backward and waits there for microbatch 0, which never comes.
        waiting = threads.submit(world.train, world.request(0, 1))
        assert world.homes["stage3"].began["stage3"].wait(20)
        world.restore([vnode_pb2.StateRecord(vnode=spec.id) for spec in world.specs])
        with pytest.raises((StaleFence, StepMismatch)):
            waiting.result(timeout=20)
    train_step(world, 0)


def test_a_deadline_ends_the_wait_and_a_retry_begins_anew(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(DeadlineExceeded):
        world.homes["stage1"].serving.train(world.request(0, 1), soon(0.3))
    train_step(world, 0)
    world.apply(0)


def test_snapshots_name_the_version_and_repeat(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(StepMismatch):
        world.snapshot(1)
    first = world.snapshot(0)
    assert first == world.snapshot(0)
    assert [record.vnode for record in first] == ["stage1", "stage2", "stage3"]


def test_forward_leaves_training_alone(tmp_path: Path, expected: str) -> None:
    world = World(tmp_path)
    rows: Batch = batch(5)
    for step in range(STEPS):
        world.train(world.request(step, 0))
        request = vnode_pb2.ForwardRequest(
            fence=world.fence("stage1"),
            inputs=metas(rows.inputs),
        )
        reply = world.homes["stage1"].serving.forward(Parcel(request, payloads(rows.inputs)), soon())
        assert reply.head.version == step
        train_step(world, step)
        world.apply(step)
    assert world.digest() == expected


def test_a_draining_node_refuses_new_work_and_can_still_be_snapshot(tmp_path: Path) -> None:
    world = World(tmp_path)
    train_step(world, 0)
    world.apply(0)
    world.nodes["a"].gate.close()
    with pytest.raises(Draining):
        world.train(world.request(1, 0))
    assert [record.version for record in world.snapshot(1)] == [1, 1, 1]


def test_describe_tells_where_it_stands(tmp_path: Path) -> None:
    world = World(tmp_path)
    serving = world.homes["stage1"].serving
    ask = vnode_pb2.DescribeRequest(run=world.specs[0].run, vnode="stage1")
    assert serving.describe(ask, soon()).state == vnode_pb2.VNODE_STATE_ALLOCATED
    world.train(world.request(0, 0))
    reply = serving.describe(ask, soon())
    assert (reply.state, reply.version, reply.accumulated) == (vnode_pb2.VNODE_STATE_SERVING, 0, 1)
    assert reply.numerics_class == "samebits-1"
    assert reply.spec == world.specs[0]


def test_calls_that_race_for_one_microbatch_run_it_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    start = threading.Barrier(6)

    def call() -> bool:
        start.wait(10)
        return world.train(world.request(0, 0)).duplicate

    with ThreadPoolExecutor(6) as threads:
        duplicates = [future.result(timeout=30) for future in [threads.submit(call) for _ in range(6)]]
    assert sorted(duplicates) == [False, True, True, True, True, True]
