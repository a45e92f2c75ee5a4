"""Messages in pieces: the same calls, whatever the size, and nothing but the message that was announced."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from transport_clients import address_of
from transport_fakes import WAIT_S, Calling, FakeVNodes, fence

from pnode.errors import BadRequest, Busy, DeadlineExceeded, PeerUnavailable, PNodeError, TooLarge
from pnode.observe.counters import Counters
from pnode.transport import codec, pieces
from pnode.transport.api import ForwardReply, ForwardRequest
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Caller, Deadline
from pnode.transport.digests import request_digest
from pnode.transport.remote import RemoteVNode
from pnode.v1 import tensor_pb2, vnode_pb2

SMALL = 8192
BIG = bytes(range(256)) * 512
Serve = Callable[..., Any]


def nothing(_: int) -> None:
    """No memory to account for."""


@settings(deadline=None)
@given(st.lists(st.binary(max_size=20_000), max_size=6), st.integers(5000, 30_000))
def test_pieces_make_up_what_was_cut(parts: list[bytes], max_message_bytes: int) -> None:
    chunks = list(pieces.split(parts, max_message_bytes))
    assert all(len(chunk) <= max_message_bytes for chunk in chunks)
    assert pieces.joined(chunks, 10**6, nothing) == b"".join(parts)


def chunk(content: bytes, whole: bytes | None = None, **announced: Any) -> bytes:
    head = tensor_pb2.Chunk()
    if whole is not None:
        told = {"num_bytes": len(whole), "xxh3_128": xxhash.xxh3_128_digest(whole), **announced}
        head.whole.CopyFrom(tensor_pb2.Whole(**told))
    return codec.encode(Parcel(head, [content]), 2 * pieces.CHUNK_BYTES)


WHOLE = bytes(range(250)) * 40
FIRST, REST = WHOLE[:5000], WHOLE[5000:]


@pytest.mark.parametrize(
    ("chunks", "match"),
    [
        ([], "does not say what it is a piece of"),
        ([chunk(FIRST), chunk(REST)], "does not say what it is a piece of"),
        ([b"\xff"], "not a whole Chunk"),
        ([chunk(FIRST, WHOLE), b"\xff"], "not a whole Chunk"),
        ([chunk(FIRST, WHOLE)], "5000 of 10000 bytes"),
        ([chunk(FIRST, WHOLE), chunk(REST + b"x")], "more than the 10000 bytes"),
        ([chunk(FIRST, WHOLE), chunk(REST), chunk(b"x")], "more than the 10000 bytes"),
        ([chunk(FIRST, WHOLE), chunk(REST), chunk(b"")], "more than the 10000 bytes"),
        ([chunk(b"", b""), chunk(b"")], "more than the 0 bytes"),
        ([chunk(FIRST, WHOLE), chunk(b""), chunk(REST)], "a piece of 0 bytes"),
        ([chunk(FIRST, WHOLE), chunk(REST[:100]), chunk(REST[100:])], "a piece of 100 bytes"),
        ([chunk(FIRST, WHOLE), chunk(REST[::-1])], "another message than was announced"),
        ([chunk(FIRST, WHOLE, xxh3_128=b""), chunk(REST)], "another message than was announced"),
        ([chunk(FIRST, WHOLE, num_bytes=10_001), chunk(REST)], "10000 of 10001 bytes"),
        ([chunk(FIRST, WHOLE, num_bytes=2**63)], "over the maximum of 20000 bytes"),
        ([chunk(bytes(pieces.CHUNK_BYTES), WHOLE)], "the largest has 1048640"),
        ([chunk(FIRST, WHOLE), chunk(bytes(pieces.CHUNK_BYTES))], "the largest has 1048640"),
    ],
)
def test_anything_but_what_was_announced_is_refused(chunks: list[bytes], match: str) -> None:
    with pytest.raises(BadRequest, match=match):
        pieces.joined(chunks, 20_000, nothing)


def test_room_is_taken_before_the_second_chunk_is_asked_for() -> None:
    def refuse(num_bytes: int) -> None:
        raise Busy(f"no room for {num_bytes}")

    asked = iter([chunk(FIRST, WHOLE), chunk(REST)])
    with pytest.raises(Busy, match="no room for 10000"):
        pieces.joined(asked, 20_000, refuse)
    assert next(asked) == chunk(REST)


# Over the wire


META = tensor_pb2.TensorMeta(name="x", dtype=tensor_pb2.DTYPE_U8, shape=[len(BIG)])
FORWARD = Parcel(vnode_pb2.ForwardRequest(fence=fence(), inputs=[META]), [BIG])
TRAIN = Parcel(
    vnode_pb2.TrainRequest(fence=fence(), step=3, inputs=[META], targets=[META], want_input_gradients=True), [BIG, BIG]
)


@pytest.fixture
def remote(serve: Serve) -> Any:
    """Makes a stub to a server; messages of both are small."""
    pools: list[ChannelPool] = []

    def make(vnodes: FakeVNodes, **options: Any) -> RemoteVNode:
        server = serve(vnodes=vnodes, max_message_bytes=SMALL, **options)
        pools.append(ChannelPool(max_message_bytes=SMALL))
        return RemoteVNode(pools[-1], address_of(server))

    yield make
    for pool in pools:
        pool.close()


def test_large_messages_go_both_ways_and_are_the_same_requests(remote: Any, soon: Deadline) -> None:
    fake = FakeVNodes()
    vnode = remote(fake)
    assert vnode.forward(FORWARD, soon) == FakeVNodes().forward(FORWARD, soon)
    assert vnode.train(TRAIN, soon) == FakeVNodes().train(TRAIN, soon)
    assert [request for _, request, _ in fake.seen] == [FORWARD, TRAIN]
    assert request_digest(fake.seen[1][1]) == request_digest(TRAIN)  # type: ignore[arg-type]  # any fake's request
    assert all(0 < deadline.left_s() < 31 for _, _, deadline in fake.seen)


class Generous(FakeVNodes):
    """Answers more than it was asked."""

    def forward(self, request: ForwardRequest, deadline: Deadline) -> ForwardReply:
        self.note("forward", request, deadline)
        return Parcel(vnode_pb2.ForwardReply(version=1), [BIG])


def test_a_reply_that_is_too_large_comes_in_pieces(remote: Any, soon: Deadline) -> None:
    fake = Generous()
    request = Parcel(vnode_pb2.ForwardRequest(fence=fence()), [])
    assert remote(fake).forward(request, soon).payloads == [BIG]
    assert [seen for _, seen, _ in fake.seen] == [request, request]


@pytest.mark.parametrize("error", [Busy("full", retry_after_s=0.25), TooLarge("too many rows")])
def test_errors_come_as_they_were_raised(remote: Any, soon: Deadline, error: PNodeError) -> None:
    fake = FakeVNodes()
    fake.error = error
    with pytest.raises(type(error), match=f"^{error.message}$") as caught:
        remote(fake).forward(FORWARD, soon)
    assert caught.value.retry_after_s == error.retry_after_s


def test_what_is_over_the_maximum_is_refused_on_both_sides(serve: Serve, remote: Any, soon: Deadline) -> None:
    fake = FakeVNodes()
    with pytest.raises(TooLarge, match="over the maximum of 100000 bytes"):
        remote(fake, max_whole_bytes=100_000).forward(FORWARD, soon)
    with pytest.raises(TooLarge, match="over the maximum"):
        remote(fake, in_flight_bytes=50_000).forward(FORWARD, soon)
    with ChannelPool(max_message_bytes=SMALL, max_whole_bytes=100_000) as pool:
        vnode = RemoteVNode(pool, address_of(serve(vnodes=fake, max_message_bytes=SMALL)))
        with pytest.raises(TooLarge, match=r"a Forward of .* bytes is over the maximum of 100000"):
            vnode.forward(FORWARD, soon)
    assert fake.seen == []
    generous = remote(Generous(), max_whole_bytes=100_000)
    with pytest.raises(TooLarge, match=r"a reply of .* is over the maximum"):
        generous.forward(Parcel(vnode_pb2.ForwardRequest(fence=fence())), soon)


class Patient(FakeVNodes):
    """Waits until nobody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.left = threading.Event(), threading.Event()

    def forward(self, request: ForwardRequest, deadline: Deadline) -> ForwardReply:
        with deadline.caller.telling(self.left.set):
            self.began.set()
            assert self.left.wait(WAIT_S)
        raise DeadlineExceeded("nobody waits")


