"""What calls carry and where they may go: each process has its passes, and its channels know nothing but them."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from google.protobuf.message import Message

from pnode.errors import PermissionDenied
from pnode.security.certificates import TlsIdentity
from pnode.transport.addresses import Address
from pnode.transport.deadline import Deadline
from pnode.transport.protocol import HEADER, HEADER_VALUE

Metadata = tuple[tuple[str, str | bytes], ...]

AUTHORIZATION = "authorization"
_SCHEME = "Bearer "


class Place(NamedTuple):
    """Where a connection goes: the address, what is shown there, and the name that its certificate must have."""

    address: Address
    tls: TlsIdentity | None = None
    name: str = ""


class Passes(Protocol):
    """What a process may call, and by what right. `service` is the full name of a gRPC service."""

    def metadata(self, service: str, address: Address, request: Message, deadline: Deadline, /) -> Metadata:
        """What a call to an address carries. May ask the orchestrator for it first."""

    def place(self, address: Address, /) -> Place:
        """Where calls to an address go. Raises PermissionDenied where they may not go at all."""

    def learn(self, service: str, reply: Message, /) -> None:
        """Remember what the orchestrator said. Raises PermissionDenied for an address that it cannot mean."""

    def renounce(self, service: str, /) -> bool:
        """The callee did not accept what the call carried; whether another try would carry something else."""


class OpenPasses:
    """For a process that knows no network: no token, and only this machine's own addresses."""

    def metadata(self, service: str, address: Address, request: Message, deadline: Deadline) -> Metadata:
        del service, address, request, deadline
        return with_token("")

    def place(self, address: Address) -> Place:
        return Place(address)

    def learn(self, service: str, reply: Message) -> None:
        del service, reply

    def renounce(self, service: str) -> bool:
        del service
        return False


def check_private(place: Place) -> Place:
    """The place again. Raises PermissionDenied for plaintext that would leave the machine."""
    if place.tls is None and not place.address.is_loopback:
        raise PermissionDenied(f"{place.address} is beyond loopback, and there is no TLS to call it by")
    return place


def with_token(token: str) -> Metadata:
    """The headers of a call: the versions that we speak, and the token where there is one."""
    version = (HEADER, HEADER_VALUE)
    return (version, (AUTHORIZATION, _SCHEME + token)) if token else (version,)


def token_in(metadata: Metadata) -> str:
    """The token of a call; empty where it has none, or two, which would be one too many to choose from."""
    found = [value for key, value in metadata if key == AUTHORIZATION and isinstance(value, str)]
    return found[0].removeprefix(_SCHEME) if len(found) == 1 and found[0].startswith(_SCHEME) else ""
