"""Guards: who may make which call. Asked before a message is received, and again when it has been read.

A refusal says what is wrong and changes nothing. `Unauthenticated`: nobody knows who calls. `PermissionDenied`: it is
known, and this is not for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import grpc

from pnode.errors import PermissionDenied, StaleFence, Unauthenticated
from pnode.security import tokens
from pnode.security.principals import AUTHORITY, DRIVER, NODE, Principal
from pnode.security.tokens import Claims, Reader
from pnode.transport import protocol
from pnode.transport.addresses import check_own, parse_address, peer_host
from pnode.transport.credentials import peer_principal
from pnode.transport.methods import DOOR, ORCHESTRATOR, PNODE, RUNS, VNODES, Method
from pnode.transport.passes import Metadata, token_in


class Guard(Protocol):
    """What a server asks before it lets a call in. Each raises PNodeError for a refusal."""

    def enter(self, method: Method, metadata: Metadata, /) -> None:
        """By its headers alone, before it is given a thread."""

    def identify(self, method: Method, context: grpc.ServicerContext, /) -> Claims | None:
        """By its connection too, before its message is received. None: nobody in particular, who may all the same."""

    def admit(
        self, method: Method, claims: Claims | None, request: Any, context: grpc.ServicerContext, /
    ) -> Principal | None:
        """By all that is known; returns who calls."""


class OpenGuard:
    """Everybody may do everything: for servers that only their own process and its children know."""

    def enter(self, method: Method, metadata: Metadata) -> None:
        _check_version(metadata)

    def identify(self, method: Method, context: grpc.ServicerContext) -> Claims | None:
        del method, context
        return None

    def admit(
        self, method: Method, claims: Claims | None, request: Any, context: grpc.ServicerContext
    ) -> Principal | None:
        del method, claims, request, context
        return None


class TokenGuard:
    """Every call needs a token of the network, and over TLS the certificate of the token's holder.

    reader: reads tokens, once the network's key is known. now: the orchestrator's time. tls: whether callers have
    certificates.
    """

    def __init__(self, reader: Callable[[], Reader | None], now: Callable[[], float | None], *, tls: bool) -> None:
        self._reader = reader
        self._now = now
        self._tls = tls

    def enter(self, method: Method, metadata: Metadata) -> None:
        _check_version(metadata)
        if method.service != DOOR.full_name:
            self._check_kind(method, self._claims(method, metadata))

    def identify(self, method: Method, context: grpc.ServicerContext) -> Claims | None:
        if method.service == DOOR.full_name:
            return None
        claims = self._claims(method, context.invocation_metadata())
        if self._tls and peer_principal(context) != claims.holder:
            raise PermissionDenied("the token belongs to another caller than the connection's certificate")
        return claims

    def admit(
        self, method: Method, claims: Claims | None, request: Any, context: grpc.ServicerContext
    ) -> Principal | None:
        if claims is None:
            return None
        self._check_kind(method, claims)
        self._check_request(method, claims, request, context)
        return claims.holder

    def _claims(self, method: Method, metadata: Metadata) -> Claims:
        token = token_in(metadata)
        if not token:
            raise Unauthenticated(f"{method.name} needs a token of the orchestrator; the call brought none")
        reader, now = self._reader(), self._now()
        if reader is None or now is None:
            raise Unauthenticated("this node has not joined its network yet, and knows nobody")
        claims = reader.read(token)
        claims.check_time(now)
        if claims.audience != _AUDIENCES[method.service]:
            raise PermissionDenied(f"the token is for calls to a {claims.audience}; {method.name} is none")
        return claims

    def _check_kind(self, method: Method, claims: Claims) -> None:
        """Whether the token allows this method at all. Raises PermissionDenied."""
        raise NotImplementedError

    def _check_request(self, method: Method, claims: Claims, request: Any, context: grpc.ServicerContext) -> None:
        """Whether the token is for just this request. Raises PNodeError."""
        raise NotImplementedError


class NodeGuard(TokenGuard):
    """A PNode's. `generation` is where a VNode stands here, or None."""

    def __init__(
        self,
        reader: Callable[[], Reader | None],
        now: Callable[[], float | None],
        *,
        tls: bool,
        uuid: str,
        generation: Callable[[str, str], int | None],
    ) -> None:
        super().__init__(reader, now, tls=tls)
        self._uuid = uuid
        self._generation = generation

    def _check_kind(self, method: Method, claims: Claims) -> None:
        if claims.audience == tokens.VNODE and method.attribute not in claims.kinds:
            raise PermissionDenied(f"the token allows {', '.join(claims.kinds)}, and not {method.attribute}")
        if claims.audience == tokens.NODE and claims.holder.role != AUTHORITY:
            raise PermissionDenied(f"{method.name} is for the orchestrator alone")

    def _check_request(self, method: Method, claims: Claims, request: Any, context: grpc.ServicerContext) -> None:
        if claims.audience == tokens.NODE:
            if claims.node != self._uuid:
                raise PermissionDenied(f"the token is for node {claims.node}, not for this one")
        elif hasattr(request, "fence"):
            claims.check_vnode(request.fence.run, request.fence.vnode)
            claims.check_generation(request.fence.generation)
        else:
            claims.check_vnode(request.run, request.vnode)
            self._check_current(claims)

    def _check_current(self, claims: Claims) -> None:
        ours = self._generation(claims.run, claims.vnode)
        if ours is not None and claims.generation < ours:
            raise StaleFence(f"the token is for generation {claims.generation}; the run is at {ours} by now")


class OrchestratorGuard(TokenGuard):
    """An orchestrator's: nodes and drivers each may do their own, and speak only for themselves.

    any_address: let nodes register addresses that are not their own.
    """

    def __init__(
        self,
        reader: Callable[[], Reader | None],
        now: Callable[[], float | None],
        *,
        tls: bool,
        any_address: bool = False,
    ) -> None:
        super().__init__(reader, now, tls=tls)
        self._any_address = any_address

    def _check_kind(self, method: Method, claims: Claims) -> None:
        allowed = (DRIVER,) if method.service == RUNS.full_name else _CALLERS.get(method.attribute, (NODE,))
        if claims.holder.role not in allowed:
            raise PermissionDenied(f"{method.name} is not for a {claims.holder.role}")

    def _check_request(self, method: Method, claims: Claims, request: Any, context: grpc.ServicerContext) -> None:
        named = getattr(request, _NAMES[method.attribute]) if method.attribute in _NAMES else claims.holder.uuid
        expected = "" if claims.holder.role == DRIVER and method.attribute in _NAMES else claims.holder.uuid
        if named != expected:
            raise PermissionDenied(f"{claims.holder} speaks for {str(named)[:60]!r}")
        if method.attribute == "register" and not self._any_address:
            check_own(parse_address(request.address), peer_host(context.peer()))


_AUDIENCES = {
    VNODES.full_name: tokens.VNODE,
    PNODE.full_name: tokens.NODE,
    ORCHESTRATOR.full_name: tokens.MEMBER,
    RUNS.full_name: tokens.MEMBER,
}
# Methods of the orchestrator that not only nodes may call, and where a request names its sender.
_CALLERS = {"report_failure": (NODE, DRIVER)}
_NAMES = {
    "register": "node_uuid",
    "heartbeat": "node_uuid",
    "unregister": "node_uuid",
    "report_failure": "reporter_uuid",
}


def _check_version(metadata: Metadata) -> None:
    for key, value in metadata:
        if key == protocol.HEADER:
            protocol.check_header(str(value))
