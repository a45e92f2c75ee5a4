"""The orchestrator over the wire: real servers, real calls, a real store; only the nodes' training is left out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from orchestrator_net import Network, chain, soon
from orchestrator_world import FAILED, FINISHED, PLACING, RUNNING, uuid_of

from pnode.errors import (
    BadRequest,
    ConfigError,
    Conflict,
    DeadlineExceeded,
    LeaseLost,
    PNodeError,
    SpecError,
    StaleFence,
    StepMismatch,
    Unavailable,
    UnknownRun,
    UnknownVNode,
)
from pnode.orchestrator.orchestrator import Orchestrator
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.storage.content import content_key
from pnode.storage.local import LocalStore
from pnode.storage.manifest import ManifestLog
from pnode.transport.deadline import Deadline
from pnode.v1 import node_pb2, orchestrator_pb2, vnode_pb2

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def network(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Network]:
    before = set(threading.enumerate())
    network = Network(LocalStore(tmp_path))
    yield network
    network.close()
    ours = [
        thread for thread in set(threading.enumerate()) - before if thread.name.startswith(("orch", "probe", "tick"))
    ]
    assert ours == []


@pytest.fixture
def lease(network: Network) -> str:
    """The lease of a run that runs on three nodes."""
    network.join(3)
    lease = network.submit()
    network.until_state(RUNNING)
    return lease


def hosts(network: Network) -> dict[str, str]:
    return {vnode: node.uuid for node in network.nodes for _run, vnode in node.vnodes}


# A run's life


def test_a_run_is_placed_resolved_and_finished(network: Network, lease: str) -> None:
    status = network.status(lease=lease)
    assert [place.fence.vnode for place in status.locations] == ["v0", "v1", "v2"]
    assert {place.fence.vnode: place.node_uuid for place in status.locations} == hosts(network)
    assert len(set(hosts(network).values())) == 3
    request = orchestrator_pb2.ResolveRequest(run="r", vnode="v1")
    assert network.orchestrator_stub.resolve(request, soon()).location == status.locations[1]
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
    network.orchestrator_stub.unregister(request, soon())
    network.orchestrator_stub.unregister(request, soon())
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
        node._orchestrator = network.orchestrator_stub
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


# Bad input


def test_a_bad_spec_is_refused_with_its_path(network: Network) -> None:
    bad = chain()
    bad.vnodes[1].operators[0].linear.in_features = -1
    with pytest.raises(SpecError) as refused:
        network.submit(bad)
    assert refused.value.path.startswith("vnodes[1].operators[0]")


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda spec: spec.ClearField("vnodes"), "vnodes"),
        (lambda spec: spec.vnodes.extend([spec.vnodes[0]] * 300), "vnodes"),
        (lambda spec: setattr(spec, "id", "../r"), "id"),
        (lambda spec: setattr(spec, "id", ""), "id"),
        (lambda spec: setattr(spec, "id", "other"), "vnodes[0].run"),
        (lambda spec: spec.vnodes.pop(), "vnodes[1].downstream"),
    ],
)
def test_a_bad_run_is_refused_with_its_path(network: Network, change: object, path: str) -> None:
    bad = chain()
    change(bad)  # type: ignore[operator]  # a table of functions
    with pytest.raises(SpecError) as refused:
        network.submit(bad)
    assert refused.value.path == path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"node_uuid": "me"}, "not a UUID"),
        ({"node_uuid": uuid_of(10).upper().replace("0", "A", 1)}, "not a UUID"),
        ({"address": "10.0.0.1:80"}, "loopback"),
        ({"address": "localhost"}, "host:port"),
        ({"protocol": 0}, "too old"),
        ({"protocol": 2}, "too new"),
        ({"capabilities": node_pb2.Capabilities()}, "numerics_classes"),
    ],
)
def test_a_bad_registration_is_refused(network: Network, changes: dict[str, object], message: str) -> None:
    good = {
        "node_uuid": uuid_of(1),
        "address": "127.0.0.1:80",
        "capabilities": node_pb2.Capabilities(numerics_classes=["samebits-1"]),
        "protocol": 1,
    }
    request = orchestrator_pb2.RegisterRequest(**{**good, **changes})  # type: ignore[arg-type]  # a table's row
    with pytest.raises(BadRequest, match=message):
        network.orchestrator_stub.register(request, soon())


def test_unknown_things_are_named(network: Network, lease: str) -> None:
    stub = network.orchestrator_stub
    with pytest.raises(UnknownRun):
        network.status("nothing")
    with pytest.raises(UnknownRun):
        stub.resolve(orchestrator_pb2.ResolveRequest(run="nothing", vnode="v0"), soon())
    with pytest.raises(UnknownVNode):
        stub.resolve(orchestrator_pb2.ResolveRequest(run="r", vnode="v9"), soon())
    report = orchestrator_pb2.ReportFailureRequest(fence=vnode_pb2.Fence(run="nothing"), reason="WORKER_LOST")
    with pytest.raises(UnknownRun):
        stub.report_failure(report, soon())
    with pytest.raises(BadRequest):
        network.submit(holder="")
    with pytest.raises(BadRequest):
        stub.heartbeat(orchestrator_pb2.HeartbeatRequest(node_uuid="me"), soon())
    records = [vnode_pb2.StateRecord(vnode="v0", sha256="no")]
    leaving = orchestrator_pb2.UnregisterRequest(node_uuid=network.nodes[0].uuid, records=records)
    with pytest.raises(BadRequest, match="does not name a blob"):
        stub.unregister(leaving, soon())
    (directive,) = stub.heartbeat(orchestrator_pb2.HeartbeatRequest(node_uuid=uuid_of(9)), soon()).directives
    assert directive.HasField("reregister")


def test_an_internal_fault_becomes_an_event_too(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    network.join()
    monkeypatch.setattr("pnode.orchestrator.journal.RunJournal.take_generation", breaks)
    network.submit()
    network.until(lambda core: "INTERNAL" in core.run("r").message)
    monkeypatch.undo()
    network.clock.now += 10.0
    network.until_state(RUNNING)


def test_a_damaged_record_of_the_run_ends_it_in_words(network: Network) -> None:
    network.store.put_if_absent("runs/r/HEAD", b"not json")
    network.submit()
    network.until_state(FAILED, generation=0)
    assert "runs/r/HEAD" in network.status().message


# The process


def test_a_port_in_use_and_a_foreign_host_are_refused(network: Network, tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(ConfigError, match="in use"):
        Orchestrator(store, OrchestratorSettings(port=network.orchestrator.port))
    with pytest.raises(ConfigError, match="loopback"):
        Orchestrator(store, OrchestratorSettings(host="10.0.0.1", port=0))


def test_close_before_start_and_twice(tmp_path: Path) -> None:
    orchestrator = Orchestrator(LocalStore(tmp_path), OrchestratorSettings(port=0))
    orchestrator.close()
    orchestrator.close()
    with pytest.raises(PNodeError):
        orchestrator.ticket()[1].result(timeout=0)
