"""Runs: placed, lost, recovered, given up. The core alone, against fake nodes, time by hand."""

from __future__ import annotations

import pytest
from orchestrator_world import FAILED, FINISHED, PLACING, RECOVERING, RUNNING, World, run_spec, uuid_of

from pnode.errors import (
    BlobCorrupt,
    Busy,
    Conflict,
    DeadlineExceeded,
    Draining,
    LeaseLost,
    LimitBreach,
    PeerUnavailable,
    SpecError,
    StaleFence,
    StoreUnavailable,
    Unavailable,
    UnknownRun,
    UnknownVNode,
    WorkerLost,
)
from pnode.orchestrator import events
from pnode.orchestrator.actions import Allocate, Open, Probe, Release, Restore
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.v1 import node_pb2, vnode_pb2

LOST = vnode_pb2.VNODE_STATE_LOST


@pytest.fixture
def world() -> World:
    """Three nodes, a run of three VNodes, running."""
    world = World()
    for index in (1, 2, 3):
        world.join(index)
    world.submit()
    world.settle()
    assert world.status().state == RUNNING
    return world


def committed(world: World, version: int) -> None:
    """Train to a version and checkpoint it."""
    world.train_to(version)
    world.checkpoint(world.core.run("r").lease.id, version, ticket=100 + version)
    world.settle()
    assert world.status().manifest_version == version


def fences(world: World) -> list[tuple[str, int]]:
    return [(location.vnode, location.epoch) for location in world.core.run("r").locations]


# Placing


def test_a_fresh_run_is_only_allocated(world: World) -> None:
    status = world.status()
    assert (status.generation, status.version, status.message) == (1, 0, "")
    assert len({location.node_uuid for location in status.locations}) == 3
    assert all(location.fence.epoch == 1 for location in status.locations)


def test_it_waits_for_nodes_and_says_so() -> None:
    world = World()
    world.submit(run_spec(memory=(60, 60)))
    world.settle()
    assert world.status().state == PLACING
    assert "no node has joined" in world.status().message
    world.join(1)
    assert "no room for VNode 'v1'" in world.status().message
    world.join(2)
    world.settle()
    assert world.status().state == RUNNING


def test_pins_and_min_nodes_hold_the_first_placement_back() -> None:
    pins = {"v0": uuid_of(2), "v2": uuid_of(2)}
    world = World(OrchestratorSettings(pins=pins, min_nodes=3))
    world.submit()
    for index in (1, 3):
        world.join(index)
        world.settle()
        assert world.status().state == PLACING
    world.join(2)
    world.settle()
    homes = [location.node_uuid for location in world.status().locations]
    assert homes[0] == homes[2] == uuid_of(2) != homes[1]
    world.where("v0").alive = False
    world.pass_time(91)
    world.settle()
    assert world.status().state == RUNNING


def test_a_draining_node_gets_nothing_new() -> None:
    world = World()
    first, _second = world.join(1), world.join(2)
    first.draining = True
    world.beat(first)
    world.submit()
    world.settle()
    assert world.where("v0") is not first
    assert first.vnodes == {}


def test_a_refused_allocation_is_tried_elsewhere() -> None:
    world = World()
    first, second = world.join(1), world.join(2)
    first.refusals[Allocate] = Busy("full after all")
    world.submit(run_spec(memory=(10,)))
    world.settle()
    assert world.status().state == RUNNING
    assert world.where("v0") is second
    assert world.status().generation == 2


def test_the_only_node_is_asked_again_after_a_while() -> None:
    world = World()
    node = world.join(1)
    node.refusals[Allocate] = Busy("full for now")
    world.submit(run_spec(memory=(10,)))
    world.settle()
    assert world.status().state == PLACING
    node.refusals.clear()
    for _ in range(10):
        world.pass_time(1)
        world.settle()
    assert world.status().state == RUNNING


def test_nodes_that_refuse_the_spec_end_the_run() -> None:
    world = World()
    node = world.join(1)
    node.refusals[Allocate] = SpecError("operators[0]", "not of this version")
    world.submit()
    for _ in range(100):
        world.settle()
        world.pass_time(1)
    status = world.status()
    assert status.state == FAILED
    assert "BAD_SPEC: operators[0]: not of this version" in status.message


# Losing nodes


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
    assert fences(world) == [("v0", 1), ("v1", 2), ("v2", 1)]
    assert world.where("v1") is not gone
    assert {vnode.generation for node in world.nodes.values() if node.alive for vnode in node.vnodes.values()} == {2}


def test_everyone_restores_the_newest_manifest(world: World) -> None:
    committed(world, 5)
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
    assert dict(fences(world)) == {"v0": 2, "v1": 1, "v2": 1}


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
    committed(world, 2)
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
    committed(world, 2)
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
    assert dict(fences(world))["v0"] == world.status().generation == 3
    # It arrives at last, and is either refused or taken back by a heartbeat.
    world.queue.append(lost_in_the_mail)
    world.settle()
    world.pass_time(1)
    hosts = [node for node in world.nodes.values() if node.alive and ("r", "v0") in node.vnodes]
    assert hosts == [world.where("v0")]


