"""The orchestrator's door: a stranger proves who it is, and becomes a member."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable

from pnode.errors import BadRequest, PermissionDenied, Unauthenticated
from pnode.orchestrator import checks
from pnode.orchestrator.issuing import Issuer
from pnode.security.identity import is_signed, uuid_of
from pnode.security.joining import Challenges, statement
from pnode.security.known_keys import KnownKeys
from pnode.security.principals import DRIVER, NODE, Principal
from pnode.transport import protocol
from pnode.transport.deadline import Deadline
from pnode.v1 import orchestrator_pb2

log = logging.getLogger(__name__)


class Door:
    """Implements DoorApi. Without TLS no certificates are made, and joiners name no fingerprint.

    enrolment: what joiners must bring; empty: anybody may join. member_port: where members go on, with TLS.
    """

    def __init__(
        self,
        issuer: Issuer,
        keys: KnownKeys,
        *,
        tls: bool,
        enrolment: str,
        member_port: Callable[[], int],
    ) -> None:
        self._issuer = issuer
        self._keys = keys
        self._tls = tls
        self._enrolment = enrolment
        self._member_port = member_port
        self._challenges = Challenges(issuer.authority.now)

    def challenge(
        self, request: orchestrator_pb2.ChallengeRequest, deadline: Deadline
    ) -> orchestrator_pb2.ChallengeReply:
        """Something new to sign."""
        del request
        deadline.check()
        return orchestrator_pb2.ChallengeReply(challenge=self._challenges.make())

    def join(self, request: orchestrator_pb2.JoinRequest, deadline: Deadline) -> orchestrator_pb2.JoinReply:
        """Judge a joiner. Raises BadRequest, ProtocolMismatch, Unauthenticated, PermissionDenied, Busy."""
        deadline.check()
        agreed = protocol.agreed(request.protocol_min, request.protocol, "the joiner")
        who = _claimed(request)
        # First of all: who may not join at all shall cost neither a signature nor memory.
        if not hmac.compare_digest(request.enrolment.encode(), self._enrolment.encode()):
            raise PermissionDenied("this network is closed: orchestrator.enrolment is missing or wrong")
        self._check_proof(request)
        self._check_key(who, request.public_key)
        certificate = self._issuer.certificate(request.request, who) if self._tls else b""
        if who.role == NODE:
            # Last of all: a join that was refused for anything leaves its UUID free.
            self._keys.bind(who.uuid, request.public_key)
        return self._welcome(who, certificate, agreed)

    def _welcome(self, who: Principal, certificate: bytes, agreed: int) -> orchestrator_pb2.JoinReply:
        return orchestrator_pb2.JoinReply(
            token=self._issuer.member_token(who),
            token_key=self._issuer.reader.public,
            now_s=self._issuer.authority.now(),
            renew_s=self._issuer.renew_s,
            port=self._member_port(),
            protocol=agreed,
            certificate=certificate,
        )

    def _check_proof(self, request: orchestrator_pb2.JoinRequest) -> None:
        signed = statement(
            role=request.role,
            uuid=request.uuid,
            challenge=request.challenge,
            request=request.request,
            fingerprint=self._issuer.authority.fingerprint if self._tls else "",
        )
        if not is_signed(request.public_key, signed, request.signature):
            raise Unauthenticated("the join is not signed by its key, or for another orchestrator")
        self._challenges.use(request.challenge)

    def _check_key(self, who: Principal, public: bytes) -> None:
        if who.role == NODE:
            self._keys.check(who.uuid, public)
        elif who.uuid != uuid_of(public):
            raise PermissionDenied(f"{who} has a UUID that does not follow from its key")


def _claimed(request: orchestrator_pb2.JoinRequest) -> Principal:
    if request.role not in (NODE, DRIVER):
        raise BadRequest(f"role {request.role[:40]!r} is neither {NODE} nor {DRIVER}")
    return Principal(request.role, checks.node_uuid(request.uuid))
