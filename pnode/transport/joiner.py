"""A member's passes: it joins by its key, renews before its time is over, and knows what the orchestrator gave it.

All of this happens where a call needs it, so whoever calls knows nothing of it. What a join gave is replaced as one.
"""

from __future__ import annotations

import hashlib
import logging
import math
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import Message

from pnode.errors import Busy, DeadlineExceeded, PeerUnavailable, PermissionDenied, Unavailable
from pnode.security import certificates
from pnode.security.authority import Authority
from pnode.security.certificates import NewKey, TlsIdentity
from pnode.security.clock import NetworkClock
from pnode.security.identity import Identity
from pnode.security.joining import statement
from pnode.security.principals import DRIVER, NODE, ORCHESTRATOR, Principal
from pnode.security.tokens import Reader
from pnode.transport import methods, protocol
from pnode.transport.addresses import (
    Address,
    OrchestratorAddress,
    check_reachable,
    parse_address,
    parse_orchestrator,
)
from pnode.transport.channels import ChannelPool
from pnode.transport.deadline import Deadline
from pnode.transport.grants import Grants, Key
from pnode.transport.passes import Metadata, OpenPasses, Place, with_token
from pnode.transport.remote import RemoteDoor
from pnode.v1 import orchestrator_pb2

log = logging.getLogger(__name__)

_MEMBERS_ONLY = frozenset({methods.ORCHESTRATOR.full_name, methods.RUNS.full_name})
_MAX_NAMES = 4096
# Nobody ever believes it, so its life does not matter.
_NOBODY_S = 3600.0
# A clock that is off by more deserves a word; tokens do not mind it.
_CLOCK_OFF_S = 600.0
# After a renewal that nobody answered, the next one is tried so much later.
_RETRY_S = 5.0
# When a membership was due that the orchestrator no longer takes: nothing is left of it to go by.
_REFUSED = -math.inf


class Joined(NamedTuple):
    """What one join gave. `due_s` is when the next one should be, on the steady clock; `renew_s` after each."""

    token: str
    reader: Reader
    due_s: float
    renew_s: float
    tls: TlsIdentity | None
    members: Address


