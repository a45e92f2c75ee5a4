"""The server: what it binds, what it refuses, and the deadline of every call."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from transport_clients import address_of, method_of, send_raw
from transport_fakes import WAIT_S, Calling, FakeNode, FakeVNodes, fence

from pnode.errors import (
    BadRequest,
    ConfigError,
    DeadlineExceeded,
    PeerUnavailable,
    PNodeError,
    TooLarge,
)
from pnode.security.authority import Authority
from pnode.security.principals import DRIVER, Principal
from pnode.transport.addresses import parse_address
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.credentials import ServerTls
from pnode.transport.deadline import Caller, Deadline
from pnode.transport.guards import OpenGuard
from pnode.transport.methods import Method
from pnode.transport.remote import RemoteNode, RemoteVNode
from pnode.transport.server import Server, make_server
from pnode.v1 import node_pb2, vnode_pb2

Serve = Callable[..., Server]


# Binding


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "fd00::2"])  # noqa: S104 - to be refused
def test_a_host_beyond_loopback_is_refused_without_tls(host: str) -> None:
    with pytest.raises(ConfigError, match="beyond loopback: refused without TLS"):
        make_server(host=host)


@pytest.mark.parametrize("host", ["1::2::3", "example.org", ""])
def test_a_host_that_is_no_address_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="is not an IPv4 or IPv6 address"):
        make_server(host=host)


def test_tls_without_a_guard_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a guard"):
        make_server(tls=ServerTls(lambda: Authority.fresh().door))


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


@pytest.mark.parametrize("max_message_bytes", [0, -1, 2**31])
def test_a_message_size_that_protobuf_cannot_hold_is_refused(max_message_bytes: int) -> None:
    with pytest.raises(ConfigError, match="does not lie between 1 and 2147483647"):
        make_server(max_message_bytes=max_message_bytes)
    with pytest.raises(ConfigError, match="does not lie between 1 and 2147483647"):
        ChannelPool(max_message_bytes=max_message_bytes)


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
    with ChannelPool(max_message_bytes=1000, max_whole_bytes=1000) as small:
        remote = RemoteVNode(small, address_of(serve(vnodes=fake)))
        with pytest.raises(TooLarge, match="a Forward of 2004 bytes"):
            remote.forward(Parcel(vnode_pb2.ForwardRequest(), [bytes(2000)]), soon)
    assert fake.seen == []


def test_a_reply_over_our_own_maximum_is_too_large(serve: Serve, soon: Deadline) -> None:
    with ChannelPool(max_message_bytes=1000) as small:
        remote = RemoteNode(small, address_of(serve(node=Verbose())))
        with pytest.raises(TooLarge, match=r"larger than max \(2003 vs. 1000\)"):
            remote.inspect(node_pb2.InspectRequest(), soon)


def test_messages_beyond_four_mebibytes_pass(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    payload = bytes(range(256)) * 4 * 2**12
    reply = RemoteVNode(pool, address_of(serve(vnodes=FakeVNodes()))).forward(
        Parcel(vnode_pb2.ForwardRequest(), [payload, payload]), soon
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
    with pool.lease(parse_address(address_of(server))) as line:
        method_of(line.channel, "/pnode.v1.VNodes/Describe")(b"", timeout=timeout)
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

    with pool.lease(parse_address(address_of(serve(vnodes=Patient())))) as line:
        call = method_of(line.channel, "/pnode.v1.VNodes/Describe").future(b"", timeout=WAIT_S)
        assert started.wait(WAIT_S)
        call.cancel()
        assert noticed.wait(WAIT_S)


def test_a_caller_that_leaves_cancels_what_was_called_for_it(serve: Serve, pool: ChannelPool) -> None:
    started, noticed = threading.Event(), threading.Event()
    caller = Caller("whoever asked us")

    class Patient(FakeVNodes):
        def describe(self, request: vnode_pb2.DescribeRequest, deadline: Deadline) -> vnode_pb2.DescribeReply:
            with deadline.caller.telling(noticed.set):
                started.set()
                assert noticed.wait(WAIT_S)
            return vnode_pb2.DescribeReply()

    remote = RemoteVNode(pool, address_of(serve(vnodes=Patient())))
    asked = Deadline.after(WAIT_S, caller=caller)
    call = Calling(lambda: remote.describe(vnode_pb2.DescribeRequest(), asked))
    assert started.wait(WAIT_S)
    caller.leave()
    error = call.wait().error
    assert isinstance(error, DeadlineExceeded)
    assert error.message == "the caller no longer waits for the answer"
    assert noticed.wait(WAIT_S), "the callee heard of it on the wire"


def test_calls_of_one_connection_are_one_callers(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    fake = FakeVNodes()
    server = serve(vnodes=fake)
    with ChannelPool() as other:
        for channels in (pool, pool, other):
            RemoteVNode(channels, address_of(server)).describe(vnode_pb2.DescribeRequest(), soon)
    names = [deadline.caller.name for _, _, deadline in fake.seen]
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("ipv4:127.0.0.1:")


def test_connections_of_one_identity_are_one_callers(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    class Known(OpenGuard):
        def identify(self, method: Method, context: grpc.ServicerContext) -> Any:
            return SimpleNamespace(holder=Principal(DRIVER, "a uuid"))

    fake = FakeVNodes()
    server = serve(vnodes=fake, guard=Known())
    with ChannelPool() as other:
        for channels in (pool, other):
            RemoteVNode(channels, address_of(server)).describe(vnode_pb2.DescribeRequest(), soon)
    assert {deadline.caller.name for _, _, deadline in fake.seen} == {"driver a uuid"}
