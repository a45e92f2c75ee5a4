"""Failure reports: believed, doubted or ignored; and VNodes that keep dying. The core alone, time by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from orchestrator_world import FAILED, RECOVERING, RUNNING, World

from pnode.errors import (
    Draining,
    LimitBreach,
    PeerUnavailable,
    StaleFence,
    UnknownRun,
    UnknownVNode,
    WorkerLost,
)
from pnode.orchestrator import events
from pnode.orchestrator.actions import Probe, Restore
from pnode.v1 import vnode_pb2

LOST = vnode_pb2.VNODE_STATE_LOST


def test_a_nodes_word_about_its_own_worker_is_believed(world: World) -> None:
    node = world.where("v1")
    world.report("v1", "WORKER_LOST", node.uuid)
    assert world.status().state == RECOVERING
    world.settle()
    assert world.epochs() == {"v0": 1, "v1": 2, "v2": 1}
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
    assert world.epochs() == {"v0": 1, "v1": 2, "v2": 1}
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
    world.commit(1)
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


def test_a_register_that_comes_twice_costs_nothing(world: World) -> None:
    """Another process is another life, and has nothing of what the earlier one had."""
    node = world.where("v1")
    register = events.NodeRegistered(node.uuid, node.address, node.capabilities, "boot 1")
    world.tell(register)
    world.settle()
    generation, member = world.status().generation, world.core.membership.find(node.uuid)
    world.tell(register)
    assert world.core.membership.find(node.uuid) is member
    assert world.queue == []
    world.tell(replace(register, boot="boot 2"))
    world.settle()
    assert world.status().generation == generation + 1


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
    assert world.epochs()["v1"] == 2


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
    world.commit(1)
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
    world.commit(1)
    refusing = world.where("v1")
    refusing.refusals[Restore] = error
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    world.settle()
    assert world.status().state == RUNNING
    assert world.where("v1") is not refusing
    assert ("r", "v1") not in refusing.vnodes
