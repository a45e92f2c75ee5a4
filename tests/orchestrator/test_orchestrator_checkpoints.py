"""Checkpoints: one at a time, all records or none, one manifest; fenced by lease and generation."""

from __future__ import annotations

import pytest
from orchestrator_fakes import digest
from orchestrator_world import RECOVERING, RUNNING, World

from pnode.errors import Busy, PNodeError, StaleFence, StepMismatch, StoreUnavailable, Unavailable
from pnode.orchestrator import events
from pnode.orchestrator.actions import Commit, Open, Snapshot
from pnode.v1 import orchestrator_pb2


@pytest.fixture
def world() -> World:
    world = World()
    for index in (1, 2, 3):
        world.join(index)
    world.submit()
    world.settle()
    world.train_to(4)
    return world


def lease(world: World) -> str:
    return world.core.run("r").lease.id


def reply(world: World, ticket: int = 1) -> orchestrator_pb2.CheckpointReply:
    answer = world.answers[ticket]
    assert isinstance(answer, orchestrator_pb2.CheckpointReply)
    return answer


def refusal(world: World, ticket: int = 1) -> PNodeError:
    answer = world.answers[ticket]
    assert isinstance(answer, PNodeError)
    return answer


def test_all_records_then_one_manifest(world: World) -> None:
    world.checkpoint(lease(world), 4)
    assert [type(action) for action in world.queue] == [Snapshot] * 3
    # In whatever order the records come, the manifest has them in model order.
    world.perform(2)
    world.perform(0)
    assert world.answers == {}
    world.perform(0)
    (commit,) = world.queue
    assert isinstance(commit, Commit)
    assert [record.vnode for record in commit.manifest.vnodes] == ["v0", "v1", "v2"]
    assert (commit.manifest.version, commit.manifest.cursor, commit.manifest.generation) == (4, 4, 1)
    assert (commit.manifest.profile, commit.keep) == ("samebits-1", 2)
    world.perform()
    answer = reply(world)
    assert answer.manifest_sha256 == world.status().manifest_sha256 == world.store.stored["r"][0].sha256
    assert [(record.vnode, record.version, record.sha256) for record in answer.records] == [
        (name, 4, digest(f"{name}@4")) for name in ("v0", "v1", "v2")
    ]


def test_the_same_version_again_is_answered_from_the_manifest(world: World) -> None:
    world.checkpoint(lease(world), 4)
    world.settle()
    world.checkpoint(lease(world), 4, ticket=2)
    assert world.queue == []
    assert reply(world, 2) == reply(world, 1)


def test_the_same_version_meanwhile_joins(world: World) -> None:
    world.checkpoint(lease(world), 4)
    world.checkpoint(lease(world), 4, ticket=2)
    assert len(world.queue) == 3
    world.settle()
    assert reply(world, 2) == reply(world, 1)


def test_another_version_meanwhile_is_busy(world: World) -> None:
    world.checkpoint(lease(world), 4)
    with pytest.raises(Busy) as refused:
        world.checkpoint(lease(world), 5, ticket=2)
    assert refused.value.retry_after_s


def test_an_older_version_is_refused(world: World) -> None:
    world.checkpoint(lease(world), 4)
    world.settle()
    with pytest.raises(StepMismatch):
        world.checkpoint(lease(world), 3, ticket=2)


@pytest.mark.parametrize("generation", [0, 2])
def test_another_generation_is_refused(world: World, generation: int) -> None:
    with pytest.raises(StaleFence):
        world.tell(events.CheckpointAsked("r", lease(world), generation, 4, 4, 1))


def test_a_run_that_recovers_has_no_checkpoints(world: World) -> None:
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    with pytest.raises(Unavailable) as refused:
        world.checkpoint(lease(world), 4)
    assert refused.value.retry_after_s


def test_a_refused_snapshot_ends_it_and_nothing_is_committed(world: World) -> None:
    world.where("v1").vnodes["r", "v1"].version = 5
    world.checkpoint(lease(world), 4)
    world.settle()
    assert isinstance(refusal(world), StepMismatch)
    assert world.status().state == RUNNING
    assert "r" not in world.store.stored
    world.train_to(5)
    world.checkpoint(lease(world), 5, ticket=2)
    world.settle()
    assert reply(world, 2).records[0].version == 5


def test_late_records_of_the_same_version_are_welcome_but_not_twice(world: World) -> None:
    world.checkpoint(lease(world), 4)
    late = world.queue.pop()
    world.perform(error=Busy("full"))
    assert isinstance(refusal(world), Busy)
    world.checkpoint(lease(world), 4, ticket=2)
    while not isinstance(world.queue[-1], Commit):
        world.perform()
    world.queue.insert(0, late)
    world.perform()
    assert [type(action) for action in world.queue] == [Commit]
    world.settle()
    assert reply(world, 2).records[2].version == 4


def test_late_records_of_another_version_are_not_mixed_in(world: World) -> None:
    world.checkpoint(lease(world), 4)
    late = world.queue.pop(0)
    outcome = world.where("v0").answer(late)  # type: ignore[arg-type]  # it is a Snapshot
    world.perform(error=Busy("full"))
    world.settle()
    world.train_to(5)
    world.checkpoint(lease(world), 5, ticket=2)
    world.perform(1)
    world.perform(1)
    world.tell(outcome)
    assert [type(action) for action in world.queue] == [Snapshot]
    world.settle()
    assert {record.sha256 for record in reply(world, 2).records} == {digest(f"v{index}@5") for index in range(3)}
    assert len(reply(world, 2).records) == 3


def test_a_failing_commit_may_be_asked_again(world: World) -> None:
    world.store.up = False
    world.checkpoint(lease(world), 4)
    world.settle()
    assert isinstance(refusal(world), StoreUnavailable)
    world.store.up = True
    world.checkpoint(lease(world), 4, ticket=2)
    world.settle()
    assert reply(world, 2).records[0].version == 4


def test_a_recovery_ends_it_before_its_commit(world: World) -> None:
    world.checkpoint(lease(world), 4)
    world.perform()
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    assert isinstance(refusal(world), StaleFence)
    world.settle()
    assert (world.status().state, world.status().version) == (RUNNING, 0)
    assert "r" not in world.store.stored


@pytest.mark.parametrize("deaf", [False, True])
def test_a_recovery_awaits_a_commit_under_way(world: World, deaf: bool) -> None:
    world.checkpoint(lease(world), 4)
    for _ in range(3):
        world.perform()
    world.report("v0", "WORKER_LOST", world.where("v0").uuid)
    assert world.status().state == RECOVERING
    assert not any(isinstance(action, Open) for action in world.queue)
    world.perform(error=StoreUnavailable("timed out"), deaf=deaf) if deaf else world.perform()
    world.settle()
    # Whether or not its answer came, it is in the store, and so it is what the run goes on from.
    assert (world.status().state, world.status().version) == (RUNNING, 4)
    assert isinstance(world.answers[1], StoreUnavailable if deaf else orchestrator_pb2.CheckpointReply)


def test_finish_ends_it(world: World) -> None:
    world.checkpoint(lease(world), 4)
    world.tell(events.RunFinished("r", lease(world)))
    assert isinstance(refusal(world), Unavailable)
    world.settle()
    assert "r" not in world.store.stored


def test_only_so_many_manifests_are_kept(world: World) -> None:
    for version in (4, 5, 6):
        world.train_to(version)
        world.checkpoint(lease(world), version, ticket=version)
        world.settle()
    assert [stored.manifest.version for stored in world.store.stored["r"]] == [6, 5]
