"""What the tests of the door share: two orchestrators, and joins as a joiner would ask for them, or an attacker."""

from __future__ import annotations

from orchestrator_time import soon

from pnode.orchestrator.orchestrator import Orchestrator
from pnode.security.identity import Identity
from pnode.security.joining import statement
from pnode.security.principals import NODE
from pnode.transport.addresses import OrchestratorAddress, parse_orchestrator
from pnode.transport.remote import RemoteDoor
from pnode.v1 import orchestrator_pb2

SECRET = "open sesame"


def where(orchestrator: Orchestrator) -> OrchestratorAddress:
    return parse_orchestrator(orchestrator.address)


def request(
    door: RemoteDoor,
    key: Identity,
    *,
    role: str = NODE,
    fingerprint: str = "",
    challenge: bytes | None = None,
    **changes: object,
) -> orchestrator_pb2.JoinRequest:
    """A proper request, but for the changes, which are made before it is signed."""
    challenge = (
        door.challenge(orchestrator_pb2.ChallengeRequest(), soon()).challenge if challenge is None else challenge
    )
    fields = {
        "role": role,
        "uuid": key.uuid,
        "public_key": key.public,
        "challenge": challenge,
        "protocol": 1,
        **changes,
    }
    made = orchestrator_pb2.JoinRequest(**fields)  # type: ignore[arg-type]  # a table's row
    signed = statement(
        role=made.role, uuid=made.uuid, challenge=challenge, request=made.request, fingerprint=fingerprint
    )
    made.signature = key.sign(signed)
    return made
