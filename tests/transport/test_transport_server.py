"""The server: what it refuses, what never waits behind what, and how it ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from transport_fakes import WAIT_S, BlockedVNodes, Calling, FakeNode, FakeOrchestrator, FakeVNodes, fence

from pnode.errors import (
    BadRequest,
    Busy,
    ConfigError,
    DeadlineExceeded,
    Draining,
    PeerUnavailable,
    PNodeError,
    TooLarge,
)
from pnode.transport.addresses import parse_address
from pnode.transport.channels import ChannelPool
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteNode, RemoteOrchestrator, RemoteVNode
from pnode.transport.server import Server, make_server
from pnode.transport.status import from_rpc_error
from pnode.v1 import node_pb2, orchestrator_pb2, vnode_pb2

Serve = Callable[..., Server]


def address_of(server: Server) -> str:
    return f"127.0.0.1:{server.port}"


def method_of(channel: grpc.Channel, path: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(path)


def send_raw(pool: ChannelPool, server: Server, path: str, raw: bytes, timeout: float = WAIT_S) -> bytes:
    """Bytes as a stranger may send them, below all our own code."""
    with pool.lease(parse_address(address_of(server))) as channel:
        try:
            return method_of(channel, path)(raw, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


# Binding


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.org", ""])  # noqa: S104 - to be refused
def test_a_host_beyond_loopback_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="refused until TLS exists"):
        make_server(host=host)


def test_a_port_in_use_is_one_clear_line(serve: Serve) -> None:
    port = serve().port
    with pytest.raises(ConfigError, match=rf"^port {port} is in use$"):
        make_server(port=port)


def test_a_port_in_use_by_a_stranger_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^port {port} is in use$"):
            make_server(port=port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match="between 0 and 65535"):
        make_server(port=port)


def test_a_port_is_free_again_after_stop(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    first = serve(node=FakeNode())
    assert first.stop(1.0)
    second = serve(node=FakeNode(), port=first.port)
    assert RemoteNode(pool, address_of(second)).inspect(node_pb2.InspectRequest(), soon).node_uuid == "a node"


def test_a_server_that_never_started_stops_and_frees_its_port(serve: Serve) -> None:
    idle = make_server()
    assert idle.stop(1.0)
    assert serve(port=idle.port).port == idle.port


# Requests


TRAIN = vnode_pb2.TrainRequest(fence=fence(), step=3, payloads=[bytes(range(256))]).SerializeToString()


@pytest.mark.parametrize("raw", [TRAIN[:-1], TRAIN[:7], b"\xff" * 40, b"\x0a"], ids=["end", "middle", "garbage", "tag"])
def test_a_truncated_request_is_a_bad_request(serve: Serve, pool: ChannelPool, raw: bytes) -> None:
    fake = FakeVNodes()
    with pytest.raises(BadRequest, match=f"{len(raw)} bytes are not a whole TrainRequest: the message is truncated"):
        send_raw(pool, serve(vnodes=fake), "/pnode.v1.VNodes/Train", raw)
    assert fake.seen == []


def test_a_field_of_a_newer_protocol_is_tolerated(serve: Serve, pool: ChannelPool) -> None:
    field_999_of_bytes = b"\xba\x3e\x05hello"
    raw = send_raw(pool, serve(vnodes=FakeVNodes()), "/pnode.v1.VNodes/Apply", b"\x10\x04" + field_999_of_bytes)
    assert vnode_pb2.ApplyReply.FromString(raw).version == 5


def test_an_empty_request_is_a_message_like_any_other(serve: Serve, pool: ChannelPool) -> None:
    assert send_raw(pool, serve(vnodes=FakeVNodes()), "/pnode.v1.VNodes/Apply", b"") == b"\x08\x01"


@pytest.mark.parametrize(
    "path", ["/pnode.v1.VNodes/Train", "/pnode.v1.PNode/Sing", "/", "/x", "/pnode.v1.VNodes/train"]
)
def test_an_unknown_method_is_too_old(serve: Serve, pool: ChannelPool, path: str) -> None:
    with pytest.raises(PeerUnavailable, match="too old"):
        send_raw(pool, serve(node=FakeNode()), path, b"")


def test_a_request_over_the_maximum_is_too_large(serve: Serve, pool: ChannelPool) -> None:
    fake = FakeVNodes()
    server = serve(vnodes=fake, max_message_bytes=1000)
    with pytest.raises(TooLarge, match=r"larger than max \(2000 vs. 1000\)"):
        send_raw(pool, server, "/pnode.v1.VNodes/Train", bytes(2000))
    assert fake.seen == []


class Verbose(FakeNode):
    def inspect(self, request: node_pb2.InspectRequest, deadline: Deadline) -> node_pb2.InspectReply:
        return node_pb2.InspectReply(node_uuid="u" * 2000)


def test_a_reply_over_the_maximum_is_too_large(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    server = serve(node=Verbose(), max_message_bytes=1000)
    with pytest.raises(TooLarge, match="InspectReply of 2003 bytes is over the maximum of 1000"):
        RemoteNode(pool, address_of(server)).inspect(node_pb2.InspectRequest(), soon)


def test_our_own_request_over_the_maximum_is_not_sent(serve: Serve, soon: Deadline) -> None:
    fake = FakeVNodes()
    with ChannelPool(max_message_bytes=1000) as small:
        remote = RemoteVNode(small, address_of(serve(vnodes=fake)))
        with pytest.raises(TooLarge, match="ForwardRequest of 2004 bytes"):
            remote.forward(vnode_pb2.ForwardRequest(payloads=[bytes(2000)]), soon)
    assert fake.seen == []


def test_a_reply_over_our_own_maximum_is_too_large(serve: Serve, soon: Deadline) -> None:
    with ChannelPool(max_message_bytes=1000) as small:
        remote = RemoteNode(small, address_of(serve(node=Verbose())))
        with pytest.raises(TooLarge, match=r"larger than max \(2003 vs. 1000\)"):
            remote.inspect(node_pb2.InspectRequest(), soon)


def test_messages_beyond_four_mebibytes_pass(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    payload = bytes(range(256)) * 4 * 2**12
    reply = RemoteVNode(pool, address_of(serve(vnodes=FakeVNodes()))).forward(
        vnode_pb2.ForwardRequest(payloads=[payload, payload]), soon
    )
    assert list(reply.payloads) == [payload, payload]


def test_an_unexpected_error_is_logged_and_not_told(
    serve: Serve, pool: ChannelPool, soon: Deadline, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeVNodes()
    fake.error = KeyError("a secret path")
    with pytest.raises(PNodeError) as caught:
        RemoteVNode(pool, address_of(serve(vnodes=fake))).describe(vnode_pb2.DescribeRequest(), soon)
    assert type(caught.value) is PNodeError
    assert "secret" not in caught.value.message
    assert "a secret path" in caplog.text


# Deadlines and cancellation


@pytest.mark.parametrize(("timeout", "low", "high"), [(None, 6, 7), (1000.0, 8, 9), (5.0, 3, 5.2)])
def test_every_call_has_a_deadline(
    serve: Serve, pool: ChannelPool, timeout: float | None, low: float, high: float
) -> None:
    fake = FakeVNodes()
    server = serve(vnodes=fake, default_deadline_s=7.0, max_deadline_s=9.0)
    with pool.lease(parse_address(address_of(server))) as channel:
        method_of(channel, "/pnode.v1.VNodes/Describe")(b"", timeout=timeout)
    # gRPC rounds a deadline up, by about a hundredth, where it writes it into a header.
    assert low < fake.seen[0][2].left_s() <= high


def test_a_handler_learns_that_its_caller_has_gone(serve: Serve, pool: ChannelPool) -> None:
    started, noticed = threading.Event(), threading.Event()

    class Patient(FakeVNodes):
        def describe(self, request: vnode_pb2.DescribeRequest, deadline: Deadline) -> vnode_pb2.DescribeReply:
            assert not deadline.cancelled
            started.set()
            while not deadline.cancelled:
                assert deadline.left_s() > 0
                threading.Event().wait(0.01)
            with pytest.raises(DeadlineExceeded, match="no longer waits"):
                deadline.check()
            noticed.set()
            return vnode_pb2.DescribeReply()

    with pool.lease(parse_address(address_of(serve(vnodes=Patient())))) as channel:
        call = method_of(channel, "/pnode.v1.VNodes/Describe").future(b"", timeout=WAIT_S)
        assert started.wait(WAIT_S)
        call.cancel()
        assert noticed.wait(WAIT_S)


# Lanes


def test_load_cannot_silence_control_and_health(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    vnodes = BlockedVNodes()
    server = serve(vnodes=vnodes, node=FakeNode(), orchestrator=FakeOrchestrator(), max_threads=3)
    remote = RemoteVNode(pool, address_of(server))
    calls = [Calling(lambda: remote.forward(vnode_pb2.ForwardRequest(), soon)) for _ in range(3)]
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
    call = Calling(lambda: remote.forward(vnode_pb2.ForwardRequest(), soon))
    try:
        vnodes.wait_inside(1)
        for _ in range(20):
            with pytest.raises(Busy):
                remote.forward(vnode_pb2.ForwardRequest(payloads=[bytes(2**20)]), soon)
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


def health_stub(channel: grpc.Channel) -> Any:
    """The stub of any client; its published types know no methods."""
    return health_pb2_grpc.HealthStub(channel)


def check(pool: ChannelPool, server: Server, name: str) -> int:
    with pool.lease(parse_address(address_of(server))) as channel:
        return int(health_stub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=WAIT_S).status)


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
        with pool.lease(parse_address(address_of(server))) as channel:
            request = health_pb2.HealthCheckRequest(service="later")
            for reply in health_stub(channel).Watch(request, timeout=WAIT_S):
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
    with pool.lease(parse_address(address_of(server))) as channel:
        for _ in range(40):
            watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
            # The server learns of it a moment later; a lane that filled up would refuse the next watch.
            while server._lanes.streams.num_calls > 8:
                threading.Event().wait(0.01)


def test_reflection_names_the_services_and_their_methods(serve: Serve, pool: ChannelPool) -> None:
    server = serve(vnodes=FakeVNodes(), node=FakeNode())
    with pool.lease(parse_address(address_of(server))) as channel:
        known = ProtoReflectionDescriptorDatabase(channel)
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


# The end


def test_stop_waits_for_calls_in_flight_and_refuses_new_ones(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    vnodes = BlockedVNodes()
    server = serve(vnodes=vnodes, node=FakeNode())
    remote = RemoteVNode(pool, address_of(server))
    call = Calling(lambda: remote.forward(vnode_pb2.ForwardRequest(payloads=[bytes(2**20)]), soon))
    vnodes.wait_inside(1)
    stopping = Calling(lambda: server.stop(WAIT_S))
    try:
        while check(pool, server, "") != health_pb2.HealthCheckResponse.NOT_SERVING:
            assert soon.left_s() > 0
        with pytest.raises(Draining, match="stopping"):
            remote.describe(vnode_pb2.DescribeRequest(), soon)
    finally:
        vnodes.release.set()
    assert call.wait().error is None
    assert len(call.result.payloads[0]) == 2**20
    assert stopping.wait().result is True
    with pytest.raises(PeerUnavailable):
        remote.describe(vnode_pb2.DescribeRequest(), soon)


def test_stop_cancels_what_outlives_the_grace(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    started = threading.Event()

    class Long(FakeVNodes):
        def describe(self, request: vnode_pb2.DescribeRequest, deadline: Deadline) -> vnode_pb2.DescribeReply:
            started.set()
            while not deadline.cancelled:
                threading.Event().wait(0.01)
            return vnode_pb2.DescribeReply()

    server = serve(vnodes=Long())
    call = Calling(lambda: RemoteVNode(pool, address_of(server)).describe(vnode_pb2.DescribeRequest(), soon))
    assert started.wait(WAIT_S)
    assert server.stop(0.05) is True
    assert isinstance(call.wait().error, PeerUnavailable)
    assert server.stop(0.05) is True


def test_stop_does_not_wait_for_a_handler_that_heeds_nothing(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    vnodes = BlockedVNodes()
    server = serve(vnodes=vnodes)
    call = Calling(lambda: RemoteVNode(pool, address_of(server)).forward(vnode_pb2.ForwardRequest(), soon))
    try:
        vnodes.wait_inside(1)
        assert server.stop(0.0) is False
        assert isinstance(call.wait().error, PeerUnavailable)
        assert soon.left_s() > 15
    finally:
        vnodes.release.set()
