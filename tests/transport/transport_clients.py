"""Clients as strangers write them: below the stubs, with what gRPC itself offers."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from transport_fakes import WAIT_S

from pnode.transport.addresses import parse_address
from pnode.transport.channels import ChannelPool
from pnode.transport.server import Server
from pnode.transport.status import from_rpc_error


def address_of(server: Server) -> str:
    return f"127.0.0.1:{server.port}"


def method_of(channel: grpc.Channel, path: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(path)


def send_raw(pool: ChannelPool, server: Server, path: str, raw: bytes, timeout: float = WAIT_S) -> bytes:
    """Bytes as a stranger may send them, below all our own code."""
    with pool.lease(parse_address(address_of(server))) as line:
        try:
            return method_of(line.channel, path)(raw, timeout=timeout)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error


def health_stub(channel: grpc.Channel) -> Any:
    """The stub of any client; its published types know no methods."""
    return health_pb2_grpc.HealthStub(channel)


def check(pool: ChannelPool, server: Server, name: str) -> int:
    with pool.lease(parse_address(address_of(server))) as line:
        return int(health_stub(line.channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=WAIT_S).status)
