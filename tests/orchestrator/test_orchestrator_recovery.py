"""Nodes are lost, states are bad: runs recover. The core alone, against fake nodes, time by hand."""

from __future__ import annotations

import pytest
from orchestrator_world import FAILED, PLACING, RECOVERING, RUNNING, World

from pnode.errors import (
    BlobCorrupt,
    Conflict,
    DeadlineExceeded,
    PeerUnavailable,
    StoreUnavailable,
)
from pnode.orchestrator import events
from pnode.orchestrator.actions import Allocate, Open, Probe, Release, Restore
from pnode.v1 import node_pb2, vnode_pb2

LOST = vnode_pb2.VNODE_STATE_LOST


def test_missed_heartbeats_lose_a_node(world: World) -> None:
    gone = world.where("v1")
    gone.alive = False
    world.pass_time(89)
    assert world.status().state == RUNNING
    world.pass_time(2)
    assert world.status().state == RECOVERING
    world.settle()
    status = world.status()
    assert (status.state, status.generation) == (RUNNING, 2)
    assert world.epochs() == {"v0": 1, "v1": 2, "v2": 1}
    assert world.where("v1") is not gone
    assert {vnode.generation for node in world.nodes.values() if node.alive for vnode in node.vnodes.values()} == {2}


def test_everyone_restores_the_newest_manifest(world: World) -> None:
    world.commit(5)
    world.train_to(8)
    world.where("v2").alive = False
    world.pass_time(91)
    world.settle()
    assert world.status().version == 5
    assert {vnode.version for node in world.nodes.values() if node.alive for vnode in node.vnodes.values()} == {5}


def test_without_a_manifest_everyone_restores_the_initial_state(world: World) -> None:
    world.train_to(3)
    world.where("v0").alive = False
    world.pass_time(91)
    world.settle()
    assert world.status().version == 0
    assert {vnode.version for node in world.nodes.values() if node.alive for vnode in node.vnodes.values()} == {0}


def test_a_restarted_node_lost_its_vnodes(world: World) -> None:
    node = world.where("v0")
    world.restart(node)
    world.settle()
    assert (world.status().state, world.status().generation) == (RUNNING, 2)
    assert world.epochs() == {"v0": 2, "v1": 1, "v2": 1}


def test_a_ghost_is_released_and_its_heartbeat_refused(world: World) -> None:
    old = world.where("v0")
    incarnation = old.incarnation
    world.tell(events.NodeRegistered(old.uuid, "127.0.0.1:9999", old.capabilities))
    released = [action for action in world.queue if isinstance(action, Release)]
    assert [action.location.address for action in released] == [old.address]
    with pytest.raises(Conflict, match="one UUID is one node"):
        world.tell(events.NodeBeat(old.uuid, incarnation, node_pb2.Load(), (), False))


def test_all_nodes_lost_waits_for_new_ones(world: World) -> None:
    for node in world.nodes.values():
        node.alive = False
    world.pass_time(91)
    world.settle()
    assert (world.status().state, world.status().message) == (PLACING, "no node has joined")
    world.join(4)
    world.settle()
    assert world.status().state == RUNNING


def test_a_second_loss_amid_a_recovery_begins_it_again(world: World) -> None:
    world.commit(2)
    world.where("v0").alive = False
    world.pass_time(91)
    while not isinstance(world.queue[0], Restore):
        world.perform()
    late = list(world.queue)
    second = world.where("v1")
    world.restart(second)
    assert [type(action) for action in world.queue[len(late) :]] == [Open]
    # The old generation's restores come in last: they mean nothing any more.
    world.queue = world.queue[len(late) :] + late
    world.settle()
    status = world.status()
    assert (status.state, status.generation, status.version) == (RUNNING, 3, 2)
    assert {vnode.generation for node in world.nodes.values() if node.alive for vnode in node.vnodes.values()} == {3}


def test_late_restores_of_an_older_generation_do_not_count(world: World) -> None:
    world.commit(2)
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    while not isinstance(world.queue[0], Restore):
        world.perform()
    old = [world.queue.pop(0) for _ in range(3)]
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    while not isinstance(world.queue[0], Restore):
        world.perform()
    world.queue = [action for action in old if action.location.vnode != "v0"] + world.queue  # type: ignore[union-attr]
    for remaining in (4, 3, 2, 1):
        world.perform()
        assert (world.status().state, len(world.queue)) == (RECOVERING, remaining)
    world.perform()
    assert (world.status().state, world.status().generation) == (RUNNING, 3)