class Joiner:
    """Passes of one member of one network. Thread-safe.

    any_address: contact loopback and link-local addresses even where an orchestrator elsewhere names them.
    on_join: told after every join.
    """

    def __init__(
        self,
        identity: Identity,
        orchestrator: OrchestratorAddress,
        *,
        role: str = NODE,
        enrolment: str = "",
        any_address: bool = False,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self.principal = Principal(role, identity.uuid)
        self.clock = NetworkClock(steady)
        self.grants = Grants(self.clock.now)
        self._identity = identity
        self._orchestrator = orchestrator
        self._enrolment = enrolment
        self._any_address = any_address
        self._steady = steady
        self._joining = threading.Lock()
        self._joined: Joined | None = None
        self._names_lock = threading.Lock()
        self._names: OrderedDict[Address, str] = OrderedDict()
        # Until it has joined, a server shows the certificate of an authority that nobody knows.
        self._nobody = Authority.fresh().own(_NOBODY_S) if orchestrator.fingerprint else None

    @classmethod
    def of_driver(cls, address: str, enrolment: str = "", *, keys: Path | None = None) -> Joiner:
        """A driver's. `address` as the orchestrator prints it.

        keys: a folder for its key, by which a driver that died and was started again takes its live lease over.
        Without one the key is new, and lasts as long as this process. Raises ConfigError where the key is unusable.
        """
        identity = Identity.fresh() if keys is None else Identity.kept(keys, setting="driver.data_dir")
        return cls(identity, parse_orchestrator(address), role=DRIVER, enrolment=enrolment)

    # What a guard and a server of the same process ask

    def reader(self) -> Reader | None:
        """Reads the network's tokens; None before the first join."""
        joined = self._joined
        return None if joined is None else joined.reader

    def tls_identity(self) -> TlsIdentity:
        """What this process shows, with TLS."""
        joined = self._joined
        shown = self._nobody if joined is None else joined.tls
        assert shown is not None, "asked with TLS alone"
        return shown

    def due_grants(self) -> list[Key]:
        """The VNodes whose tokens should be asked for again."""
        joined = self._joined
        return [] if joined is None else self.grants.older_than(joined.renew_s)

    # Passes

    def metadata(self, service: str, address: Address, request: Message, deadline: Deadline) -> Metadata:
        del address
        if service in _MEMBERS_ONLY:
            return with_token(self.join(deadline).token)
        return with_token(self.grants.token_for(request))

    def place(self, address: Address) -> Place:
        joined = self._joined
        if address == self._orchestrator.address:
            if joined is None or joined.tls is None:
                return Place(address)
            return Place(joined.members, joined.tls, ORCHESTRATOR.dns)
        with self._names_lock:
            name = self._names.get(address)
        if name is None:
            raise PermissionDenied(f"{address} was not given by the orchestrator; nothing else is contacted")
        return Place(address, None if joined is None else joined.tls, name)

    def learn(self, service: str, reply: Message) -> None:
        if service not in _MEMBERS_ONLY:
            return
        if isinstance(reply, orchestrator_pb2.RegisterReply | orchestrator_pb2.HeartbeatReply):
            self.clock.set(reply.now_s)
        elif isinstance(reply, orchestrator_pb2.ResolveReply):
            self._learn_location(reply.location)
        elif isinstance(reply, orchestrator_pb2.SubmitReply | orchestrator_pb2.StatusReply):
            for location in reply.status.locations:
                self._learn_location(location)

    def renounce(self, service: str) -> bool:
        if service in _MEMBERS_ONLY:
            # Most often the orchestrator restarted under a new key, or this machine slept longer than a token lives.
            joined = self._joined
            if joined is not None:
                self._joined = joined._replace(due_s=_REFUSED)
            return True
        return False

    def _learn_location(self, location: orchestrator_pb2.Location) -> None:
        if not location.address:
            return
        address = parse_address(location.address)
        if not self._any_address:
            check_reachable(address, self._orchestrator.address.host)
        with self._names_lock:
            self._names[address] = Principal(NODE, location.node_uuid).dns
            self._names.move_to_end(address)
            if len(self._names) > _MAX_NAMES:
                self._names.popitem(last=False)
        self.grants.learn(location)

    # Joining

    def join(self, deadline: Deadline) -> Joined:
        """Be a member: join for the first time, or again where half of the time is over.

        An orchestrator that does not answer is no reason to give up what still holds, nor to wait for the call that
        asks it. Raises PeerUnavailable, PermissionDenied, Unauthenticated, ProtocolMismatch.
        """
        joined = self._joined
        if joined is not None and self._steady() < joined.due_s:
            return joined
        holds = joined is not None and joined.due_s != _REFUSED
        if not self._joining.acquire(timeout=0.0 if holds else deadline.left_s()):
            if joined is not None and holds:
                return joined
            raise DeadlineExceeded("another call of this process was still joining when the deadline passed")
        try:
            joined = self._joined
            if joined is None:
                joined = self._joined = self._join(deadline)
            elif self._steady() >= joined.due_s:
                joined = self._joined = self._renewed(joined, deadline)
            return joined
        finally:
            self._joining.release()

    def _renewed(self, joined: Joined, deadline: Deadline) -> Joined:
        try:
            # The call that this is for must have time left where nobody answers.
            return self._join(deadline.at_most(deadline.left_s() / 3))
        except (Busy, Unavailable, DeadlineExceeded) as error:
            log.info("the membership could not be renewed yet: %s", error)
            return joined._replace(due_s=self._steady() + _RETRY_S)

    def _join(self, deadline: Deadline) -> Joined:
        fingerprint = self._orchestrator.fingerprint
        authority = _authority(self._orchestrator, deadline) if fingerprint else b""
        new = certificates.new_key() if fingerprint else NewKey(b"", b"")
        with ChannelPool(passes=_AtTheDoor(authority)) as channels:
            door = RemoteDoor(channels, str(self._orchestrator.address))
            challenge = door.challenge(orchestrator_pb2.ChallengeRequest(), deadline).challenge
            reply = door.join(self._request(challenge, new.request), deadline)
        protocol.agreed(reply.protocol, reply.protocol, "the orchestrator")
        self.clock.set(reply.now_s)
        if fingerprint:
            _judge_clock(reply.now_s)
        return Joined(
            token=reply.token,
            reader=self._reader_of(reply.token_key),
            due_s=self._steady() + reply.renew_s,
            renew_s=reply.renew_s,
            tls=TlsIdentity(new.key, reply.certificate, authority) if fingerprint else None,
            members=_members(self._orchestrator.address, reply.port),
        )

    def _request(self, challenge: bytes, request: bytes) -> orchestrator_pb2.JoinRequest:
        role, uuid = self.principal
        fingerprint = self._orchestrator.fingerprint
        signed = statement(role=role, uuid=uuid, challenge=challenge, request=request, fingerprint=fingerprint)
        return orchestrator_pb2.JoinRequest(
            role=role,
            uuid=uuid,
            public_key=self._identity.public,
            challenge=challenge,
            request=request,
            signature=self._identity.sign(signed),
            enrolment=self._enrolment,
            protocol_min=protocol.OLDEST,
            protocol=protocol.NEWEST,
        )

    def _reader_of(self, public: bytes) -> Reader:
        known = self.reader()
        if known is not None and known.public == public:
            return known
        try:
            return Reader(public)
        except ValueError:
            raise PeerUnavailable("the orchestrator answered with a key for tokens that is none") from None


class _AtTheDoor(OpenPasses):
    """A stranger's passes: the orchestrator's door, known by its authority, and nothing else."""

    def __init__(self, authority: bytes) -> None:
        self._authority = authority

    def place(self, address: Address) -> Place:
        if not self._authority:
            return Place(address)
        return Place(address, TlsIdentity(b"", b"", self._authority), ORCHESTRATOR.dns)


def _authority(orchestrator: OrchestratorAddress, deadline: Deadline) -> bytes:
    """The certificate that stands at the door, if it is the one that we were told of.

    Nothing has been said to whoever shows it; the connection that follows accepts this very certificate alone.
    """
    where = orchestrator.address
    try:
        pem = ssl.get_server_certificate((where.host, where.port), timeout=max(0.001, deadline.left_s()))
    except (OSError, ValueError) as error:
        raise PeerUnavailable(f"{where} does not answer by TLS: {error}") from error
    found = "sha256:" + hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    if found != orchestrator.fingerprint:
        raise PermissionDenied(
            f"{where} shows an authority with fingerprint {found}, not the one that was given: "
            "another orchestrator, or somebody between"
        )
    return pem.encode()


def _judge_clock(network_s: float) -> None:
    off_s = time.time() - network_s
    if abs(off_s) > _CLOCK_OFF_S:
        log.warning(
            "this machine's clock is %.0f min off the orchestrator's; TLS goes by it, and refuses everybody once it is "
            "off by more than a certificate's life",
            off_s / 60,
        )


def _members(door: Address, port: int) -> Address:
    if port > 65535:
        raise PeerUnavailable(f"the orchestrator answered with port {port}")
    return door._replace(port=port or door.port)
