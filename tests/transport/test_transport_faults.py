"""Peers that are dead, deaf, suspended, strange or back again: each ends in one clear error, in time."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from transport_fakes import WAIT_S, BlockedVNodes, Calling, FakeNode

from pnode.errors import BadRequest, DeadlineExceeded, PeerUnavailable, PermissionDenied, PNodeError
from pnode.transport.channels import ChannelPool, ChannelSettings
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteNode, RemoteVNode
from pnode.transport.retry import Backoff, retry
from pnode.transport.server import Server
from pnode.v1 import node_pb2, vnode_pb2

Serve = Callable[..., Server]
INSPECT = node_pb2.InspectRequest()


@contextmanager
def dead_address() -> Iterator[str]:
    """Where nobody listens, and nobody else can begin to."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def listener(answer: bytes | None) -> Iterator[str]:
    """A socket that accepts and says nothing, or the same bytes to everyone."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            try:
                while True:
                    held.append(server.accept()[0])
                    if answer is not None:
                        held[-1].sendall(answer)
            except OSError:
                return

        thread = threading.Thread(target=accept)
        if answer is not None:
            thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        if answer is not None:
            thread.join(WAIT_S)
        for each in held:
            each.close()


def test_a_dead_peer_fails_fast(pool: ChannelPool, soon: Deadline) -> None:
    began = time.monotonic()
    with dead_address() as address:
        remote = RemoteNode(pool, address)
        for _ in range(3):
            with pytest.raises(PeerUnavailable, match=rf"^Inspect at {address}: UNAVAILABLE"):
                remote.inspect(INSPECT, soon)
    assert time.monotonic() - began < 10


def test_a_deaf_peer_ends_with_the_deadline(pool: ChannelPool) -> None:
    with listener(None) as address:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="did not answer in time"):
            RemoteNode(pool, address).inspect(INSPECT, Deadline.after(0.3))
        assert 0.25 < time.monotonic() - began < 10


def test_a_deaf_peer_is_given_up_before_a_long_deadline(soon: Deadline) -> None:
    settings = ChannelSettings(connect_timeout_s=0.3)
    with listener(None) as address, ChannelPool(settings=settings) as pool:
        began = time.monotonic()
        with pytest.raises(PeerUnavailable):
            RemoteNode(pool, address).inspect(INSPECT, soon)
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b"\x00" * 100])
def test_a_peer_of_another_kind_is_unavailable(pool: ChannelPool, answer: bytes) -> None:
    with listener(answer) as address, pytest.raises((PeerUnavailable, DeadlineExceeded)):
        RemoteNode(pool, address).inspect(INSPECT, Deadline.after(1.0))


def test_a_reply_that_is_garbage_is_a_broken_peer(pool: ChannelPool, soon: Deadline) -> None:
    def liar(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        return b"\xff\xff"

    handlers = grpc.method_handlers_generic_handler(
        "pnode.v1.PNode", {"Inspect": grpc.unary_unary_rpc_method_handler(liar)}
    )
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads, handlers=[handlers])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with pytest.raises(PeerUnavailable, match="answered Inspect with garbage"):
            RemoteNode(pool, f"127.0.0.1:{port}").inspect(INSPECT, soon)
        server.stop(None).wait()


def test_a_peer_that_comes_back_is_found_again(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    first = serve(node=FakeNode())
    remote = RemoteNode(pool, f"127.0.0.1:{first.port}")
    remote.inspect(INSPECT, soon)
    first.stop(0.0)
    with pytest.raises(PNodeError):
        remote.inspect(INSPECT, soon)
    serve(node=FakeNode(), port=first.port)
    backoff = Backoff(0.05, cap_s=0.2)
    reply = retry(lambda: remote.inspect(INSPECT, soon), soon, backoff, threading.Event().wait)
    assert reply.node_uuid == "a node"


CHILD = """
import sys
sys.path[:0] = sys.argv[1:]
from transport_fakes import FakeNode
from pnode.transport.server import make_server
server = make_server(node=FakeNode())
server.start()
print(server.port, flush=True)
sys.stdin.read()
server.stop(0.0)
"""


@contextmanager
def peer() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A real peer in a process of its own."""
    paths = [path for path in sys.path if path]
    command = [sys.executable, "-c", CHILD, *paths]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def test_a_suspended_peer_ends_with_the_deadline_and_answers_when_it_wakes(pool: ChannelPool, soon: Deadline) -> None:
    with peer() as (process, address):
        remote = RemoteNode(pool, address)
        remote.inspect(INSPECT, soon)
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            remote.inspect(INSPECT, Deadline.after(0.3))
        assert time.monotonic() - began < 10
        process.send_signal(signal.SIGCONT)
        assert remote.inspect(INSPECT, soon).node_uuid == "a node"