def test_an_open_of_an_earlier_start_is_void(world: World) -> None:
    lease = world.core.run("r").lease.id
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    world.queue = [action for action in world.queue if isinstance(action, Open)]
    world.tell(events.RunFinished("r", lease))
    world.submit()
    world.perform()
    assert world.status().generation == 1
    world.settle()
    assert (world.status().state, world.status().generation) == (RUNNING, 3)


def test_an_unconfirmed_allocation_gets_a_new_epoch(world: World) -> None:
    world.where("v0").alive = False
    world.pass_time(91)
    world.perform()
    assert isinstance(world.queue[0], Allocate)
    lost_in_the_mail = world.queue.pop(0)
    assert world.where("v0") is not world.where("v2")
    world.restart(world.where("v2"))
    world.settle()
    assert world.status().state == RUNNING
    assert world.epochs()["v0"] == world.status().generation == 3
    # It arrives at last, and is either refused or taken back by a heartbeat.
    world.queue.append(lost_in_the_mail)
    world.settle()
    world.pass_time(1)
    hosts = [node for node in world.nodes.values() if node.alive and ("r", "v0") in node.vnodes]
    assert hosts == [world.where("v0")]


@pytest.mark.parametrize("error", [PeerUnavailable("refused"), DeadlineExceeded("silent")])
def test_a_silent_node_in_recovery_is_probed_and_lost(world: World, error: PeerUnavailable) -> None:
    world.commit(1)
    world.where("v0").alive = False
    silent = world.where("v1")
    world.pass_time(91)
    world.perform()
    world.perform()
    restores = [action.location.vnode if isinstance(action, Restore) else "" for action in world.queue]
    silent.alive = False
    world.perform(restores.index("v1"), error=error)
    assert any(isinstance(action, Probe) and action.node_uuid == silent.uuid for action in world.queue)
    for _ in range(20):
        world.settle()
        world.pass_time(1)
    assert world.status().state == RUNNING
    assert world.core.membership.find(silent.uuid) is None


def test_corrupt_manifests_fall_back_to_their_parents_and_to_the_beginning(world: World) -> None:
    world.commit(3)
    world.commit(6)
    records = [record for stored in world.store.stored["r"] for record in stored.manifest.vnodes]
    world.store.bad = {records[1].sha256}
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    world.settle()
    assert (world.status().state, world.status().version) == (RUNNING, 3)
    world.store.bad |= {record.sha256 for record in records}
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    world.settle()
    assert (world.status().state, world.status().version) == (RUNNING, 0)
    # From there the run may commit again, even versions that were committed before.
    world.store.bad.clear()
    world.commit(6)


def test_a_run_that_resumes_finds_out_what_is_corrupt(world: World) -> None:
    world.commit(3)
    world.commit(6)
    world.tell(events.RunFinished("r", world.core.run("r").lease.id))
    world.store.bad = {world.store.stored["r"][0].manifest.vnodes[2].sha256}
    world.submit()
    world.settle()
    assert (world.status().state, world.status().version) == (RUNNING, 3)


def test_a_store_that_is_down_is_waited_for(world: World) -> None:
    world.store.up = False
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    for _ in range(30):
        world.settle()
        world.pass_time(1)
    assert world.status().state == RECOVERING
    assert "STORE_UNAVAILABLE" in world.status().message
    world.store.up = True
    for _ in range(6):
        world.settle()
        world.pass_time(1)
    assert world.status().state == RUNNING
    # After success the next failure is a first one: tried again without a pause.
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    world.perform(1, error=StoreUnavailable("a hiccup"))
    world.tell(events.Ticked())
    world.settle()
    assert world.status().state == RUNNING


def test_a_damaged_record_of_the_run_ends_it_in_words(world: World) -> None:
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    world.queue = [action for action in world.queue if isinstance(action, Open)]
    world.perform(error=BlobCorrupt("runs/r/HEAD is no list of manifests"))
    assert world.status().state == FAILED
    assert "runs/r/HEAD is no list of manifests" in world.status().message


def test_nodes_that_cannot_reach_the_store_are_asked_again(world: World) -> None:
    world.commit(1)
    for node in world.nodes.values():
        node.refusals[Restore] = StoreUnavailable("no answer")
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    for _ in range(100):
        world.settle()
        world.pass_time(1)
    assert world.status().state == RECOVERING
    for node in world.nodes.values():
        node.refusals.clear()
    for _ in range(6):
        world.settle()
        world.pass_time(1)
    assert world.status().state == RUNNING
