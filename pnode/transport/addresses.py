"""Addresses, checked before anything is bound or contacted: loopback only until TLS exists."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from pnode.errors import BadRequest

# Nothing but host:port. A gRPC target may also name schemes, resolvers and lists; none of that comes from outside.
_ADDRESS = re.compile(r"([A-Za-z0-9.\-]{1,253}):([0-9]{1,5})", re.ASCII)


class Address(NamedTuple):
    """Where a peer listens: an IPv4 loopback address and a port from 1 to 65535."""

    host: str
    port: int

    @property
    def target(self) -> str:
        """The gRPC target, with its scheme, so that no name is ever resolved."""
        return f"ipv4:{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def loopback(host: str) -> str:
    """`host` as an IPv4 loopback address. Raises BadRequest for every other host."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.IPv4Address(host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise BadRequest(f"{host!r} is not a loopback address: refused until TLS exists")
    return str(address)


def parse_address(text: str) -> Address:
    """`host:port` as an Address. Raises BadRequest where it is malformed or not loopback."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise BadRequest(f"{text[:100]!r} is not an address: host:port is expected")
    port = int(match[2])
    if not 1 <= port <= 65535:
        raise BadRequest(f"{text!r} is not an address: a port lies between 1 and 65535")
    return Address(loopback(match[1]), port)
