"""One suite for both ways of calling: an implementation in this process, and the same behind a real server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.message import Message
from transport_fakes import FakeNode, FakeOrchestrator, FakeVNodes, fence

from pnode.errors import BadRequest, Busy, DeadlineExceeded, PNodeError, SpecError, StaleFence
from pnode.transport import methods
from pnode.transport.api import NodeApi, OrchestratorApi, RunsApi, VNodesApi
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteNode, RemoteOrchestrator, RemoteRuns, RemoteVNode
from pnode.v1 import node_pb2, orchestrator_pb2, spec_pb2, tensor_pb2, vnode_pb2

META = tensor_pb2.TensorMeta(name="x", dtype=tensor_pb2.DTYPE_F32, shape=[2, 1])
REQUESTS: dict[str, list[Message | Parcel[Any]]] = {
    "vnodes": [
        Parcel(vnode_pb2.ForwardRequest(fence=fence(), inputs=[META]), [b"12345678"]),
        Parcel(vnode_pb2.TrainRequest(fence=fence(), step=2**63, inputs=[META]), [b"\x00\xff" * 4]),
        vnode_pb2.ApplyRequest(fence=fence(), step=4, num_microbatches=2),
        vnode_pb2.SnapshotRequest(fence=fence(), version=4),
        vnode_pb2.RestoreRequest(fence=fence(), record=vnode_pb2.StateRecord(version=4)),
        vnode_pb2.DescribeRequest(run="run", vnode="stem"),
    ],
    "node": [
        node_pb2.AllocateRequest(spec=spec_pb2.VNodeSpec(id="stem"), fence=fence()),
        node_pb2.ReleaseRequest(fence=fence()),
        node_pb2.DrainRequest(reason="going home"),
        node_pb2.InspectRequest(),
    ],
    "orchestrator": [
        orchestrator_pb2.RegisterRequest(node_uuid="u", protocol=1),
        orchestrator_pb2.HeartbeatRequest(node_uuid="u", incarnation=1),
        orchestrator_pb2.ResolveRequest(run="run", vnode="stem"),
        orchestrator_pb2.ReportFailureRequest(fence=fence(), reason="WORKER_LOST"),
        orchestrator_pb2.UnregisterRequest(node_uuid="u"),
    ],
    "runs": [
        orchestrator_pb2.SubmitRequest(holder="me"),
        orchestrator_pb2.StatusRequest(run="run"),
        orchestrator_pb2.CheckpointRequest(run="run", version=4),
        orchestrator_pb2.FinishRequest(run="run"),
    ],
}
SERVICES = {
    "vnodes": methods.VNODES,
    "node": methods.PNODE,
    "orchestrator": methods.ORCHESTRATOR,
    "runs": methods.RUNS,
}
CASES = [
    pytest.param(kind, method.attribute, request, id=f"{kind}.{method.attribute}")
    for kind, service in SERVICES.items()
    for method, request in zip(methods.methods_of(service), REQUESTS[kind], strict=True)
]


@dataclass
class Setting:
    """The implementations, and the interfaces through which a test calls them."""

    fakes: dict[str, Any]
    apis: dict[str, Any]


@pytest.fixture(params=["local", "remote"])
def setting(request: pytest.FixtureRequest, serve: Callable[..., Any], pool: ChannelPool) -> Setting:
    orchestrator = FakeOrchestrator()
    fakes = {"vnodes": FakeVNodes(), "node": FakeNode(), "orchestrator": orchestrator, "runs": orchestrator}
    if request.param == "local":
        return Setting(fakes, dict(fakes))
    address = f"127.0.0.1:{serve(**fakes).port}"
    vnodes: VNodesApi = RemoteVNode(pool, address)
    node: NodeApi = RemoteNode(pool, address)
    membership: OrchestratorApi = RemoteOrchestrator(pool, address)
    runs: RunsApi = RemoteRuns(pool, address)
    return Setting(fakes, {"vnodes": vnodes, "node": node, "orchestrator": membership, "runs": runs})


@pytest.mark.parametrize(("kind", "name", "request_message"), CASES)
def test_each_call_arrives_whole_and_is_answered(
    setting: Setting, soon: Deadline, kind: str, name: str, request_message: Message | Parcel[Any]
) -> None:
    reply = getattr(setting.apis[kind], name)(request_message, soon)
    [(called, seen, deadline)] = setting.fakes[kind].seen
    assert (called, seen) == (name, request_message)
    assert 0 < deadline.left_s() < 31
    assert reply == getattr(type(setting.fakes[kind])(), name)(request_message, soon)


@pytest.mark.parametrize(("kind", "name", "request_message"), CASES)
def test_each_call_raises_what_the_implementation_raises(
    setting: Setting, soon: Deadline, kind: str, name: str, request_message: Message | Parcel[Any]
) -> None:
    setting.fakes[kind].error = Busy("the window is full", retry_after_s=0.25)
    with pytest.raises(Busy, match=r"^the window is full$") as caught:
        getattr(setting.apis[kind], name)(request_message, soon)
    assert caught.value.retry_after_s == 0.25


@pytest.mark.parametrize(
    "error", [StaleFence("generation 2 is over"), SpecError("operators[3].linear", "no such kind"), BadRequest("é\n%")]
)
def test_errors_keep_class_and_words(setting: Setting, soon: Deadline, error: PNodeError) -> None:
    setting.fakes["vnodes"].error = error
    with pytest.raises(PNodeError) as caught:
        setting.apis["vnodes"].describe(vnode_pb2.DescribeRequest(), soon)
    assert type(caught.value) is type(error)
    assert caught.value.message == error.message
    assert getattr(caught.value, "path", None) == getattr(error, "path", None)


def test_a_spent_deadline_calls_nothing_remote(serve: Callable[..., Any], pool: ChannelPool) -> None:
    fake = FakeVNodes()
    remote = RemoteVNode(pool, f"127.0.0.1:{serve(vnodes=fake).port}")
    with pytest.raises(DeadlineExceeded):
        remote.describe(vnode_pb2.DescribeRequest(), Deadline.after(0.0))
    assert fake.seen == []