@pytest.mark.parametrize("error", [PeerUnavailable("refused"), DeadlineExceeded("silent")])
def test_a_silent_node_in_recovery_is_probed_and_lost(world: World, error: PeerUnavailable) -> None:
    committed(world, 1)
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


# Reports


def test_a_nodes_word_about_its_own_worker_is_believed(world: World) -> None:
    node = world.where("v1")
    world.report("v1", "WORKER_LOST", node.uuid)
    assert world.status().state == RECOVERING
    world.settle()
    assert dict(fences(world)) == {"v0": 1, "v1": 2, "v2": 1}
    assert world.where("v1") is node


@pytest.mark.parametrize(
    "reason", ["WORKER_LOST", "PEER_UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN_VNODE", "NONSENSE"]
)
def test_anybody_else_only_raises_doubt(world: World, reason: str) -> None:
    world.report("v1", reason, world.where("v0").uuid)
    world.report("v1", reason)
    assert [type(action) for action in world.queue] == [Probe]
    assert world.status().state == RUNNING
    world.settle()
    assert (world.status().state, world.status().generation) == (RUNNING, 1)


@pytest.mark.parametrize("reason", ["STALE_FENCE", "BUSY", "STEP_MISMATCH", "BAD_REQUEST", "LEASE_LOST", "CONFLICT"])
def test_refusals_are_no_failures(world: World, reason: str) -> None:
    world.report("v1", reason, world.where("v1").uuid)
    assert world.queue == []


def test_a_failing_probe_loses_the_node(world: World) -> None:
    world.where("v1").alive = False
    world.report("v1", "PEER_UNAVAILABLE")
    world.settle()
    assert (world.status().state, world.status().generation) == (RUNNING, 2)


@pytest.mark.parametrize("gone", [True, False])
def test_a_probe_that_finds_the_vnode_dead_or_gone_loses_it(world: World, gone: bool) -> None:
    node = world.where("v1")
    if gone:
        node.vnodes.clear()
    else:
        node.vnodes["r", "v1"].state = LOST
    world.report("v1", "WORKER_LOST")
    world.settle()
    assert dict(fences(world)) == {"v0": 1, "v1": 2, "v2": 1}
    assert world.core.membership.find(node.uuid) is not None


def test_another_node_at_the_address_is_a_lost_node(world: World) -> None:
    node = world.where("v1")
    node.uuid, old = "somebody else", node.uuid
    world.report("v1", "PEER_UNAVAILABLE")
    world.settle()
    assert world.core.membership.find(old) is None


def test_a_probe_from_before_a_recovery_says_nothing_after_it(world: World) -> None:
    node = world.where("v1")
    world.report("v1", "PEER_UNAVAILABLE")
    probe = world.queue.pop()
    node.vnodes["r", "v1"].state = LOST
    answer = node.answer(probe)  # type: ignore[arg-type]  # it is the Probe
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    world.settle()
    world.tell(answer)
    assert (world.queue, world.status().generation) == ([], 2)


def test_a_vnode_not_yet_restored_is_not_lost(world: World) -> None:
    committed(world, 1)
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    while not isinstance(world.queue[0], Restore):
        world.perform()
    node = world.where("v1")
    node.vnodes["r", "v1"].state = LOST
    world.report("v1", "PEER_UNAVAILABLE")
    world.perform(len(world.queue) - 1)
    world.settle()
    assert (world.status().state, world.status().generation) == (RUNNING, 2)


def test_a_node_that_came_back_can_be_probed_again(world: World) -> None:
    node = world.where("v1")
    world.report("v1", "PEER_UNAVAILABLE")
    unanswered = world.queue.pop()
    world.restart(node)
    world.settle()
    world.queue.append(unanswered)
    world.perform(error=PeerUnavailable("the connection was reset"))
    assert world.core.membership.find(node.uuid) is not None
    vnode = next(name for name in ("v0", "v1", "v2") if world.where(name) is node)
    world.report(vnode, "PEER_UNAVAILABLE")
    assert [type(action) for action in world.queue] == [Probe]


def test_stale_and_foreign_reports_are_ignored(world: World) -> None:
    node = world.where("v1")
    for generation, epoch in ((0, 1), (2, 1), (1, 0), (1, 2)):
        fence = vnode_pb2.Fence(run="r", vnode="v1", generation=generation, epoch=epoch)
        world.tell(events.FailureReported(node.uuid, fence, "WORKER_LOST", ""))
    world.tell(events.FailureReported(node.uuid, vnode_pb2.Fence(run="r", vnode="none"), "WORKER_LOST", ""))
    assert world.queue == []
    with pytest.raises(UnknownRun):
        world.tell(events.FailureReported(node.uuid, vnode_pb2.Fence(run="none"), "WORKER_LOST", ""))


