"""The door: who proves to hold its key becomes a member, and nobody between the two gains anything."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from orchestrator_doors import SECRET, request, where
from orchestrator_fakes import uuid_of
from orchestrator_strangers import bearing
from orchestrator_time import soon

from pnode.errors import (
    BadRequest,
    PeerUnavailable,
    PermissionDenied,
    PNodeError,
    ProtocolMismatch,
    TooLarge,
    Unauthenticated,
)
from pnode.orchestrator.orchestrator import Orchestrator
from pnode.security.authority import Authority
from pnode.security.certificates import TlsIdentity, new_key
from pnode.security.identity import Identity
from pnode.security.principals import DRIVER, ORCHESTRATOR
from pnode.transport.addresses import OrchestratorAddress, parse_orchestrator
from pnode.transport.channels import ChannelPool
from pnode.transport.credentials import ServerTls
from pnode.transport.guards import OpenGuard
from pnode.transport.joiner import Joiner
from pnode.transport.remote import RemoteDoor, RemoteOrchestrator, RemoteRuns
from pnode.transport.server import make_server
from pnode.v1 import orchestrator_pb2

pytestmark = pytest.mark.timeout(60)


def test_a_joiner_is_known_by_its_key_and_gets_what_it_needs(guarded: Orchestrator) -> None:
    joiner = Joiner(Identity.fresh(), where(guarded), enrolment=SECRET)
    joined = joiner.join(soon())
    claims = joined.reader.read(joined.token)
    assert claims.holder == joiner.principal
    assert joined.tls is not None
    assert joined.tls.authority == guarded.authority.pem
    assert joined.members.port != guarded.port
    assert joiner.join(soon()) is joined, "it is a member, and need not ask again"


@pytest.mark.parametrize("enrolment", ["", "open sesam", SECRET + " "])
def test_a_network_with_a_secret_is_closed(guarded: Orchestrator, enrolment: str) -> None:
    with pytest.raises(PermissionDenied, match=r"orchestrator\.enrolment is missing or wrong") as refused:
        Joiner(Identity.fresh(), where(guarded), enrolment=enrolment).join(soon())
    assert SECRET not in refused.value.message


# Somebody between


def test_another_authority_at_the_door_learns_nothing(guarded: Orchestrator, tmp_path: Path) -> None:
    """Somebody between shows an authority of its own; the joiner sees the wrong fingerprint and says nothing at all."""
    heard: list[str] = []

    class Spy:
        def challenge(self, request: object, deadline: object) -> orchestrator_pb2.ChallengeReply:
            heard.append("challenge")
            return orchestrator_pb2.ChallengeReply(challenge=b"x")

        def join(self, request: orchestrator_pb2.JoinRequest, deadline: object) -> orchestrator_pb2.JoinReply:
            heard.append(request.enrolment)
            return orchestrator_pb2.JoinReply()

    mine = Authority.fresh()
    shown = mine.door
    between = make_server(door=Spy(), guard=OpenGuard(), tls=ServerTls(lambda: shown, of_members=False))
    between.start()
    try:
        told = OrchestratorAddress(where(guarded).address._replace(port=between.port), guarded.authority.fingerprint)
        with pytest.raises(PermissionDenied, match="another orchestrator, or somebody between") as refused:
            Joiner(Identity.fresh(), told, enrolment=SECRET).join(soon())
        assert mine.fingerprint in refused.value.message
        assert heard == []
    finally:
        between.stop(0.0)


def test_no_tls_where_a_fingerprint_was_given(plain: Orchestrator) -> None:
    told = OrchestratorAddress(where(plain).address, "sha256:" + "0" * 64)
    with pytest.raises(PeerUnavailable, match="does not answer by TLS"):
        Joiner(Identity.fresh(), told).join(soon())


def test_a_silent_door_ends_with_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        told = parse_orchestrator(f"127.0.0.1:{silent.getsockname()[1]}#sha256:{'0' * 64}")
        with pytest.raises(PeerUnavailable, match="does not answer by TLS"):
            Joiner(Identity.fresh(), told).join(soon().at_most(0.2))


# What is said at the door


@pytest.fixture
def door(plain: Orchestrator) -> Iterator[RemoteDoor]:
    with ChannelPool() as pool:
        yield RemoteDoor(pool, plain.address)


def test_a_join_cannot_be_replayed(door: RemoteDoor) -> None:
    heard = request(door, Identity.fresh())
    assert door.join(heard, soon()).token
    with pytest.raises(Unauthenticated, match="a join cannot be replayed"):
        door.join(heard, soon())


def test_a_join_cannot_be_passed_on_to_another_orchestrator(door: RemoteDoor) -> None:
    """It was signed for an authority that somebody else showed."""
    passed_on = request(door, Identity.fresh(), fingerprint=Authority.fresh().fingerprint)
    with pytest.raises(Unauthenticated, match="or for another orchestrator"):
        door.join(passed_on, soon())


def test_only_the_keys_owner_joins(door: RemoteDoor) -> None:
    owner, thief = Identity.fresh(), Identity.fresh()
    claimed = request(door, thief)
    claimed.public_key = owner.public
    with pytest.raises(Unauthenticated, match="not signed by its key"):
        door.join(claimed, soon())
    with pytest.raises(PermissionDenied, match="made from a key, and from another one"):
        door.join(request(door, thief, uuid=owner.uuid), soon())
    with pytest.raises(PermissionDenied, match="does not follow from its key"):
        door.join(request(door, thief, uuid=uuid_of(1), role=DRIVER), soon())
    assert door.join(request(door, owner, uuid=uuid_of(1)), soon()).token
    with pytest.raises(PermissionDenied, match="belongs to another key"):
        door.join(request(door, thief, uuid=uuid_of(1)), soon())


@pytest.mark.parametrize(
    ("changes", "kind", "why"),
    [
        ({"role": "orchestrator"}, BadRequest, "neither node nor driver"),
        ({"uuid": "me"}, BadRequest, "not a UUID"),
        ({"public_key": b""}, BadRequest, "not an Ed25519 key"),
        ({"challenge": b"x" * 56}, Unauthenticated, "not given out by this orchestrator"),
        ({"protocol": 0}, ProtocolMismatch, "the joiner is too old: it speaks wire protocol 0, this process 1"),
        ({"protocol": 9, "protocol_min": 2}, ProtocolMismatch, "this process is too old"),
        ({"enrolment": "anything"}, PermissionDenied, "enrolment"),
    ],
)
def test_what_is_wrong_is_said(door: RemoteDoor, changes: dict[str, object], kind: type[PNodeError], why: str) -> None:
    with pytest.raises(kind, match=why):
        door.join(request(door, Identity.fresh(), **changes), soon())  # type: ignore[arg-type]  # a table's row


def at(guarded: Orchestrator) -> TlsIdentity:
    """What a stranger knows who was given the fingerprint."""
    return guarded.authority.door._replace(key=b"", certificate=b"")


def test_who_lacks_the_secret_uses_up_no_challenge(guarded: Orchestrator) -> None:
    """Challenges that were used are remembered: strangers must not be able to fill that memory."""
    joiner, seen = Identity.fresh(), guarded.authority.fingerprint
    asked: dict[str, Any] = {"fingerprint": seen, "request": new_key().request}
    with bearing("", at(guarded), ORCHESTRATOR.dns) as pool:
        door = RemoteDoor(pool, str(where(guarded).address))
        challenge = door.challenge(orchestrator_pb2.ChallengeRequest(), soon()).challenge
        with pytest.raises(PermissionDenied, match="enrolment"):
            door.join(request(door, joiner, challenge=challenge, enrolment="guess", **asked), soon())
        assert door.join(request(door, joiner, challenge=challenge, enrolment=SECRET, **asked), soon()).token


def test_a_join_that_is_refused_leaves_its_uuid_free(guarded: Orchestrator, tmp_path: Path) -> None:
    stranger, owner, mine = Identity.fresh(), Identity.fresh(), uuid_of(1)
    told: dict[str, Any] = {"fingerprint": guarded.authority.fingerprint, "enrolment": SECRET, "uuid": mine}
    with bearing("", at(guarded), ORCHESTRATOR.dns) as pool:
        door = RemoteDoor(pool, str(where(guarded).address))
        for what in (b"", b"nonsense", new_key().request[:-9]):
            with pytest.raises(BadRequest, match="certificate request is"):
                door.join(request(door, stranger, request=what, **told), soon())
            assert (tmp_path / "keys" / "known_keys").read_bytes() == b""
        good = new_key().request
        assert door.join(request(door, owner, request=good, **told), soon()).certificate
        with pytest.raises(PermissionDenied, match="belongs to another key"):
            door.join(request(door, stranger, request=good, **told), soon())
    assert (tmp_path / "keys" / "known_keys").read_text() == f"{mine} {owner.public.hex()}\n"


def test_with_tls_the_door_serves_nothing_else(guarded: Orchestrator) -> None:
    address = str(where(guarded).address)
    with bearing("", at(guarded), ORCHESTRATOR.dns) as pool:
        assert RemoteDoor(pool, address).challenge(orchestrator_pb2.ChallengeRequest(), soon()).challenge
        with pytest.raises(PeerUnavailable, match="does not know this call"):
            RemoteRuns(pool, address).status(orchestrator_pb2.StatusRequest(run="r"), soon())
        with pytest.raises(PeerUnavailable, match="does not know this call"):
            RemoteOrchestrator(pool, address).resolve(orchestrator_pb2.ResolveRequest(run="r"), soon())


def test_what_is_larger_than_any_join_or_spec_is_not_taken_in(guarded: Orchestrator, plain: Orchestrator) -> None:
    stranger = at(guarded)
    for orchestrator, tls, name, most in ((guarded, stranger, ORCHESTRATOR.dns, 64 << 10), (plain, None, "", 4 << 20)):
        told = orchestrator_pb2.JoinRequest(enrolment="x" * most)
        with bearing("", tls, name) as pool, pytest.raises(TooLarge):
            RemoteDoor(pool, str(where(orchestrator).address)).join(told, soon())
