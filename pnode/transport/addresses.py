"""Addresses: IPv4 and a port, checked before anything is bound or contacted; and whose word is taken for which.

Beyond loopback nothing is contacted or served without TLS: channels.py and server.py see to that.
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from pnode.errors import BadRequest, PermissionDenied

# Nothing but host:port. A gRPC target may also name schemes, resolvers and lists; none of that comes from outside.
_ADDRESS = re.compile(r"([A-Za-z0-9.\-]{1,253}):([0-9]{1,5})", re.ASCII)
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


class Address(NamedTuple):
    """Where a peer listens: an IPv4 address and a port from 1 to 65535."""

    host: str
    port: int

    @property
    def target(self) -> str:
        """The gRPC target, with its scheme, so that no name is ever resolved."""
        return f"ipv4:{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine's own, which no other machine can reach."""
        return ipaddress.IPv4Address(self.host).is_loopback

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class OrchestratorAddress(NamedTuple):
    """Where an orchestrator is joined, and the fingerprint of its authority, by which it is known. Empty: no TLS."""

    address: Address
    fingerprint: str = ""

    def __str__(self) -> str:
        return f"{self.address}#{self.fingerprint}" if self.fingerprint else str(self.address)


def parse_host(host: str) -> str:
    """`host` as an IPv4 address. Raises BadRequest: names are not resolved, for whoever answers could be anybody."""
    if host == "localhost":
        return "127.0.0.1"
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        raise BadRequest(f"{host!r} is not an IPv4 address") from None


def is_loopback(host: str) -> bool:
    """Whether a host, as `parse_host` returned it, is this machine's own."""
    return ipaddress.IPv4Address(host).is_loopback


def parse_address(text: str) -> Address:
    """`host:port` as an Address. Raises BadRequest where it is malformed."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise BadRequest(f"{text[:100]!r} is not an address: host:port is expected")
    port = int(match[2])
    if not 1 <= port <= 65535:
        raise BadRequest(f"{text!r} is not an address: a port lies between 1 and 65535")
    return Address(parse_host(match[1]), port)


def parse_orchestrator(text: str) -> OrchestratorAddress:
    """`host:port` or `host:port#sha256:...`, as an orchestrator prints it. Raises BadRequest."""
    address, mark, fingerprint = text.partition("#")
    if mark and _FINGERPRINT.fullmatch(fingerprint) is None:
        raise BadRequest(f"{fingerprint[:80]!r} is not a fingerprint: sha256: and 64 hexadecimal digits are expected")
    return OrchestratorAddress(parse_address(address), fingerprint)


def check_reachable(address: Address, source_host: str) -> None:
    """Judge an address by who named it. Raises PermissionDenied for one that the source cannot have meant for us.

    Loopback and link-local addresses are each machine's own: what another machine names so would make us contact
    our own services, or the metadata service of a cloud.
    """
    found = ipaddress.IPv4Address(address.host)
    if found.is_unspecified or found.is_multicast or found.is_reserved:
        raise PermissionDenied(f"{address} is no address of a peer")
    if (found.is_loopback or found.is_link_local) and not is_loopback(source_host):
        kind = "loopback" if found.is_loopback else "link-local"
        raise PermissionDenied(f"{address} is a {kind} address, and came from another machine: {source_host}")


def check_own(address: Address, source_host: str) -> None:
    """For a caller that names its own address. Raises PermissionDenied for an address that is not the caller's.

    Callers on this machine may name any: this machine has many addresses, and they are its own.
    """
    check_reachable(address, source_host)
    if not is_loopback(source_host) and address.host != source_host:
        raise PermissionDenied(f"{address} is not the caller's own address: it calls from {source_host}")
