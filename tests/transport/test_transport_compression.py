"""Compressed payloads: without loss, seen by nobody but the wire, and no larger than their metadata say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from transport_clients import address_of
from transport_fakes import FakeVNodes, fence

from pnode.errors import BadRequest, Busy, PeerUnavailable, TooLarge
from pnode.transport import codec, compression
from pnode.transport.api import ForwardReply, ForwardRequest, TrainReply, TrainRequest
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.digests import request_digest
from pnode.transport.remote import RemoteVNode
from pnode.v1 import tensor_pb2, vnode_pb2
from pnode.v1.tensor_pb2 import COMPRESSION_ZSTD

MOST = 1 << 20
Serve = Callable[..., Any]


def nothing(_: int) -> None:
    """No memory to account for."""


def meta(content: bytes, name: str = "x") -> tensor_pb2.TensorMeta:
    return tensor_pb2.TensorMeta(name=name, dtype=tensor_pb2.DTYPE_U8, shape=[len(content)])


CONTENTS = st.one_of(st.binary(max_size=200), st.integers(0, 5000).map(bytes))


@settings(deadline=None)
@given(st.lists(CONTENTS, max_size=3), st.lists(CONTENTS, max_size=3))
def test_what_was_compressed_comes_back(inputs: list[bytes], targets: list[bytes]) -> None:
    head = vnode_pb2.TrainRequest(fence=fence(), inputs=map(meta, inputs), targets=map(meta, targets))
    given_parcel = Parcel(head, [*inputs, *targets])
    packed = compression.compressed(given_parcel)
    assert given_parcel == Parcel(head, [*inputs, *targets]), "the given one is left alone"
    assert all(len(one) <= len(other) for one, other in zip(packed.payloads, given_parcel.payloads, strict=True))
    arrived = codec.decode(vnode_pb2.TrainRequest, codec.encode(packed, MOST))
    assert compression.plain(arrived, MOST, nothing) == given_parcel
    assert request_digest(compression.plain(arrived, MOST, nothing)) == request_digest(given_parcel)


def claiming(payload: bytes, num: int, how: int = COMPRESSION_ZSTD, dtype: int = tensor_pb2.DTYPE_U8) -> ForwardRequest:
    described = tensor_pb2.TensorMeta(name="x", dtype=dtype, shape=[num], compression=how)  # type: ignore[arg-type]  # any number may come
    return Parcel(vnode_pb2.ForwardRequest(inputs=[described]), [payload])


FRAME = zstandard.ZstdCompressor().compress(bytes(1000))
ENDLESS = tensor_pb2.TensorMeta(name="x", dtype=tensor_pb2.DTYPE_U8, shape=[2] * 10_000, compression=COMPRESSION_ZSTD)
UNSIZED = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000))


@pytest.mark.parametrize(
    ("parcel", "match"),
    [
        (claiming(zstandard.ZstdCompressor().compress(bytes(1 << 28)), 1000), "of 1000 bytes would be 268435456"),
        (claiming(FRAME, 999), "of 999 bytes would be 1000"),
        (claiming(UNSIZED, 1000), "of 1000 bytes would be -1"),
        (claiming(FRAME[:-3], 1000), "no whole zstd frame"),
        (claiming(FRAME + b"x", 1000), "no whole zstd frame"),
        (claiming(b"garbage", 1000), "no whole zstd frame"),
        (claiming(b"", 1000), "no whole zstd frame"),
        (claiming(FRAME, 1000, how=21), "compression 21 is not known"),
        (claiming(FRAME, 1000, dtype=99), "unknown dtype"),
        (claiming(FRAME, -1000), "negative dimension"),
        (Parcel(vnode_pb2.ForwardRequest(inputs=[ENDLESS]), [FRAME]), "or too many"),
        (Parcel(claiming(FRAME, 1000).head, []), "describes 1 tensors and carries 0"),
        (claiming(FRAME, 1 << 40), "over the maximum of 1048576"),
    ],
)
def test_what_is_not_as_it_was_declared_is_refused(parcel: ForwardRequest, match: str) -> None:
    with pytest.raises(BadRequest, match=match):
        compression.plain(parcel, MOST, nothing)


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 100))
def test_any_bytes_are_the_size_they_claim_or_refused(payload: bytes, num: int) -> None:
    try:
        found = compression.plain(claiming(payload, num), MOST, nothing)
    except BadRequest:
        return
    assert [len(each) for each in found.payloads] == [num]


def test_room_is_taken_before_anything_is_decompressed() -> None:
    def refuse(num_bytes: int) -> None:
        raise Busy(f"no room for {num_bytes}")

    with pytest.raises(Busy, match="no room for 1000"):
        compression.plain(claiming(FRAME[:-3], 1000), MOST, refuse)


@pytest.mark.parametrize("max_message_bytes", [1 << 20, 8192])
def test_callers_and_implementations_see_nothing_of_it(serve: Serve, soon: Deadline, max_message_bytes: int) -> None:
    fake = FakeVNodes()
    content = bytes(range(256)) * 100
    noise = bytes(zstandard.ZstdCompressor().compress(bytes(range(256)))) * 40
    request = Parcel(
        vnode_pb2.ForwardRequest(fence=fence(), inputs=[meta(content), meta(noise, "noise")]), [content, noise]
    )
    server = serve(vnodes=fake, max_message_bytes=max_message_bytes)
    with ChannelPool(max_message_bytes=max_message_bytes, compresses=True) as pool:
        assert RemoteVNode(pool, address_of(server)).forward(request, soon) == FakeVNodes().forward(request, soon)
    assert fake.seen[0][1] == request


def test_a_bomb_changes_nothing(serve: Serve, soon: Deadline, pool: ChannelPool) -> None:
    fake = FakeVNodes()
    vnode = RemoteVNode(pool, address_of(serve(vnodes=fake, max_whole_bytes=1 << 20)))
    with pytest.raises(TooLarge):
        vnode.forward(claiming(FRAME, 1 << 30), soon)
    with pytest.raises(BadRequest, match="would be"):
        vnode.forward(claiming(FRAME, 10), soon)
    assert fake.seen == []


class Bombing(FakeVNodes):
    """Answers with a frame that grows, whatever it was asked."""

    def forward(self, request: ForwardRequest, deadline: Deadline) -> ForwardReply:
        return Parcel(vnode_pb2.ForwardReply(outputs=claiming(FRAME, 1000).head.inputs), [FRAME])

    def train(self, request: TrainRequest, deadline: Deadline) -> TrainReply:
        return Parcel(vnode_pb2.TrainReply(input_gradients=claiming(FRAME, 1000).head.inputs), [FRAME])


class Unpacking(FakeVNodes):
    """Answers a Train with a gradient of 1000 bytes, which the wire compresses."""

    def train(self, request: TrainRequest, deadline: Deadline) -> TrainReply:
        return Parcel(vnode_pb2.TrainReply(input_gradients=[meta(bytes(1000))]), [bytes(1000)])


def test_a_compressed_reply_is_read_by_who_compressed(serve: Serve, soon: Deadline, pool: ChannelPool) -> None:
    vnode = RemoteVNode(pool, address_of(serve(vnodes=Bombing())))
    plain = Parcel(vnode_pb2.ForwardRequest(fence=fence(), inputs=[meta(bytes(1000))]), [bytes(1000)])
    head = vnode_pb2.TrainRequest(fence=fence(), inputs=[meta(bytes(1000))], want_input_gradients=True)
    training = Parcel(head, [bytes(1000)])
    with pytest.raises(PeerUnavailable, match="garbage: it is compressed, which was not asked for"):
        vnode.forward(plain, soon)
    with pytest.raises(PeerUnavailable, match="garbage: it is compressed, which was not asked for"):
        vnode.train(training, soon)


@pytest.mark.parametrize(("num", "fits"), [(1000, True), (999, False)])
def test_gradients_take_no_more_room_than_their_inputs(serve: Serve, soon: Deadline, num: int, fits: bool) -> None:
    inputs, targets = bytes(num), bytes(5000)
    head = vnode_pb2.TrainRequest(
        fence=fence(), inputs=[meta(inputs)], targets=[meta(targets, "label")], want_input_gradients=True
    )
    server = serve(vnodes=Unpacking())
    with ChannelPool(compresses=True) as pool:
        vnode = RemoteVNode(pool, address_of(server))
        if fits:
            assert vnode.train(Parcel(head, [inputs, targets]), soon).payloads == [bytes(1000)]
            return
        with pytest.raises(PeerUnavailable, match="1000 bytes of tensors are over the maximum of 999 bytes"):
            vnode.train(Parcel(head, [inputs, targets]), soon)


class Smooth(FakeVNodes):
    """Answers with zeros, and remembers how a Forward came."""

    def forward(self, request: ForwardRequest, deadline: Deadline) -> ForwardReply:
        self.note("forward", request, deadline)
        return Parcel(vnode_pb2.ForwardReply(outputs=[meta(bytes(1 << 17))]), [bytes(1 << 17)])


def test_a_reply_is_compressed_where_the_request_asks_even_if_that_was_not(serve: Serve, soon: Deadline) -> None:
    """Replies of messages of 4 KiB or so, which plain ones of 128 KiB do not fit into."""
    fake, noise = Smooth(), bytes(range(7))
    request = Parcel(vnode_pb2.ForwardRequest(fence=fence(), inputs=[meta(noise)]), [noise])
    server = serve(vnodes=fake, max_message_bytes=4500)
    for compresses, calls in ((True, 1), (False, 2)):
        with ChannelPool(compresses=compresses) as pool:
            assert RemoteVNode(pool, address_of(server)).forward(request, soon).payloads == [bytes(1 << 17)]
        # Without it the reply went in pieces: the call was sent again.
        assert [seen for _, seen, _ in fake.seen] == [request] * calls
        fake.seen.clear()
