"""The end of a server: what runs may end, what comes is refused, nothing waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from grpc_health.v1 import health_pb2
from transport_clients import address_of, check
from transport_fakes import WAIT_S, BlockedVNodes, Calling, FakeNode, FakeVNodes

from pnode.errors import (
    Draining,
    PeerUnavailable,
)
from pnode.transport.channels import ChannelPool
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.remote import RemoteVNode
from pnode.transport.server import Server
from pnode.v1 import vnode_pb2

Serve = Callable[..., Server]


# The end


def test_stop_waits_for_calls_in_flight_and_refuses_new_ones(serve: Serve, pool: ChannelPool, soon: Deadline) -> None:
    vnodes = BlockedVNodes()
    server = serve(vnodes=vnodes, node=FakeNode())
    remote = RemoteVNode(pool, address_of(server))
    call = Calling(lambda: remote.forward(Parcel(vnode_pb2.ForwardRequest(), [bytes(2**20)]), soon))
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
    call = Calling(lambda: RemoteVNode(pool, address_of(server)).forward(Parcel(vnode_pb2.ForwardRequest()), soon))
    try:
        vnodes.wait_inside(1)
        assert server.stop(0.0) is False
        assert isinstance(call.wait().error, PeerUnavailable)
        assert soon.left_s() > 15
    finally:
        vnodes.release.set()
