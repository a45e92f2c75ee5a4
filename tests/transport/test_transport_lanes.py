"""Lanes, health and reflection: what never waits behind what."""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from transport_clients import address_of, check, health_stub, send_raw
from transport_fakes import WAIT_S, BlockedVNodes, Calling, FakeNode, FakeOrchestrator, FakeVNodes

from pnode.errors import (
    BadRequest,
    Busy,
)
from pnode.transport.addresses import parse_address
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteNode, RemoteOrchestrator, RemoteVNode
from pnode.transport.server import Server
from pnode.v1 import node_pb2, orchestrator_pb2, vnode_pb2

Serve = Callable[..., Server]


# Lanes


def test_load_cannot_silence_control_and_health(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    vnodes = BlockedVNodes()
    server = serve(vnodes=vnodes, node=FakeNode(), orchestrator=FakeOrchestrator(), max_threads=3)
    remote = RemoteVNode(pool, address_of(server))
    calls = [Calling(lambda: remote.forward(Parcel(vnode_pb2.ForwardRequest()), soon)) for _ in range(3)]
    try:
        vnodes.wait_inside(3)
        with pytest.raises(Busy, match="3 calls are in the work lane") as caught:
            remote.describe(vnode_pb2.DescribeRequest(), soon)
        assert caught.value.retry_after_s == pytest.approx(0.1)
        assert RemoteNode(pool, address_of(server)).inspect(node_pb2.InspectRequest(), soon).node_uuid == "a node"
        RemoteOrchestrator(pool, address_of(server)).heartbeat(orchestrator_pb2.HeartbeatRequest(), soon)
        assert check(pool, server, "pnode.v1.VNodes") == health_pb2.HealthCheckResponse.SERVING
    finally:
        vnodes.release.set()
    assert [call.wait().error for call in calls] == [None] * 3
    remote.describe(vnode_pb2.DescribeRequest(), soon)


def test_a_refused_call_costs_no_message(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    vnodes = BlockedVNodes()
    server = serve(vnodes=vnodes, max_threads=1)
    remote = RemoteVNode(pool, address_of(server))
    call = Calling(lambda: remote.forward(Parcel(vnode_pb2.ForwardRequest()), soon))
    try:
        vnodes.wait_inside(1)
        for _ in range(20):
            with pytest.raises(Busy):
                remote.forward(Parcel(vnode_pb2.ForwardRequest(), [bytes(2**20)]), soon)
    finally:
        vnodes.release.set()
    assert call.wait().error is None
    assert len(vnodes.seen) == 1


def test_heartbeats_do_not_wait_behind_a_drivers_calls(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    entered, release = threading.Semaphore(0), threading.Event()

    class Slow(FakeOrchestrator):
        def checkpoint(
            self, request: orchestrator_pb2.CheckpointRequest, deadline: Deadline
        ) -> orchestrator_pb2.CheckpointReply:
            entered.release()
            assert release.wait(WAIT_S)
            return super().checkpoint(request, deadline)

    fake = Slow()
    server = serve(orchestrator=fake, runs=fake, control_threads=2)
    path = "/pnode.v1.Runs/Checkpoint"
    calls = [Calling(lambda: send_raw(pool, server, path, b"")) for _ in range(2)]
    try:
        assert all(entered.acquire(timeout=WAIT_S) for _ in calls)
        reply = RemoteOrchestrator(pool, address_of(server)).heartbeat(orchestrator_pb2.HeartbeatRequest(), soon)
        assert reply.directives[0].HasField("reregister")
    finally:
        release.set()
    assert [call.wait().error for call in calls] == [None, None]


# Health and reflection


def test_health_knows_each_service(serve: Serve, pool: ChannelPool) -> None:
    server = serve(vnodes=FakeVNodes(), node=FakeNode())
    serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    for name in ("", "pnode.v1.VNodes", "pnode.v1.PNode"):
        assert check(pool, server, name) == serving
    server.set_health("pnode.v1.VNodes", serving=False)
    server.set_health("orchestrator", serving=False)
    assert check(pool, server, "pnode.v1.VNodes") == not_serving
    assert check(pool, server, "orchestrator") == not_serving
    assert check(pool, server, "pnode.v1.PNode") == serving
    with pytest.raises(grpc.RpcError) as caught:
        check(pool, server, "pnode.v1.Orchestrator")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_refuses_garbage(serve: Serve, pool: ChannelPool) -> None:
    with pytest.raises(BadRequest, match="not a whole HealthCheckRequest"):
        send_raw(pool, serve(), "/grpc.health.v1.Health/Check", b"\xff\xff")


def test_a_watch_tells_each_change_and_ends_with_the_server(serve: Serve, pool: ChannelPool) -> None:
    server = serve(vnodes=FakeVNodes())
    told: list[int] = []
    changes = threading.Condition()

    def watch() -> None:
        with pool.lease(parse_address(address_of(server))) as line:
            request = health_pb2.HealthCheckRequest(service="later")
            for reply in health_stub(line.channel).Watch(request, timeout=WAIT_S):
                with changes:
                    told.append(reply.status)
                    changes.notify_all()

    def wait_told(num: int) -> None:
        with changes:
            assert changes.wait_for(lambda: len(told) >= num, WAIT_S)

    watching = Calling(watch)
    wait_told(1)
    server.set_health("later", serving=True)
    wait_told(2)
    assert server.stop(1.0)
    assert watching.wait().error is None
    response = health_pb2.HealthCheckResponse
    assert told == [response.SERVICE_UNKNOWN, response.SERVING, response.NOT_SERVING]


def test_watchers_that_leave_free_their_threads(serve: Serve, pool: ChannelPool) -> None:
    server = serve()
    with pool.lease(parse_address(address_of(server))) as line:
        for _ in range(40):
            watch = health_stub(line.channel).Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
            # The server learns of it a moment later; a lane that filled up would refuse the next watch.
            while server._lanes.streams.num_calls > 8:
                threading.Event().wait(0.01)


def test_reflection_names_the_services_and_their_methods(serve: Serve, pool: ChannelPool) -> None:
    server = serve(vnodes=FakeVNodes(), node=FakeNode())
    with pool.lease(parse_address(address_of(server))) as line:
        known = ProtoReflectionDescriptorDatabase(line.channel)
        assert set(known.get_services()) == {
            "pnode.v1.VNodes",
            "pnode.v1.PNode",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        found = known.FindFileContainingSymbol("pnode.v1.VNodes")
        assert [method.name for method in found.service[0].method][:2] == ["Forward", "Train"]


def test_reflection_refuses_garbage(serve: Serve, pool: ChannelPool) -> None:
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    with pytest.raises(BadRequest, match="not a whole ServerReflectionRequest"):
        send_raw(pool, serve(), path, b"\xff\xff")
