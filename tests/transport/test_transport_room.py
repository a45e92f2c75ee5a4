"""Room for more than came first: what a call holds while it waits for it is counted, and all of them get on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import zstandard
from test_transport_intake import until
from transport_clients import address_of
from transport_fakes import WAIT_S, BlockedVNodes, Calling, FakeVNodes

from pnode.errors import Busy, TooLarge
from pnode.transport.api import ForwardRequest
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.intake import COPIES
from pnode.transport.remote import RemoteVNode
from pnode.transport.retry import Backoff, retry
from pnode.transport.server import Server
from pnode.v1 import tensor_pb2, vnode_pb2
from pnode.v1.tensor_pb2 import COMPRESSION_ZSTD

SMALL = 8192
Serve = Callable[..., Server]


def of_size(num_bytes: int) -> ForwardRequest:
    meta = tensor_pb2.TensorMeta(name="x", dtype=tensor_pb2.DTYPE_U8, shape=[num_bytes])
    return Parcel(vnode_pb2.ForwardRequest(inputs=[meta]), [bytes(num_bytes)])


def of_frame(num_bytes: int, padding: int = 0) -> ForwardRequest:
    """So many bytes when decompressed, and `padding` more that were not compressed."""
    metas = [
        tensor_pb2.TensorMeta(name="x", dtype=tensor_pb2.DTYPE_U8, shape=[num_bytes], compression=COMPRESSION_ZSTD),
        tensor_pb2.TensorMeta(name="y", dtype=tensor_pb2.DTYPE_U8, shape=[padding]),
    ]
    frame = zstandard.ZstdCompressor().compress(bytes(num_bytes))
    return Parcel(vnode_pb2.ForwardRequest(inputs=metas, accepts=COMPRESSION_ZSTD), [frame, bytes(padding)])


class Clients:
    """Stubs with a connection each, so that each is a caller of its own."""

    def __init__(self, stack: ExitStack, server: Server) -> None:
        self._stack, self._server = stack, server

    def new(self) -> RemoteVNode:
        pool = self._stack.enter_context(ChannelPool(max_message_bytes=SMALL))
        return RemoteVNode(pool, address_of(self._server))


def held(server: Server) -> int:
    return sum(server.served[0].limits.intake.turns._held.values())


@pytest.mark.parametrize("waits", [of_size(2 * SMALL - 1000), of_frame(18_000, SMALL - 1000)], ids=["whole", "plain"])
def test_what_has_come_is_counted_while_its_call_waits_for_the_rest(serve: Serve, waits: ForwardRequest) -> None:
    vnodes = BlockedVNodes()
    # Room for two messages that are counted twice: 32 KiB.
    server = serve(vnodes=vnodes, max_message_bytes=SMALL, in_flight_bytes=1)
    turns, soon = server.served[0].limits.intake.turns, Deadline.after(WAIT_S)
    with ExitStack() as stack:
        clients = Clients(stack, server)
        inside = Calling(lambda: clients.new().forward(of_size(SMALL - 1000), soon))
        vnodes.wait_inside(1)
        before = held(server)
        waiting = Calling(lambda: clients.new().forward(waits, soon))
        until(lambda: len(turns._growing) == 1)
        assert before == pytest.approx(COPIES * SMALL, abs=2000)
        assert held(server) - before == pytest.approx(COPIES * SMALL, abs=2000)
        vnodes.release.set()
        assert inside.wait().error is None
        assert waiting.wait().error is None
    until(lambda: not held(server))


def test_a_call_that_gets_no_more_gives_back_what_it_held(serve: Serve) -> None:
    vnodes = BlockedVNodes()
    server = serve(vnodes=vnodes, max_message_bytes=SMALL, in_flight_bytes=1, receive_s=0.8)
    with ExitStack() as stack:
        clients, soon = Clients(stack, server), Deadline.after(WAIT_S)
        inside = Calling(lambda: clients.new().forward(of_size(SMALL - 1000), soon))
        vnodes.wait_inside(1)
        before = held(server)
        for request in (of_size(2 * SMALL - 1000), of_frame(28_000)):
            with pytest.raises(Busy, match="no memory for messages is free"):
                clients.new().forward(request, soon)
            until(lambda: held(server) == before)
        vnodes.release.set()
        assert inside.wait().error is None


def test_messages_that_each_need_nearly_all_room_all_get_through(serve: Serve) -> None:
    fake = FakeVNodes()
    server = serve(vnodes=fake, max_message_bytes=SMALL, in_flight_bytes=1)
    with ExitStack() as stack:
        clients = Clients(stack, server)

        def call(remote: RemoteVNode, request: ForwardRequest) -> None:
            deadline = Deadline.after(WAIT_S)
            for _ in range(5):
                retry(lambda: remote.forward(request, deadline), deadline, Backoff(0.01, cap_s=0.1), never.wait)

        never = threading.Event()
        requests = [of_size(2 * SMALL - 500), of_size(2 * SMALL - 500), of_frame(30_000), of_frame(20_000, SMALL // 2)]
        remotes = [clients.new() for _ in requests * 2]
        calls = [
            Calling(lambda remote=remote, request=request: call(remote, request))  # type: ignore[misc]
            for remote, request in zip(remotes, requests * 2, strict=True)
        ]
        assert [each.wait().error for each in calls] == [None] * 8
    assert len(fake.seen) == 40
    until(lambda: not held(server))


def test_what_would_never_fit_is_too_large(serve: Serve, soon: Deadline) -> None:
    fake = FakeVNodes()
    server = serve(vnodes=fake, max_message_bytes=SMALL, in_flight_bytes=1)
    with ExitStack() as stack:
        remote = Clients(stack, server).new()
        with pytest.raises(TooLarge, match="is over the 32768 bytes of all in flight"):
            remote.forward(of_frame(32_768), soon)
        remote.forward(of_frame(32_000), soon)
    assert len(fake.seen) == 1
