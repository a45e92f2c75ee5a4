"""What the orchestrator refuses over the wire, and what it survives: bad input, damaged stores, faults, ports."""

from __future__ import annotations

from pathlib import Path

import pytest
from orchestrator_fakes import uuid_of
from orchestrator_net import Network, chain
from orchestrator_time import soon
from orchestrator_world import FAILED, RUNNING

from pnode.errors import (
    BadRequest,
    ConfigError,
    PermissionDenied,
    PNodeError,
    ProtocolMismatch,
    SpecError,
    UnknownRun,
    UnknownVNode,
)
from pnode.orchestrator.orchestrator import Orchestrator
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.security.identity import Identity
from pnode.security.principals import NODE
from pnode.storage.local import LocalStore
from pnode.v1 import node_pb2, orchestrator_pb2, vnode_pb2

pytestmark = pytest.mark.timeout(60)


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
    ("changes", "kind", "message"),
    [
        ({"node_uuid": "me"}, PermissionDenied, "speaks for 'me'"),
        ({"node_uuid": uuid_of(2)}, PermissionDenied, "speaks for"),
        ({"address": "0.0.0.0:80"}, PermissionDenied, "no address of a peer"),
        ({"address": "localhost"}, BadRequest, "host:port"),
        ({"protocol": 0}, ProtocolMismatch, "the node is too old: it speaks wire protocol 0, this process 1"),
        ({"protocol": 3, "protocol_min": 2}, ProtocolMismatch, "this process is too old: .* 1, the node 2 to 3"),
        ({"capabilities": node_pb2.Capabilities()}, BadRequest, "numerics_classes"),
    ],
)
def test_a_bad_registration_is_refused(
    network: Network, changes: dict[str, object], kind: type[PNodeError], message: str
) -> None:
    node = network.join()
    good = {
        "node_uuid": uuid_of(1),
        "address": "127.0.0.1:80",
        "capabilities": node_pb2.Capabilities(numerics_classes=["samebits-1"]),
        "protocol": 1,
    }
    request = orchestrator_pb2.RegisterRequest(**{**good, **changes})  # type: ignore[arg-type]  # a table's row
    with pytest.raises(kind, match=message):
        node.orchestrator.register(request, soon())


def test_unknown_things_are_named(network: Network, lease: str) -> None:
    stub = network.nodes[0].orchestrator
    with pytest.raises(UnknownRun):
        network.status("nothing")
    with pytest.raises(UnknownRun):
        stub.resolve(orchestrator_pb2.ResolveRequest(run="nothing", vnode="v0"), soon())
    with pytest.raises(UnknownVNode):
        stub.resolve(orchestrator_pb2.ResolveRequest(run="r", vnode="v9"), soon())
    report = orchestrator_pb2.ReportFailureRequest(fence=vnode_pb2.Fence(run="nothing"), reason="WORKER_LOST")
    with pytest.raises(UnknownRun):
        network.as_driver.report_failure(report, soon())
    with pytest.raises(BadRequest):
        network.submit(holder="")
    with pytest.raises(PermissionDenied):
        stub.heartbeat(orchestrator_pb2.HeartbeatRequest(node_uuid="me"), soon())
    records = [vnode_pb2.StateRecord(vnode="v0", sha256="no")]
    leaving = orchestrator_pb2.UnregisterRequest(node_uuid=network.nodes[0].uuid, records=records)
    with pytest.raises(BadRequest, match="does not name a blob"):
        stub.unregister(leaving, soon())
    _, stranger = network.member(Identity.fresh(uuid_of(9)), NODE)
    (directive,) = stranger.heartbeat(orchestrator_pb2.HeartbeatRequest(node_uuid=uuid_of(9)), soon()).directives
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


def test_a_port_in_use_and_a_foreign_host_are_refused(network: Network, tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with pytest.raises(ConfigError, match="in use"):
        Orchestrator(store, OrchestratorSettings(port=network.orchestrator.port))
    with pytest.raises(ConfigError, match="beyond loopback: refused without TLS"):
        Orchestrator(store, OrchestratorSettings(host="10.0.0.1", port=0))


def test_close_before_start_and_twice(tmp_path: Path) -> None:
    orchestrator = Orchestrator(LocalStore(tmp_path), OrchestratorSettings(port=0))
    orchestrator.close()
    orchestrator.close()
    with pytest.raises(PNodeError):
        orchestrator.ticket()[1].result(timeout=0)
