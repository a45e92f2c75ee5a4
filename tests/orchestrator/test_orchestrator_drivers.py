"""Drivers submit, take over and finish; nodes leave in good order. The core alone, time by hand."""

from __future__ import annotations

import pytest
from orchestrator_fakes import run_spec
from orchestrator_world import FINISHED, PLACING, RUNNING, World

from pnode.errors import (
    Busy,
    Conflict,
    LeaseLost,
    StaleFence,
    Unavailable,
    UnknownRun,
    UnknownVNode,
)
from pnode.orchestrator import events
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.v1 import vnode_pb2

LOST = vnode_pb2.VNODE_STATE_LOST


def test_submit_again_changes_nothing_for_the_same_holder(world: World) -> None:
    lease = world.core.run("r").lease.id
    assert world.submit() == lease
    assert world.queue == []


def test_a_submit_that_comes_again_after_the_end_begins_nothing(world: World) -> None:
    lease = world.submit(nonce="life 1")
    world.tell(events.RunFinished("r", lease))
    world.settle()
    assert world.submit(nonce="life 1") == lease
    assert (world.status().state, world.queue) == (FINISHED, [])
    assert world.submit(nonce="life 2") != lease
    world.settle()
    assert world.status().state == RUNNING


def test_a_driver_that_came_back_fences_its_earlier_life(world: World) -> None:
    first = world.submit(nonce="life 1")
    world.now += 1
    second = world.submit(nonce="life 2")
    with pytest.raises(LeaseLost):
        world.checkpoint(first, 0)
    with pytest.raises(LeaseLost):
        world.submit(nonce="life 1")
    assert world.core.run("r").lease.id == second
    assert world.status().generation == 1


def test_another_spec_is_a_conflict(world: World) -> None:
    with pytest.raises(Conflict):
        world.submit(run_spec(memory=(10, 10, 11)))


def test_another_holder_waits_for_the_lease(world: World) -> None:
    with pytest.raises(LeaseLost):
        world.submit(holder="second")
    world.pass_time(61)
    lease = world.submit(holder="second")
    assert lease == world.core.run("r").lease.id
    with pytest.raises(LeaseLost):
        world.checkpoint("the old lease", 0)
    with pytest.raises(LeaseLost):
        world.tell(events.RunFinished("r", "the old lease"))


def test_finish_releases_and_a_new_submit_resumes(world: World) -> None:
    world.commit(4)
    lease = world.core.run("r").lease.id
    world.tell(events.RunFinished("r", lease))
    world.tell(events.RunFinished("r", lease))
    world.settle()
    assert world.status().state == FINISHED
    assert all(node.vnodes == {} for node in world.nodes.values())
    world.submit()
    world.settle()
    assert (world.status().state, world.status().version, world.status().generation) == (RUNNING, 4, 2)


def test_a_new_orchestrator_resumes_from_the_store(world: World) -> None:
    world.commit(4)
    after = World()
    after.store, after.nodes, after.now = world.store, world.nodes, world.now
    for node in after.nodes.values():
        after.beat(node)
    after.submit()
    after.settle()
    status = after.status()
    assert (status.state, status.version, status.generation, status.manifest_version) == (RUNNING, 4, 2, 4)
    assert set(after.epochs().values()) == {2}


def test_a_run_stays_in_its_numerics_class(world: World) -> None:
    other = World()
    other.join(1, classes=("torch/x",))
    other.submit(run_spec(memory=(10,), profile="torch"))
    other.settle()
    other.nodes.popitem()[1].alive = False
    other.join(2, classes=("torch/y",))
    other.pass_time(91)
    other.settle()
    assert (other.status().state, other.status().message) == (PLACING, "no node offers numerics 'torch/x'")


def test_resolve_names_the_place_only_while_it_serves(world: World) -> None:
    location = world.core.run("r").resolve("v1")
    assert (location.address, location.fence.epoch) == (world.where("v1").address, 1)
    with pytest.raises(UnknownVNode):
        world.core.run("r").resolve("none")
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    with pytest.raises(Unavailable) as refused:
        world.core.run("r").resolve("v1")
    assert refused.value.retry_after_s


def test_old_runs_make_room_for_new_ones() -> None:
    world = World(OrchestratorSettings(max_runs=1))
    world.join(1)
    lease = world.submit(run_spec("a"))
    world.settle()
    with pytest.raises(Busy):
        world.submit(run_spec("b"))
    world.tell(events.RunFinished("a", lease))
    world.submit(run_spec("b"))
    world.settle()
    assert world.status("b").state == RUNNING
    with pytest.raises(UnknownRun):
        world.status("a")


def leave(world: World, vnode: str, *versions: int) -> None:
    """The node of a VNode leaves with its records at these versions."""
    node = world.where(vnode)
    records = tuple(node.record(vnode, version) for version in versions)
    node.alive = False
    world.tell(events.NodeLeft(node.uuid, node.incarnation, "SIGTERM", records))
    world.tell(events.NodeLeft(node.uuid, node.incarnation, "SIGTERM", records))
    world.settle()


def test_a_node_that_leaves_at_a_common_version_loses_nothing(world: World) -> None:
    world.commit(3)
    world.train_to(7)
    leave(world, "v1", 7)
    status = world.status()
    assert (status.state, status.version, status.manifest_version, status.generation) == (RUNNING, 7, 7, 2)
    assert world.store.stored["r"][0].manifest.cursor == 7


def test_a_node_that_leaves_between_steps_costs_a_replay(world: World) -> None:
    world.commit(3)
    world.train_to(7)
    world.where("v0").vnodes["r", "v0"].version = 8
    leave(world, "v1", 7)
    status = world.status()
    assert (status.state, status.version, status.generation) == (RUNNING, 3, 2)


def test_a_node_that_leaves_without_records_costs_a_replay(world: World) -> None:
    world.commit(3)
    world.train_to(7)
    leave(world, "v1")
    assert (world.status().state, world.status().version) == (RUNNING, 3)


def test_a_node_that_leaves_at_the_committed_version_needs_no_other(world: World) -> None:
    world.commit(3)
    newest = world.status().manifest_sha256
    leave(world, "v1", 3)
    assert (world.status().state, world.status().version) == (RUNNING, 3)
    assert world.status().manifest_sha256 == newest


def test_a_node_that_leaves_amid_a_checkpoint_ends_it(world: World) -> None:
    world.train_to(4)
    world.checkpoint(world.core.run("r").lease.id, 4, ticket=9)
    leave(world, "v1", 4)
    assert (world.status().state, world.status().version) == (RUNNING, 0)
    assert isinstance(world.answers[9], StaleFence)


def test_a_loss_amid_a_farewell_goes_on_without_it(world: World) -> None:
    world.commit(3)
    world.train_to(7)
    node = world.where("v1")
    node.alive = False
    world.tell(events.NodeLeft(node.uuid, node.incarnation, "SIGTERM", (node.record("v1", 7),)))
    world.restart(world.where("v2"))
    world.settle()
    assert (world.status().state, world.status().version) == (RUNNING, 3)


def test_a_drain_that_never_ends_is_ended(world: World) -> None:
    node = world.where("v1")
    node.draining = True
    world.pass_time(100)
    assert world.where("v1") is node
    world.pass_time(25)
    world.settle()
    assert world.status().state == RUNNING
    assert world.where("v1") is not node
    assert node.vnodes == {}
