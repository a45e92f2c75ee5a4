"""The orchestrator over the wire: real servers, real calls, a real store; only the nodes' training is left out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from orchestrator_fakes import uuid_of
from orchestrator_net import Network, chain
from orchestrator_time import soon
from orchestrator_world import FINISHED, PLACING, RUNNING

from pnode.errors import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    LeaseLost,
    StaleFence,
    StepMismatch,
    Unavailable,
    UnknownRun,
)
from pnode.storage.content import content_key
from pnode.storage.manifest import ManifestLog
from pnode.transport.deadline import Deadline
from pnode.v1 import orchestrator_pb2

pytestmark = pytest.mark.timeout(60)


def hosts(network: Network) -> dict[str, str]:
    return {vnode: node.uuid for node in network.nodes for _run, vnode in node.vnodes}


# A run's life


def test_a_run_is_placed_resolved_and_finished(network: Network, lease: str) -> None:
    status = network.status(lease=lease)
    assert [place.fence.vnode for place in status.locations] == ["v0", "v1", "v2"]
    assert {place.fence.vnode: place.node_uuid for place in status.locations} == hosts(network)
    assert len(set(hosts(network).values())) == 3
    request = orchestrator_pb2.ResolveRequest(run="r", vnode="v1")
    location = network.where("v0").orchestrator.resolve(request, soon()).location
    assert location.token != status.locations[1].token
    location.token = status.locations[1].token
    assert location == status.locations[1]
    network.runs.finish(orchestrator_pb2.FinishRequest(run="r", lease=lease), soon())
    assert network.status().state == FINISHED
    # Whatever Release did not reach is told by the next heartbeat.
    for node in network.nodes:
        node.beat()
    assert hosts(network) == {}


def test_submit_before_the_nodes(network: Network) -> None:
    network.submit()
    network.until_state(PLACING)
    assert network.status().locations[0].node_uuid == ""
    network.join()
    network.until_state(RUNNING)
    assert set(hosts(network).values()) == {uuid_of(1)}


def test_a_killed_node_is_noticed_by_a_report(network: Network, lease: str) -> None:
    network.train_to(2)
    network.checkpoint(lease, 2)
    network.train_to(5)
    gone = network.where("v1")
    gone.stop()
    network.report("v1", "PEER_UNAVAILABLE", network.where("v0").uuid)
    network.until_state(RUNNING, generation=2)
    status = network.status(lease=lease)
    assert (status.generation, status.version, status.manifest_version) == (2, 2, 2)
    assert [place.fence.epoch for place in status.locations] == [1, 2, 1]
    assert network.where("v1") is not gone
    alive = [vnode for node in network.nodes if node is not gone for vnode in node.vnodes.values()]
    assert {(vnode.version, vnode.fence.generation) for vnode in alive} == {(2, 2)}
    with pytest.raises(StaleFence):
        network.checkpoint(lease, 2, generation=1)


def test_a_silent_node_is_noticed_by_the_clock(network: Network, lease: str) -> None:
    gone = network.where("v2")
    for _ in range(4):
        network.clock.now += 30.0
        for node in network.nodes:
            if node is not gone:
                node.beat()
    network.until_state(RUNNING, generation=2)
    assert network.where("v2") is not gone
    # It was only cut off: it is told to join again, and then to let go of what it no longer has.
    assert gone.beat() == ["reregister"]
    assert gone.beat() == ["release"]
    assert gone.vnodes == {}


def test_a_false_alarm_changes_nothing(network: Network, lease: str) -> None:
    network.report("v1", "PEER_UNAVAILABLE")
    network.until(lambda core: not core.nodes.under_probe)
    assert (network.status().state, network.status().generation) == (RUNNING, 1)


def test_a_node_leaves_with_its_records(network: Network, lease: str) -> None:
    network.train_to(4)
    leaving = network.where("v1")
    request = orchestrator_pb2.UnregisterRequest(
        node_uuid=leaving.uuid,
        incarnation=leaving.incarnation,
        reason="SIGTERM",
        records=[leaving.record("v1", 4)],
    )
    leaving.orchestrator.unregister(request, soon())
    leaving.orchestrator.unregister(request, soon())
    network.until_state(RUNNING, generation=2)
    assert (network.status().version, network.status().manifest_version) == (4, 4)


def test_a_corrupt_checkpoint_falls_back_to_its_parent(network: Network, lease: str, tmp_path: Path) -> None:
    for version in (3, 6):
        network.train_to(version)
        reply = network.checkpoint(lease, version)
    (tmp_path / content_key(reply.records[0].sha256)).write_bytes(b"rotten")
    network.report("v2", "WORKER_LOST", network.where("v2").uuid)
    network.until_state(RUNNING, generation=3)
    assert network.status().version == 3


def test_a_new_orchestrator_goes_on_from_the_store(network: Network, lease: str) -> None:
    network.train_to(3)
    network.checkpoint(lease, 3)
    network.orchestrator.close()
    network.start()
    with pytest.raises(UnknownRun):
        network.status()
    for node in network.nodes:
        node.meet(network)
        assert node.beat() == ["reregister"]
        assert node.beat() == ["release"]
    with pytest.raises(Conflict):
        network.submit(chain(num_vnodes=2))
    network.submit()
    network.until_state(RUNNING, generation=2)
    assert (network.status().generation, network.status().version) == (2, 3)


# Checkpoints


def test_a_checkpoint_is_a_manifest_of_what_the_nodes_uploaded(network: Network, lease: str) -> None:
    network.train_to(2)
    reply = network.checkpoint(lease, 2)
    assert reply == network.checkpoint(lease, 2)
    head = ManifestLog(network.store, "r").head()
    assert head is not None
    manifest, sha256 = head
    assert sha256 == reply.manifest_sha256 == network.status().manifest_sha256
    assert [(record.vnode, record.sha256) for record in manifest.vnodes] == [
        (record.vnode, record.sha256) for record in reply.records
    ]
    assert (manifest.version, manifest.cursor, manifest.generation, manifest.profile) == (2, 2, 1, "samebits-1")


def test_a_checkpoint_that_takes_too_long_can_be_asked_again(network: Network, lease: str) -> None:
    network.train_to(2)
    slow = network.where("v1")
    slow.snapshots_may_go.clear()
    with pytest.raises(DeadlineExceeded):
        network.checkpoint(lease, 2, deadline=Deadline.after(0.2))
    with ThreadPoolExecutor(1) as thread:
        again = thread.submit(network.checkpoint, lease, 2)
        slow.snapshots_may_go.set()
        assert len(again.result().records) == 3


def test_a_checkpoint_between_versions_is_refused(network: Network, lease: str) -> None:
    network.train_to(2)
    network.where("v1").vnodes["r", "v1"].version = 3
    with pytest.raises(StepMismatch):
        network.checkpoint(lease, 2)


def test_a_record_that_lies_is_refused(network: Network, lease: str) -> None:
    network.where("v1").lies = True
    with pytest.raises(BadRequest, match="a record of 'v1' at 0 was expected"):
        network.checkpoint(lease, 0)


def test_a_restore_that_lies_moves_the_vnode(network: Network, lease: str) -> None:
    network.train_to(2)
    network.checkpoint(lease, 2)
    liar = network.where("v1")
    liar.lies = True
    network.report("v0", "WORKER_LOST", network.where("v0").uuid)
    network.until_state(RUNNING, generation=3)
    assert network.where("v1") is not liar


def test_closing_refuses_who_still_waits(network: Network, lease: str) -> None:
    slow = network.where("v1")
    slow.snapshots_may_go.clear()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(network.checkpoint, lease, 0)
        assert slow.snapshot_asked.wait(30)
        network.orchestrator.close()
        with pytest.raises(Unavailable):
            waiting.result()


# Leases


def test_one_driver_at_a_time(network: Network, lease: str) -> None:
    assert network.submit() == lease
    with pytest.raises(LeaseLost) as refused:
        network.submit(holder="another")
    assert refused.value.retry_after_s == pytest.approx(60.0)
    network.clock.now += 59.0
    network.status(lease=lease)
    network.clock.now += 59.0
    with pytest.raises(LeaseLost):
        network.submit(holder="another")
    network.clock.now += 2.0
    theirs = network.submit(holder="another")
    assert theirs != lease
    with pytest.raises(LeaseLost):
        network.status(lease=lease)
    with pytest.raises(LeaseLost):
        network.checkpoint(lease, 0)
    with pytest.raises(LeaseLost):
        network.runs.finish(orchestrator_pb2.FinishRequest(run="r", lease=lease), soon())
    assert network.status(lease=theirs).state != FINISHED
