"""The door: who proves to hold its key becomes a member, and nobody between the two gains anything."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest
from orchestrator_fakes import uuid_of
from orchestrator_net import Clock, soon
from orchestrator_strangers import bearing

from pnode.errors import (
    BadRequest,
    Busy,
    DeadlineExceeded,
    PeerUnavailable,
    PermissionDenied,
    PNodeError,
    ProtocolMismatch,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UnknownRun,
)
from pnode.orchestrator.door import Door
from pnode.orchestrator.orchestrator import Orchestrator
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.security.authority import Authority
from pnode.security.identity import Identity
from pnode.security.joining import statement
from pnode.security.principals import DRIVER, NODE, ORCHESTRATOR
from pnode.storage.local import LocalStore
from pnode.transport import methods
from pnode.transport.addresses import OrchestratorAddress, parse_orchestrator
from pnode.transport.channels import ChannelPool
from pnode.transport.credentials import ServerTls
from pnode.transport.guards import OpenGuard
from pnode.transport.joiner import Joiner
from pnode.transport.remote import RemoteDoor, RemoteOrchestrator, RemoteRuns
from pnode.transport.server import make_server
from pnode.v1 import orchestrator_pb2

pytestmark = pytest.mark.timeout(60)

SECRET = "open sesame"


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Orchestrator]:
    """An orchestrator with TLS and a secret."""
    settings = OrchestratorSettings(port=0, tls=True, keys=tmp_path / "keys", enrolment=SECRET)
    orchestrator = Orchestrator(LocalStore(tmp_path / "store"), settings)
    orchestrator.start()
    yield orchestrator
    orchestrator.close()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Orchestrator]:
    """One without, which anybody on this machine may join."""
    orchestrator = Orchestrator(LocalStore(tmp_path / "store"), OrchestratorSettings(port=0))
    orchestrator.start()
    yield orchestrator
    orchestrator.close()


def where(orchestrator: Orchestrator) -> OrchestratorAddress:
    return parse_orchestrator(orchestrator.address)


def test_a_joiner_is_known_by_its_key_and_gets_what_it_needs(closed: Orchestrator) -> None:
    joiner = Joiner(Identity.fresh(), where(closed), enrolment=SECRET)
    joined = joiner.join(soon())
    claims = joined.reader.read(joined.token)
    assert claims.holder == joiner.principal
    assert joined.tls is not None
    assert joined.tls.authority == closed.authority.pem
    assert joined.members.port != closed.port
    assert joiner.join(soon()) is joined, "it is a member, and need not ask again"


@pytest.mark.parametrize("enrolment", ["", "open sesam", SECRET + " "])
def test_a_network_with_a_secret_is_closed(closed: Orchestrator, enrolment: str) -> None:
    with pytest.raises(PermissionDenied, match=r"orchestrator\.enrolment is missing or wrong") as refused:
        Joiner(Identity.fresh(), where(closed), enrolment=enrolment).join(soon())
    assert SECRET not in refused.value.message


# Somebody between


def test_another_authority_at_the_door_learns_nothing(closed: Orchestrator, tmp_path: Path) -> None:
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
        told = OrchestratorAddress(where(closed).address._replace(port=between.port), closed.authority.fingerprint)
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


def test_with_tls_the_door_serves_nothing_else(closed: Orchestrator) -> None:
    address = str(where(closed).address)
    stranger = closed.authority.door._replace(key=b"", certificate=b"")
    with bearing("", stranger, ORCHESTRATOR.dns) as pool:
        assert RemoteDoor(pool, address).challenge(orchestrator_pb2.ChallengeRequest(), soon()).challenge
        with pytest.raises(PeerUnavailable, match="does not know this call"):
            RemoteRuns(pool, address).status(orchestrator_pb2.StatusRequest(run="r"), soon())
        with pytest.raises(PeerUnavailable, match="does not know this call"):
            RemoteOrchestrator(pool, address).resolve(orchestrator_pb2.ResolveRequest(run="r"), soon())


def test_what_is_larger_than_any_join_or_spec_is_not_taken_in(closed: Orchestrator, plain: Orchestrator) -> None:
    stranger = closed.authority.door._replace(key=b"", certificate=b"")
    for orchestrator, tls, name, most in ((closed, stranger, ORCHESTRATOR.dns, 64 << 10), (plain, None, "", 4 << 20)):
        told = orchestrator_pb2.JoinRequest(enrolment="x" * most)
        with bearing("", tls, name) as pool, pytest.raises(TooLarge):
            RemoteDoor(pool, str(where(orchestrator).address)).join(told, soon())


# Membership is renewed


def test_a_membership_is_renewed_and_outlasts_an_outage(closed: Orchestrator) -> None:
    steady = Clock()
    joiner = Joiner(Identity.fresh(), where(closed), enrolment=SECRET, steady=steady)
    first = joiner.join(soon())
    steady.now += first.renew_s - 1.0
    assert joiner.join(soon()) is first
    steady.now += 2.0
    second = joiner.join(soon())
    assert second.tls != first.tls
    assert joiner.tls_identity() == second.tls
    closed.close()
    steady.now += second.renew_s + 1.0
    held = joiner.join(soon().at_most(1.0))
    assert (held.token, held.tls) == (second.token, second.tls)
    assert held.due_s > steady.now, "and the next call does not try at once again"


def test_a_busy_door_is_no_reason_to_give_up_a_membership(plain: Orchestrator, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: object) -> None:
        raise Busy("too many at the door")

    steady = Clock()
    joiner = Joiner(Identity.fresh(), where(plain), steady=steady)
    first = joiner.join(soon())
    monkeypatch.setattr(Door, "_check_proof", busy)
    steady.now += first.renew_s + 1.0
    assert joiner.join(soon()).token == first.token
    with pytest.raises(Busy):
        Joiner(Identity.fresh(), where(plain)).join(soon())


def test_a_slow_door_takes_a_third_of_one_calls_time(plain: Orchestrator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other calls go on meanwhile; only what the orchestrator no longer takes is waited for."""
    asked, may_go = threading.Event(), threading.Event()

    def slow(*_: object) -> NoReturn:
        asked.set()
        may_go.wait(20.0)
        raise Unavailable("was slow")

    steady = Clock()
    joiner = Joiner(Identity.fresh(), where(plain), steady=steady)
    first = joiner.join(soon())
    monkeypatch.setattr(Door, "_check_proof", slow)
    steady.now += first.renew_s + 1.0
    with ThreadPoolExecutor(1) as threads:
        renewing = threads.submit(joiner.join, soon())
        assert asked.wait(20.0)
        assert joiner.join(soon()) is first
        assert joiner.renounce(methods.RUNS.full_name)
        with pytest.raises(DeadlineExceeded, match="was still joining"):
            joiner.join(soon().at_most(0.05))
        may_go.set()
        assert renewing.result().token == first.token
    may_go.clear()
    steady.now += 10.0
    deadline = soon().at_most(1.5)
    assert joiner.join(deadline).token == first.token
    assert deadline.left_s() > 0.1, "the call itself has time left"
    may_go.set()


def test_a_clock_that_is_off_is_named_and_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = OrchestratorSettings(port=0, tls=True)
    ahead = Orchestrator(LocalStore(tmp_path), settings, unix_clock=lambda: time.time() + 7200)
    ahead.start()
    try:
        joiner = Joiner(Identity.fresh(), where(ahead), role=DRIVER)
        with ChannelPool(passes=joiner) as pool, caplog.at_level(logging.WARNING), pytest.raises(UnknownRun):
            RemoteRuns(pool, str(where(ahead).address)).status(orchestrator_pb2.StatusRequest(run="r"), soon())
        assert "this machine's clock is -120 min off the orchestrator's" in caplog.text
        now = joiner.clock.now()
        assert now is not None
        assert now - time.time() > 7000
    finally:
        ahead.close()
