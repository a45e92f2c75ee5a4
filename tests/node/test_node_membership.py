"""The membership's one step, `beat`, against an orchestrator that answers, forgets, is silent and comes back."""

from __future__ import annotations

import logging
import random

import pytest

from pnode.errors import PeerUnavailable, PermissionDenied, PNodeError, ProtocolMismatch, UnknownNode
from pnode.node.membership import Identity, Membership
from pnode.transport.deadline import Deadline
from pnode.transport.retry import Backoff
from pnode.v1 import node_pb2, orchestrator_pb2, vnode_pb2


class FakeOrchestrator:
    """Keeps one member and answers as the real one would; `failure` makes it fall silent."""

    def __init__(self) -> None:
        self.incarnation = 0
        self.known = False
        self.protocol = 0  # named by none that is older than the word for it
        self.failure: PNodeError | None = None
        self.directives: list[orchestrator_pb2.Directive] = []
        self.unregistered: orchestrator_pb2.UnregisterRequest | None = None

    def _maybe_fail(self) -> None:
        if self.failure is not None:
            raise self.failure

    def register(
        self, request: orchestrator_pb2.RegisterRequest, deadline: Deadline, /
    ) -> orchestrator_pb2.RegisterReply:
        self._maybe_fail()
        self.incarnation += 1
        self.known = True
        return orchestrator_pb2.RegisterReply(incarnation=self.incarnation, heartbeat_s=12.0, protocol=self.protocol)

    def heartbeat(
        self, request: orchestrator_pb2.HeartbeatRequest, deadline: Deadline, /
    ) -> orchestrator_pb2.HeartbeatReply:
        self._maybe_fail()
        if not self.known:
            raise UnknownNode("who?")
        directives, self.directives = self.directives, []
        return orchestrator_pb2.HeartbeatReply(directives=directives)

    def resolve(self, request: orchestrator_pb2.ResolveRequest, deadline: Deadline, /) -> orchestrator_pb2.ResolveReply:
        raise AssertionError("a membership resolves nothing")

    def report_failure(
        self, request: orchestrator_pb2.ReportFailureRequest, deadline: Deadline, /
    ) -> orchestrator_pb2.ReportFailureReply:
        raise AssertionError("a membership reports nothing")

    def unregister(
        self, request: orchestrator_pb2.UnregisterRequest, deadline: Deadline, /
    ) -> orchestrator_pb2.UnregisterReply:
        self._maybe_fail()
        self.unregistered = request
        return orchestrator_pb2.UnregisterReply()


class FakeMember:
    """A node that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def load(self) -> node_pb2.Load:
        return node_pb2.Load()

    def hosted(self) -> list[node_pb2.HostedVNode]:
        return []

    def draining(self) -> bool:
        return False

    def release(self, fence: vnode_pb2.Fence) -> None:
        self.told.append(("release", fence.vnode))

    def drain(self, reason: str) -> None:
        self.told.append(("drain", reason))

    def reachable(self, answers: bool) -> None:
        self.told.append(answers)


@pytest.fixture
def orchestrator() -> FakeOrchestrator:
    return FakeOrchestrator()


@pytest.fixture
def member() -> FakeMember:
    return FakeMember()


@pytest.fixture
def membership(orchestrator: FakeOrchestrator, member: FakeMember) -> Membership:
    identity = Identity("u", "127.0.0.1:1", node_pb2.Capabilities())
    rng = random.Random(0)
    return Membership(identity, member, orchestrator, backoff=lambda: Backoff(0.5, cap_s=60.0, rng=rng))


def test_registers_then_keeps_the_interval_it_was_given(membership: Membership) -> None:
    assert not membership.registered.is_set()
    assert membership.beat() == 12.0
    assert membership.registered.is_set()
    assert membership.beat() == 12.0


def test_a_forgotten_node_joins_again_at_once(membership: Membership, orchestrator: FakeOrchestrator) -> None:
    membership.beat()
    orchestrator.known = False
    assert membership.beat() == 0.0
    assert membership.beat() == 12.0
    assert orchestrator.incarnation == 2


def test_reregister_is_followed(membership: Membership, orchestrator: FakeOrchestrator) -> None:
    membership.beat()
    orchestrator.directives = [orchestrator_pb2.Directive(reregister=orchestrator_pb2.Reregister())]
    assert membership.beat() == 0.0
    membership.beat()
    assert orchestrator.incarnation == 2


def test_directives_reach_the_node(membership: Membership, orchestrator: FakeOrchestrator, member: FakeMember) -> None:
    membership.beat()
    orchestrator.directives = [
        orchestrator_pb2.Directive(release=node_pb2.ReleaseRequest(fence=vnode_pb2.Fence(vnode="v"))),
        orchestrator_pb2.Directive(drain=node_pb2.DrainRequest(reason="upgrade")),
        orchestrator_pb2.Directive(),
    ]
    membership.beat()
    assert ("release", "v") in member.told
    assert ("drain", "upgrade") in member.told


def test_silence_is_said_once_and_retried_with_growing_bounded_pauses(
    membership: Membership, orchestrator: FakeOrchestrator, member: FakeMember, caplog: pytest.LogCaptureFixture
) -> None:
    membership.beat()
    orchestrator.failure = PeerUnavailable("connection refused")
    with caplog.at_level(logging.INFO):
        pauses = [membership.beat() for _ in range(12)]
    assert all(0 <= pause <= 12.0 for pause in pauses)
    assert max(pauses) > 1.0
    assert len(set(pauses)) > 6, "jitter: no two nodes come back in step"
    said = [record.message for record in caplog.records if "does not answer" in record.message]
    assert len(said) == 1
    assert "connection refused" in said[0]
    assert membership.last_error == "connection refused"
    assert member.told[-1] is False

    orchestrator.failure = None
    with caplog.at_level(logging.INFO):
        assert membership.beat() == 12.0
    assert member.told[-1] is True
    assert membership.last_error is None
    assert "answers again" in caplog.records[-1].message


def test_leaving_unregisters_with_the_records(membership: Membership, orchestrator: FakeOrchestrator) -> None:
    membership.beat()
    membership.close("SIGTERM", [vnode_pb2.StateRecord(vnode="v", version=3)])
    assert orchestrator.unregistered is not None
    assert orchestrator.unregistered.reason == "SIGTERM"
    assert orchestrator.unregistered.records[0].version == 3


def test_leaving_without_an_answer_is_only_logged(
    membership: Membership, orchestrator: FakeOrchestrator, caplog: pytest.LogCaptureFixture
) -> None:
    membership.beat()
    orchestrator.failure = PeerUnavailable("gone")
    membership.close("SIGTERM", [])
    assert "could not unregister" in caplog.text


@pytest.mark.parametrize("error", [PermissionDenied("the network is closed"), ProtocolMismatch("too old")])
def test_a_refusal_that_no_waiting_mends_ends_the_wait(
    membership: Membership, orchestrator: FakeOrchestrator, error: PNodeError
) -> None:
    orchestrator.failure = PeerUnavailable("connection refused")
    membership.beat()
    assert not membership.settled.is_set()
    orchestrator.failure = error
    membership.beat()
    assert membership.settled.is_set()
    assert not membership.registered.is_set()
    assert membership.last_error == error.message


def test_an_orchestrator_of_another_protocol_is_not_joined(
    membership: Membership, orchestrator: FakeOrchestrator
) -> None:
    orchestrator.protocol = 7
    membership.beat()
    assert not membership.registered.is_set()
    assert membership.last_error is not None
    assert "this process is too old: it speaks wire protocol 1, the orchestrator 7" in membership.last_error
