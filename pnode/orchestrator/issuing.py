"""What the orchestrator gives away: tokens and certificates to members, and to itself for its calls to nodes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace
from typing import Any

from google.protobuf.message import Message

from pnode.errors import PermissionDenied
from pnode.security import tokens
from pnode.security.authority import Authority
from pnode.security.certificates import TlsIdentity
from pnode.security.principals import DRIVER, NODE, ORCHESTRATOR, Principal
from pnode.security.tokens import Claims, Reader
from pnode.transport import methods
from pnode.transport.addresses import Address, parse_address
from pnode.transport.deadline import Deadline
from pnode.transport.passes import Metadata, Place, with_token
from pnode.v1 import orchestrator_pb2, vnode_pb2

# What each kind of caller may ask of a VNode. Only the first VNode's Train is a driver's: the others' are their peers',
# and a Forward passes through its driver.
_FOR_PEERS = ("train",)
_FOR_DRIVERS = ("apply", "describe", "forward")
_FOR_US = ("restore", "snapshot")

_MAX_KEPT = 8192


class Issuer:
    """Makes tokens, each kept and given again for a quarter of its life. Thread-safe.

    Members ask again after another quarter, so half of its life is always left for an outage of the orchestrator.
    """

    def __init__(self, authority: Authority, *, token_s: float, certificate_s: float) -> None:
        self.authority = authority
        self.reader = Reader(authority.signer.public)
        self._token_s = token_s
        self._certificate_s = certificate_s
        self._lock = threading.Lock()
        self._kept: OrderedDict[Claims, tuple[str, float]] = OrderedDict()
        self._own: tuple[TlsIdentity, float] | None = None

    @property
    def renew_s(self) -> float:
        """When members should come again."""
        return min(self._token_s, self._certificate_s) / 4

    def certificate(self, request: bytes, who: Principal) -> bytes:
        """For a member, as PEM. Raises BadRequest."""
        return self.authority.issue(request, who, self._certificate_s)

    def tls_identity(self) -> TlsIdentity:
        """What the orchestrator itself shows to members."""
        with self._lock:
            now = self.authority.now()
            if self._own is None or now >= self._own[1]:
                self._own = (self.authority.own(self._certificate_s), now + self._certificate_s / 2)
            return self._own[0]

    def member_token(self, who: Principal) -> str:
        """For calls to this orchestrator."""
        return self._token(Claims(who, tokens.MEMBER, 0, 0))

    def node_token(self, node_uuid: str) -> str:
        """For our own calls to a node."""
        return self._token(Claims(ORCHESTRATOR, tokens.NODE, 0, 0, node=node_uuid))

    def vnode_token(self, who: Principal, fence: vnode_pb2.Fence, kinds: tuple[str, ...]) -> str:
        """For calls to a VNode in one generation."""
        claims = Claims(
            who, tokens.VNODE, 0, 0, run=fence.run, vnode=fence.vnode, generation=fence.generation, kinds=kinds
        )
        return self._token(claims)

    def for_peer(self, who: Principal | None, location: orchestrator_pb2.Location) -> None:
        """Put a peer's token into a location."""
        if who is not None and location.address:
            location.token = self.vnode_token(who, location.fence, _FOR_PEERS)

    def for_driver(self, who: Principal | None, status: orchestrator_pb2.RunStatus) -> None:
        """Put a driver's tokens into the locations of its run, in model order."""
        if who is None or who.role != DRIVER:
            return
        for index, location in enumerate(status.locations):
            if location.address:
                kinds = _FOR_DRIVERS if index else (*_FOR_DRIVERS, "train")
                location.token = self.vnode_token(who, location.fence, kinds)

    def _token(self, what: Claims) -> str:
        with self._lock:
            now = self.authority.now()
            kept = self._kept.get(what)
            if kept is not None and now < kept[1]:
                return kept[0]
            claims = replace(what, issued_s=int(now), expires_s=int(now + self._token_s) + 1)
            token = self.authority.signer.sign(claims)
            self._kept[what] = (token, now + self._token_s / 4)
            self._kept.move_to_end(what)
            if len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
            return token


class IssuedPasses:
    """Passes of the orchestrator itself: to nodes that have registered, by tokens of its own."""

    def __init__(self, issuer: Issuer, *, tls: bool) -> None:
        self._issuer = issuer
        self._tls = tls
        self._lock = threading.Lock()
        self._nodes: OrderedDict[Address, str] = OrderedDict()

    def expect(self, address: str, node_uuid: str) -> None:
        """A node has registered this address; calls there are meant for it and for nobody else."""
        with self._lock:
            self._nodes[parse_address(address)] = node_uuid
            self._nodes.move_to_end(parse_address(address))
            if len(self._nodes) > _MAX_KEPT:
                self._nodes.popitem(last=False)

    def metadata(self, service: str, address: Address, request: Message, deadline: Deadline) -> Metadata:
        del deadline
        if service == methods.PNODE.full_name:
            return with_token(self._issuer.node_token(self._node_at(address)))
        fenced: Any = request
        return with_token(self._issuer.vnode_token(ORCHESTRATOR, fenced.fence, _FOR_US))

    def place(self, address: Address) -> Place:
        node = self._node_at(address)
        tls = self._issuer.tls_identity() if self._tls else None
        return Place(address, tls, Principal(NODE, node).dns if self._tls else "")

    def _node_at(self, address: Address) -> str:
        with self._lock:
            node = self._nodes.get(address)
        if node is None:
            raise PermissionDenied(f"no node has registered {address}")
        return node

    def learn(self, service: str, reply: Message) -> None:
        del service, reply

    def renounce(self, service: str) -> bool:
        del service
        return False