def test_a_heartbeat_that_lists_a_dead_worker_is_looked_into(world: World) -> None:
    node = world.where("v1")
    node.vnodes["r", "v1"].state = LOST
    world.beat(node)
    world.settle()
    assert dict(fences(world))["v1"] == 2


def test_a_vnode_that_keeps_dying_ends_the_run(world: World) -> None:
    for _ in range(5):
        world.report("v1", "LIMIT_BREACH", world.where("v1").uuid)
        world.settle()
        assert world.status().state == RUNNING
    world.report("v1", "LIMIT_BREACH", world.where("v1").uuid)
    world.settle()
    status = world.status()
    assert status.state == FAILED
    assert "VNode 'v1' was lost 6 times" in status.message
    assert "LIMIT_BREACH: said the reporter" in status.message
    assert all(node.vnodes == {} for node in world.nodes.values())


def test_progress_renews_patience(world: World) -> None:
    for version in range(1, 10):
        world.report("v1", "LIMIT_BREACH", world.where("v1").uuid)
        world.settle()
        world.train_to(version)
        world.beat(world.where("v1"))
    assert world.status().state == RUNNING


@pytest.mark.parametrize("error", [WorkerLost("died at once"), LimitBreach("over its memory")])
def test_a_worker_that_dies_at_every_restore_ends_the_run(world: World, error: WorkerLost) -> None:
    committed(world, 1)
    for node in world.nodes.values():
        node.refusals[Restore] = error
    world.report("v1", "WORKER_LOST", world.where("v1").uuid)
    for _ in range(100):
        world.settle()
        world.pass_time(1)
    assert world.status().state == FAILED
    assert error.message in world.status().message


@pytest.mark.parametrize("error", [StaleFence("newer here"), UnknownVNode("never heard"), Draining("leaving")])
def test_a_refused_restore_moves_the_vnode(world: World, error: StaleFence) -> None:
    committed(world, 1)
    refusing = world.where("v1")
    refusing.refusals[Restore] = error
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    world.settle()
    assert world.status().state == RUNNING
    assert world.where("v1") is not refusing
    assert ("r", "v1") not in refusing.vnodes


# Bad states and stores


def test_corrupt_manifests_fall_back_to_their_parents_and_to_the_beginning(world: World) -> None:
    committed(world, 3)
    committed(world, 6)
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
    committed(world, 6)


def test_a_run_that_resumes_finds_out_what_is_corrupt(world: World) -> None:
    committed(world, 3)
    committed(world, 6)
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
    committed(world, 1)
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


# Leaving


def leave(world: World, vnode: str, *versions: int) -> None:
    """The node of a VNode leaves with its records at these versions."""
    node = world.where(vnode)
    records = tuple(node.record(vnode, version) for version in versions)
    node.alive = False
    world.tell(events.NodeLeft(node.uuid, node.incarnation, "SIGTERM", records))
    world.tell(events.NodeLeft(node.uuid, node.incarnation, "SIGTERM", records))
    world.settle()


def test_a_node_that_leaves_at_a_common_version_loses_nothing(world: World) -> None:
    committed(world, 3)
    world.train_to(7)
    leave(world, "v1", 7)
    status = world.status()
    assert (status.state, status.version, status.manifest_version, status.generation) == (RUNNING, 7, 7, 2)
    assert world.store.stored["r"][0].manifest.cursor == 7


def test_a_node_that_leaves_between_steps_costs_a_replay(world: World) -> None:
    committed(world, 3)
    world.train_to(7)
    world.where("v0").vnodes["r", "v0"].version = 8
    leave(world, "v1", 7)
    status = world.status()
    assert (status.state, status.version, status.generation) == (RUNNING, 3, 2)


def test_a_node_that_leaves_without_records_costs_a_replay(world: World) -> None:
    committed(world, 3)
    world.train_to(7)
    leave(world, "v1")
    assert (world.status().state, world.status().version) == (RUNNING, 3)


def test_a_node_that_leaves_at_the_committed_version_needs_no_other(world: World) -> None:
    committed(world, 3)
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
    committed(world, 3)
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


# Drivers


def test_submit_again_changes_nothing_for_the_same_holder(world: World) -> None:
    lease = world.core.run("r").lease.id
    assert world.submit() == lease
    assert world.queue == []


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
    committed(world, 4)
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
    committed(world, 4)
    after = World()
    after.store, after.nodes, after.now = world.store, world.nodes, world.now
    for node in after.nodes.values():
        after.beat(node)
    after.submit()
    after.settle()
    status = after.status()
    assert (status.state, status.version, status.generation, status.manifest_version) == (RUNNING, 4, 2, 4)
    assert {epoch for _vnode, epoch in fences(after)} == {2}


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
