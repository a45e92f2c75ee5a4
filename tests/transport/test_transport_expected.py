"""Replies are no larger than what was asked for: a peer that sends more is one that answers with garbage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transport_clients import address_of
from transport_fakes import FakeVNodes, fence

from pnode.errors import PeerUnavailable, TooLarge
from pnode.transport import remote
from pnode.transport.api import ForwardReply, ForwardRequest, TrainReply, TrainRequest
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteVNode
from pnode.v1 import tensor_pb2, vnode_pb2

Serve = Callable[..., Any]
ASKED = 5000
# Replies come whole, or in pieces.
WAYS = pytest.mark.parametrize("max_message_bytes", [1 << 20, 4500], ids=["whole", "in pieces"])


def meta(num: int) -> tensor_pb2.TensorMeta:
    return tensor_pb2.TensorMeta(name="x", dtype=tensor_pb2.DTYPE_U8, shape=[num])


class Generous(FakeVNodes):
    """Answers with so many bytes, whatever was asked."""

    def __init__(self, num: int) -> None:
        super().__init__()
        self._num = num

    def forward(self, request: ForwardRequest, deadline: Deadline) -> ForwardReply:
        self.note("forward", request, deadline)
        return Parcel(vnode_pb2.ForwardReply(outputs=[meta(self._num)]), [bytes(self._num)])

    def train(self, request: TrainRequest, deadline: Deadline) -> TrainReply:
        self.note("train", request, deadline)
        return Parcel(vnode_pb2.TrainReply(input_gradients=[meta(self._num)]), [bytes(self._num)])


def forward(max_output_bytes: int) -> ForwardRequest:
    return Parcel(vnode_pb2.ForwardRequest(fence=fence(), max_output_bytes=max_output_bytes))


def train(num: int, *, wants: bool = True) -> TrainRequest:
    """With targets, of which there are no gradients."""
    head = vnode_pb2.TrainRequest(inputs=[meta(num)], targets=[meta(9000)], want_input_gradients=wants)
    return Parcel(head, [bytes(num), bytes(9000)])


@WAYS
def test_what_was_asked_for_comes(serve: Serve, soon: Deadline, max_message_bytes: int) -> None:
    server = serve(vnodes=Generous(ASKED), max_message_bytes=max_message_bytes)
    with ChannelPool(max_message_bytes=max_message_bytes) as pool:
        vnode = RemoteVNode(pool, address_of(server))
        for request in (forward(ASKED), forward(0)):
            assert vnode.forward(request, soon).payloads == [bytes(ASKED)]
        assert vnode.train(train(ASKED), soon).payloads == [bytes(ASKED)]


@WAYS
def test_more_is_garbage(serve: Serve, soon: Deadline, max_message_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Or what is announced would have to be a megabyte too large before anybody asks for none of it.
    monkeypatch.setattr(remote, "_HEAD_BYTES", 100)
    server = serve(vnodes=Generous(ASKED + 101), max_message_bytes=max_message_bytes)
    with ChannelPool(max_message_bytes=max_message_bytes) as pool:
        vnode = RemoteVNode(pool, address_of(server))
        for call in (
            lambda: vnode.forward(forward(ASKED), soon),
            lambda: vnode.train(train(ASKED), soon),
            lambda: vnode.train(train(ASKED + 101, wants=False), soon),
        ):
            with pytest.raises(PeerUnavailable, match=r"garbage: (its tensors have more|a message of .* is over)"):
                call()


def test_what_nobody_expected_is_bounded_by_the_configuration(serve: Serve, soon: Deadline) -> None:
    server = serve(vnodes=Generous(200_000), max_message_bytes=8192)
    with ChannelPool(max_message_bytes=8192, max_whole_bytes=100_000) as pool:
        vnode = RemoteVNode(pool, address_of(server))
        with pytest.raises(TooLarge, match="over the maximum of 100000"):
            vnode.forward(forward(0), soon)
        with pytest.raises(TooLarge, match="over the maximum of 100000"):
            vnode.forward(forward(10**6), soon)
