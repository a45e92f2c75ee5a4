"""Callers as attackers would write them: they show, say and claim whatever they were told to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from pnode.security.authority import Authority
from pnode.security.certificates import TlsIdentity, new_key
from pnode.security.principals import Principal
from pnode.transport.addresses import Address, parse_address
from pnode.transport.channels import ChannelPool
from pnode.transport.deadline import Deadline
from pnode.transport.passes import Metadata, OpenPasses, Place, with_token


class Bearing(OpenPasses):
    """Passes that bring one token everywhere, show one certificate, and expect one name."""

    def __init__(self, token: str = "", tls: TlsIdentity | None = None, name: str = "") -> None:
        self._token = token
        self._tls = tls
        self._name = name

    def metadata(self, service: str, address: Address, request: object, deadline: Deadline) -> Metadata:
        del service, address, request, deadline
        return with_token(self._token)

    def place(self, address: Address) -> Place:
        return Place(address, self._tls, self._name)


@contextmanager
def bearing(token: str = "", tls: TlsIdentity | None = None, name: str = "") -> Iterator[ChannelPool]:
    """Channels with such passes."""
    with ChannelPool(passes=Bearing(token, tls, name)) as pool:
        yield pool


def certified(authority: Authority, who: Principal, life_s: float = 3600.0, believed: bytes = b"") -> TlsIdentity:
    """A certificate of any authority's, for anybody; believing another authority where one is given."""
    key = new_key()
    return TlsIdentity(key.key, authority.issue(key.request, who, life_s), believed or authority.pem)


def status_of(pool: ChannelPool, address: str, path: str, metadata: Metadata) -> tuple[grpc.StatusCode, str]:
    """What any gRPC client would be told by an empty message."""
    with pool.lease(parse_address(address)) as line:
        send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = line.channel.unary_unary(path)
        call: Any = send.future(b"", timeout=30.0, metadata=metadata)
        return call.code(), call.details() or ""