def test_who_leaves_cancels_the_call_on_the_wire(remote: Any) -> None:
    fake, caller = Patient(), Caller("me")
    vnode = remote(fake)
    call = Calling(lambda: vnode.forward(FORWARD, Deadline.after(WAIT_S, caller=caller)))
    assert fake.began.wait(WAIT_S)
    caller.leave()
    assert fake.left.wait(WAIT_S)
    error = call.wait().error
    assert isinstance(error, DeadlineExceeded)
    assert "no longer waits" in error.message


def test_a_deadline_passes_down(remote: Any) -> None:
    fake = Patient()
    with pytest.raises(DeadlineExceeded):
        remote(fake).forward(FORWARD, Deadline.after(0.5))
    assert fake.left.wait(WAIT_S)


def test_a_peer_that_is_gone_is_unavailable(serve: Serve, soon: Deadline) -> None:
    server = serve(vnodes=FakeVNodes(), max_message_bytes=SMALL)
    with ChannelPool(max_message_bytes=SMALL) as pool:
        vnode = RemoteVNode(pool, address_of(server))
        server.stop(0.0)
        with pytest.raises(PeerUnavailable):
            vnode.forward(FORWARD, soon)


def test_pieces_that_each_come_in_time_end_with_the_deadline_all_the_same(serve: Serve) -> None:
    fake, counters, ended = FakeVNodes(), Counters(), threading.Event()
    server = serve(vnodes=fake, default_deadline_s=0.3, receive_s=WAIT_S, counters=counters)

    def dribble() -> Iterator[bytes]:
        """Four seconds of the least pieces."""
        whole = bytes(4096 * 200)
        yield chunk(whole[:4096], whole)
        for begin in range(4096, len(whole), 4096):
            if ended.wait(0.02):
                return
            yield chunk(whole[begin : begin + 4096])

    with grpc.insecure_channel(address_of(server)) as channel:
        send: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream("/pnode.v1.VNodes/ForwardStream")
        with pytest.raises(grpc.RpcError) as caught:
            list(send(dribble()))
        ended.set()
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert counters.value("refused.forward.DEADLINE_EXCEEDED") == 1
    assert fake.seen == []
