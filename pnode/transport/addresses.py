"""Addresses: IPv4 or IPv6 and a port, checked before anything is bound or contacted; whose word is taken for which.

A host is written in one way: IPv6 as RFC 5952 has it, without brackets, and an IPv4 address inside IPv6 as IPv4.

Beyond loopback nothing is contacted or served without TLS: channels.py and server.py see to that.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

from pnode.errors import BadRequest, PermissionDenied

# Nothing but host:port or [host]:port. A gRPC target may also name schemes, resolvers and lists; none of that comes
# from outside.
_ADDRESS = re.compile(r"([A-Za-z0-9.\-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})", re.ASCII)
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


class Address(NamedTuple):
    """Where a peer listens: a host as `parse_host` returns it, and a port from 1 to 65535."""

    host: str
    port: int

    @property
    def target(self) -> str:
        """The gRPC target, with its scheme, so that no name is ever resolved."""
        return f"ipv{_ip(self.host).version}:{self}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine's own, which no other machine can reach."""
        return is_loopback(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class OrchestratorAddress(NamedTuple):
    """Where an orchestrator is joined, and the fingerprint of its authority, by which it is known. Empty: no TLS."""

    address: Address
    fingerprint: str = ""

    def __str__(self) -> str:
        return f"{self.address}#{self.fingerprint}" if self.fingerprint else str(self.address)


def parse_host(host: str) -> str:
    """`host` as an IPv4 or IPv6 address, in its one spelling; IPv6 may stand in brackets.

    Raises BadRequest. Names are not resolved, for whoever answers could be anybody; nor are zones, as in fe80::1%eth0,
    taken: they name an interface of one machine and mean nothing to another.
    """
    if host == "localhost":
        return "127.0.0.1"
    bare = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host
    try:
        found = ipaddress.ip_address(bare)
    except ValueError:
        found = None
    if found is None or "%" in bare or (bare is not host and found.version == 4):
        raise BadRequest(f"{host[:100]!r} is not an IPv4 or IPv6 address")
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def peer_host(peer: str) -> str:
    """The host of a gRPC peer, as ipv4:10.0.0.7:41234 or ipv6:%5B::1%5D:41234. Raises BadRequest for anything else."""
    family, _, rest = peer.partition(":")
    if family not in ("ipv4", "ipv6"):
        raise BadRequest(f"{peer[:100]!r} is not an IPv4 or IPv6 address")
    return parse_host(unquote(rest.rpartition(":")[0]))


def origin(peer: str) -> str:
    """Where a gRPC peer comes from, as far as it cannot choose: of an IPv6 address whoever has one has 2**64."""
    try:
        host = peer_host(peer)
    except BadRequest:
        return peer.rpartition(":")[0]
    return str(ipaddress.IPv6Network((host, 64), strict=False)) if ":" in host else host


@lru_cache(1024)
def is_loopback(host: str) -> bool:
    """Whether a host, as `parse_host` returned it, is this machine's own."""
    return _ip(host).is_loopback


def parse_address(text: str) -> Address:
    """`host:port`, or `[host]:port` for IPv6, as an Address. Raises BadRequest where it is malformed."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise BadRequest(f"{text[:100]!r} is not an address: host:port is expected, or [host]:port for IPv6")
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
    our own services, or the metadata service of a cloud. An address that a gateway turns into IPv4 is judged by that
    one too. Private networks of either family (10/8, fc00::/7 and their like) are whoever's they are.
    """
    for found in _meant(_ip(address.host)):
        # IPv6 counts its own loopback among what is reserved.
        if found.is_unspecified or found.is_multicast or (found.is_reserved and not found.is_loopback):
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


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(host)


def _meant(
    found: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...]:
    """The address, and those inside it that a tunnel (6to4, Teredo) would contact."""
    if isinstance(found, ipaddress.IPv4Address):
        return (found,)
    inside = (found.sixtofour, *(found.teredo or ()))
    return (found, *(each for each in inside if each is not None))
