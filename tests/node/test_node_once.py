"""What comes late or from a zombie: a Restore and an Allocate again, callers of another time, an odd Apply."""

from __future__ import annotations

from pathlib import Path

import pytest
from node_world import World, reference, soon

from pnode.errors import BadRequest, BlobCorrupt, BlobMissing, Conflict, StaleFence, WorkerLost
from pnode.v1 import node_pb2, vnode_pb2


def step(world: World, number: int) -> None:
    for microbatch in range(4):
        world.train(world.request(number, microbatch))
    world.apply(number)


def restore(
    world: World, name: str, record: vnode_pb2.StateRecord, upstream: vnode_pb2.Fence | None = None
) -> vnode_pb2.RestoreRequest:
    return vnode_pb2.RestoreRequest(fence=world.fence(name), record=record, upstream=upstream)


def test_a_restore_that_comes_again_later_undoes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    initial = [vnode_pb2.StateRecord(vnode=spec.id) for spec in world.specs]
    world.restore(initial)
    step(world, 0)
    late = restore(world, "stage2", initial[1])
    assert world.homes["stage2"].serving.restore(late, soon()).version == 0
    step(world, 1)
    assert world.digest() == reference(2)
    late.record.version = 7
    with pytest.raises(Conflict, match="another record"):
        world.homes["stage2"].serving.restore(late, soon())


def test_a_worker_lost_since_is_not_restored_by_a_late_restore(tmp_path: Path) -> None:
    """The others have gone on; the way back is a new generation for all."""
    world = World(tmp_path)
    initial = [vnode_pb2.StateRecord(vnode=spec.id) for spec in world.specs]
    world.restore(initial)
    step(world, 0)
    world.homes["stage2"].workers["stage2"].die()
    with pytest.raises(WorkerLost, match="has lost its worker since"):
        world.homes["stage2"].serving.restore(restore(world, "stage2", initial[1]), soon())


def test_a_refused_restore_in_this_generation_changes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    step(world, 0)
    good = world.snapshot(1)[0]
    world.train(world.request(1, 0))
    vnode = world.vnode("stage1")
    before = (vnode.ledger.generation, vnode.ledger.version, vnode.ledger.next)
    for change, error in (
        ({"version": 2}, BlobCorrupt),
        ({"sha256": "0" * 64}, BlobMissing),
        ({"size_bytes": 1 << 40}, BlobCorrupt),
        ({"vnode": "stage2"}, BadRequest),
        ({"sha256": ""}, BadRequest),
    ):
        bad = vnode_pb2.StateRecord()
        bad.CopyFrom(good)
        for name, value in change.items():
            setattr(bad, name, value)
        with pytest.raises(error):
            world.homes["stage1"].serving.restore(restore(world, "stage1", bad), soon())
        assert (vnode.ledger.generation, vnode.ledger.version, vnode.ledger.next) == before
    for microbatch in range(1, 4):
        world.train(world.request(1, microbatch))
    world.apply(1)
    assert world.digest() == reference(2)


def test_only_the_upstream_vnode_of_now_may_call(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.generation += 1
    record = vnode_pb2.StateRecord()
    for vnode, before in (("stage1", None), ("stage2", "stage1"), ("stage3", "stage2")):
        upstream = None if before is None else world.fence(before)
        world.homes[vnode].serving.restore(restore(world, vnode, record, upstream), soon())
    request = world.request(0, 0)
    request.head.fence.vnode = "stage2"
    for caller in (
        vnode_pb2.Fence(),
        vnode_pb2.Fence(vnode="stage1", generation=1, epoch=1),
        vnode_pb2.Fence(vnode="stage1", generation=2, epoch=0),
        vnode_pb2.Fence(vnode="stage3", generation=2, epoch=1),
    ):
        request.head.caller.CopyFrom(caller)
        with pytest.raises(StaleFence, match="the caller is a zombie"):
            world.homes["stage2"].serving.train(request, soon())
    assert world.vnode("stage2").ledger.next == 0
    step(world, 0)
    assert world.digest() == reference(1)


def test_an_allocate_behind_its_own_release_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    allocations = world.homes["stage1"].allocations
    request = node_pb2.AllocateRequest(spec=world.specs[0], fence=world.fence("stage1"))
    assert allocations.release(request.fence)
    with pytest.raises(StaleFence, match="was released"):
        allocations.allocate(request)
    request.fence.epoch += 1
    allocations.allocate(request)


def test_an_apply_with_other_microbatches_is_no_retry(tmp_path: Path) -> None:
    world = World(tmp_path)
    step(world, 0)
    with pytest.raises(Conflict, match="was applied with 4 microbatches"):
        world.apply(0, num_microbatches=3)


def test_an_apply_is_answered_again_after_the_next_step_began(tmp_path: Path) -> None:
    world = World(tmp_path)
    for microbatch in range(4):
        world.train(world.request(0, microbatch))
    applied = world.apply(0)
    world.train(world.request(1, 0))
    assert world.apply(0) == applied
    assert world.vnode("stage3").ledger.next == 1