def test_a_suspended_peer_is_noticed_by_keepalive_long_before_a_long_deadline(soon: Deadline) -> None:
    settings = ChannelSettings(keepalive_s=0.2, keepalive_timeout_s=0.3)
    with peer() as (process, address), ChannelPool(settings=settings) as pool:
        remote = RemoteNode(pool, address)
        remote.inspect(INSPECT, soon)
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(PeerUnavailable):
            remote.inspect(INSPECT, soon)
        assert soon.left_s() > 15


def test_a_killed_peer_is_unavailable_at_once(pool: ChannelPool, soon: Deadline) -> None:
    with peer() as (process, address):
        remote = RemoteNode(pool, address)
        remote.inspect(INSPECT, soon)
        process.kill()
        process.wait(WAIT_S)
        with pytest.raises(PeerUnavailable):
            remote.inspect(INSPECT, soon)
        assert soon.left_s() > 15


def test_keepalive_does_not_end_long_calls(serve: Serve) -> None:
    vnodes = BlockedVNodes()
    server = serve(vnodes=vnodes)
    # A ping every 0.2 s while the call runs: far more often than real channels send them.
    settings = ChannelSettings(keepalive_s=0.2, keepalive_timeout_s=1.0)
    with ChannelPool(settings=settings) as pool:
        remote = RemoteVNode(pool, f"127.0.0.1:{server.port}")
        call = Calling(lambda: remote.forward(Parcel(vnode_pb2.ForwardRequest()), Deadline.after(WAIT_S)))
        vnodes.wait_inside(1)
        # Real time has to pass here: pings are gRPC's own, and know no other clock.
        threading.Event().wait(2.5)
        vnodes.release.set()
        assert call.wait().error is None


# The pool


def test_a_closed_pool_ends_calls_and_takes_no_more(serve: Serve, soon: Deadline) -> None:
    vnodes = BlockedVNodes()
    server = serve(vnodes=vnodes)
    pool = ChannelPool()
    remote = RemoteVNode(pool, f"127.0.0.1:{server.port}")
    call = Calling(lambda: remote.forward(Parcel(vnode_pb2.ForwardRequest()), soon))
    vnodes.wait_inside(1)
    pool.close()
    assert isinstance(call.wait().error, PeerUnavailable)
    vnodes.release.set()
    with pytest.raises(PeerUnavailable, match="closed"):
        remote.forward(Parcel(vnode_pb2.ForwardRequest()), soon)
    pool.close()


def test_idle_channels_beyond_the_maximum_are_closed_oldest_first(serve: Serve, soon: Deadline) -> None:
    addresses = [f"127.0.0.1:{serve(node=FakeNode()).port}" for _ in range(4)]
    with ChannelPool(settings=ChannelSettings(max_channels=2)) as pool:
        for address in [*addresses, *addresses]:
            assert RemoteNode(pool, address).inspect(INSPECT, soon).node_uuid == "a node"
            assert len(pool) <= 2


def test_many_threads_share_one_channel(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    remote = RemoteNode(pool, f"127.0.0.1:{serve(node=FakeNode()).port}")
    calls = [Calling(lambda: [remote.inspect(INSPECT, soon) for _ in range(20)]) for _ in range(8)]
    assert [call.wait().error for call in calls] == [None] * 8
    assert len(pool) == 1


def test_an_address_that_may_not_be_contacted_makes_no_stub(pool: ChannelPool) -> None:
    with pytest.raises(BadRequest, match="is not an IPv4 or IPv6 address"):
        RemoteVNode(pool, "example.org:50051")
    assert len(pool) == 0


def test_nothing_is_sent_beyond_loopback_without_tls(pool: ChannelPool) -> None:
    request = vnode_pb2.DescribeRequest(run="r", vnode="v")
    with pytest.raises(PermissionDenied, match="beyond loopback, and there is no TLS"):
        RemoteVNode(pool, "192.0.2.1:50051").describe(request, Deadline.after(1))
    assert len(pool) == 0
