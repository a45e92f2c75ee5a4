"""A network over TLS, and who is not let in: strangers, certificates of others, tokens that are not for this call."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from orchestrator_net import Network
from orchestrator_served import ServedNode
from orchestrator_strangers import bearing, certified, status_of
from orchestrator_time import soon
from orchestrator_world import RUNNING

from pnode.errors import Conflict, PeerUnavailable, PermissionDenied, PNodeError, StaleFence, Unauthenticated
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.security import tokens
from pnode.security.authority import Authority
from pnode.security.certificates import TlsIdentity
from pnode.security.identity import Identity
from pnode.security.principals import DRIVER, NODE, ORCHESTRATOR, Principal
from pnode.security.tokens import Claims
from pnode.storage.local import LocalStore
from pnode.transport import methods, protocol
from pnode.transport.deadline import Deadline
from pnode.transport.passes import with_token
from pnode.transport.remote import RemoteNode, RemoteRuns, RemoteVNode
from pnode.v1 import node_pb2, orchestrator_pb2, vnode_pb2

pytestmark = pytest.mark.timeout(90)

DESCRIBE = "/pnode.v1.VNodes/Describe"


class Closed:
    """Three nodes and a run over TLS, and what an attacker would like to have of them."""

    def __init__(self, network: Network) -> None:
        self.network = network
        network.join(3)
        self.lease = network.submit()
        network.until_state(RUNNING)
        self.place = network.status(lease=self.lease).locations[0]
        self.node = next(node for node in network.nodes if node.uuid == self.place.node_uuid)
        self.authority = network.orchestrator.authority
        self.driver = network.driver.principal

    @property
    def name(self) -> str:
        """What the node's certificate says."""
        return Principal(NODE, self.node.uuid).dns

    def claims(self) -> Claims:
        """What the driver's token for that VNode says, but for the times, which are as good."""
        now, fence = int(time.time()), self.place.fence
        return Claims(
            self.driver, tokens.VNODE, now, now + 600, run=fence.run, vnode=fence.vnode,
            generation=fence.generation, kinds=("apply", "restore"),
        )  # fmt: skip

    def certificate(self, who: Principal | None = None) -> TlsIdentity:
        return certified(self.authority, who or self.driver)

    def restore(
        self, token: str, tls: TlsIdentity, *, name: str = "", fence: vnode_pb2.Fence | None = None
    ) -> vnode_pb2.RestoreReply:
        """What would change most, if it were let in."""
        record = vnode_pb2.StateRecord(version=77)
        request = vnode_pb2.RestoreRequest(fence=fence or self.place.fence, record=record)
        with bearing(token, tls, name or self.name) as pool:
            return RemoteVNode(pool, self.node.address).restore(request, soon())

    def assert_untouched(self) -> None:
        assert {vnode.version for node in self.network.nodes for vnode in node.vnodes.values()} == {0}
        assert {vnode.fence.generation for node in self.network.nodes for vnode in node.vnodes.values()} == {1}
        assert self.network.status().state == RUNNING


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Closed]:
    settings = OrchestratorSettings(port=0, tick_s=0.02, tls=True, enrolment="open sesame", spread=True)
    network = Network(LocalStore(tmp_path), settings)
    yield Closed(network)
    network.close()


def test_a_run_is_placed_checkpointed_and_recovered_over_tls(closed: Closed) -> None:
    network = closed.network
    network.train_to(2)
    assert network.checkpoint(closed.lease, 2).manifest_sha256
    closed.node.stop()
    network.report("v0", "PEER_UNAVAILABLE")
    network.until_state(RUNNING, generation=2)
    status = network.status(lease=closed.lease)
    assert (status.generation, status.version) == (2, 2)
    assert status.locations[0].token not in ("", closed.place.token)
    assert [node.beat() for node in network.nodes if node is not closed.node] == [[], []]


# Who has no certificate of this network


def test_strangers_do_not_get_a_connection(closed: Closed) -> None:
    token = closed.authority.signer.sign(closed.claims())
    another = Authority.fresh()
    late = Authority(
        closed.authority._key, closed.authority._certificate, Ed25519PrivateKey.generate(), lambda: time.time() - 7200
    )
    nobody = TlsIdentity(b"", b"", closed.authority.pem)
    strangers = {
        "no TLS": None,
        "no certificate": nobody,
        "another authority's": certified(another, closed.driver, believed=closed.authority.pem),
        "one that ended an hour ago": certified(late, closed.driver, 3600.0),
    }
    assert closed.restore(token, closed.certificate()).version == 77, "the token is good, and so is its holder's"
    request = vnode_pb2.RestoreRequest(fence=closed.place.fence, record=vnode_pb2.StateRecord(version=78))
    for what, tls in strangers.items():
        with bearing(token, tls, closed.name) as pool, pytest.raises(PeerUnavailable):
            RemoteVNode(pool, closed.node.address).restore(request, soon().at_most(5.0))
        assert closed.node.vnodes["r", "v0"].version == 77, what


def test_the_orchestrators_members_port_is_for_members(closed: Closed) -> None:
    port = closed.network.driver.join(soon()).members
    stranger = TlsIdentity(b"", b"", closed.authority.pem)
    with bearing("", stranger, ORCHESTRATOR.dns) as pool, pytest.raises(PeerUnavailable):
        RemoteRuns(pool, str(port)).status(orchestrator_pb2.StatusRequest(run="r"), soon().at_most(5.0))
    closed.assert_untouched()


def test_a_callee_must_be_who_is_meant(closed: Closed) -> None:
    """Another member's certificate does not make it the node that was asked for, and a driver's serves nobody."""
    token = closed.authority.signer.sign(closed.claims())
    with pytest.raises(PeerUnavailable):
        closed.restore(token, closed.certificate(), name=Principal(NODE, closed.network.nodes[-1].uuid[::-1]).dns)
    believing = closed.certificate()._replace(authority=Authority.fresh().pem)
    with pytest.raises(PeerUnavailable):
        closed.restore(token, believing)
    closed.assert_untouched()


# Whose token is not for this call


def test_each_wrong_token_has_its_one_answer_and_changes_nothing(
    closed: Closed, caplog: pytest.LogCaptureFixture
) -> None:
    good, sign, mine = closed.claims(), closed.authority.signer.sign, closed.certificate()
    other = Principal(DRIVER, Identity.fresh().uuid)
    newer = vnode_pb2.Fence(run="r", vnode="v0", generation=2, epoch=1)
    rows: list[tuple[str, TlsIdentity, vnode_pb2.Fence | None, type[PNodeError], str]] = [
        ("", mine, None, Unauthenticated, "Restore needs a token"),
        ("nonsense", mine, None, Unauthenticated, "malformed"),
        (Authority.fresh().signer.sign(good), mine, None, Unauthenticated, "not signed by this network"),
        (sign(replace(good, expires_s=good.issued_s - 5)), mine, None, Unauthenticated, "the token ended"),
        (sign(replace(good, issued_s=good.expires_s)), mine, None, Unauthenticated, "begins only in"),
        (sign(good), closed.certificate(other), None, PermissionDenied, "belongs to another caller"),
        (sign(replace(good, vnode="v1")), mine, None, PermissionDenied, "for VNode 'v1' of run 'r'"),
        (sign(replace(good, run="s")), mine, None, PermissionDenied, "for VNode 'v0' of run 's'"),
        (sign(replace(good, kinds=("apply",))), mine, None, PermissionDenied, "allows apply, and not restore"),
        (sign(good), mine, newer, PermissionDenied, "for generation 1, the call for 2"),
        (sign(Claims(good.holder, tokens.MEMBER, good.issued_s, good.expires_s)), mine, None, PermissionDenied, "none"),
    ]
    with caplog.at_level(logging.WARNING):
        for token, tls, fence, kind, why in rows:
            with pytest.raises(kind, match=why) as refused:
                closed.restore(token, tls, fence=fence)
            assert type(refused.value) is kind
            closed.assert_untouched()
    counts = closed.node.counters.read()
    assert counts["refused.restore.UNAUTHENTICATED"] == 5
    assert counts["refused.restore.PERMISSION_DENIED"] == 6
    told = [record.message for record in caplog.records if record.message.startswith("refused restore")]
    assert len(told) == 3 + 3, "the 1st, 2nd and 4th of each kind"
    assert not any(token in caplog.text for token, *_ in rows if token), "no secret is in the log"


def test_a_token_ends_with_its_generation(closed: Closed) -> None:
    """Zombies keep their tokens, and these open nothing any more."""
    network, old = closed.network, closed.claims()
    network.report("v1", "WORKER_LOST", network.where("v1").uuid)
    network.until_state(RUNNING, generation=2)
    token = closed.authority.signer.sign(replace(old, kinds=("restore", "describe")))
    with pytest.raises(StaleFence):
        closed.restore(token, closed.certificate())
    with bearing(token, closed.certificate(), closed.name) as pool, pytest.raises(StaleFence, match="at 2 by now"):
        RemoteVNode(pool, closed.node.address).describe(vnode_pb2.DescribeRequest(run="r", vnode="v0"), soon())


def test_only_the_orchestrator_allocates_and_only_at_the_node_that_it_means(closed: Closed) -> None:
    now = int(time.time())
    as_driver = Claims(closed.driver, tokens.NODE, now, now + 600, node=closed.node.uuid)
    elsewhere = Claims(ORCHESTRATOR, tokens.NODE, now, now + 600, node=closed.network.nodes[-1].uuid[::-1])
    rows = [
        (as_driver, closed.certificate(), "for the orchestrator alone"),
        (elsewhere, closed.certificate(ORCHESTRATOR), "not for this one"),
        (replace(elsewhere, node=closed.node.uuid), closed.certificate(), "belongs to another caller"),
    ]
    for claims, tls, why in rows:
        token = closed.authority.signer.sign(claims)
        with bearing(token, tls, closed.name) as pool, pytest.raises(PermissionDenied, match=why):
            RemoteNode(pool, closed.node.address).release(node_pb2.ReleaseRequest(fence=closed.place.fence), soon())
    closed.assert_untouched()


# At the orchestrator


def test_each_member_does_its_own(closed: Closed) -> None:
    network, node = closed.network, closed.node
    beat = orchestrator_pb2.HeartbeatRequest(node_uuid=node.uuid, incarnation=node.incarnation)
    with pytest.raises(PermissionDenied, match="Heartbeat is not for a driver"):
        network.as_driver.heartbeat(beat, soon())
    another = next(each for each in network.nodes if each is not node)
    with pytest.raises(PermissionDenied, match=f"node {another.uuid} speaks for '{node.uuid}'"):
        another.orchestrator.heartbeat(beat, soon())
    leaving = orchestrator_pb2.UnregisterRequest(node_uuid=node.uuid, incarnation=node.incarnation)
    with pytest.raises(PermissionDenied, match="speaks for"):
        another.orchestrator.unregister(leaving, soon())
    with pytest.raises(PermissionDenied, match="Status is not for a node"):
        RemoteRuns(another.pool, another.orchestrator.address).status(
            orchestrator_pb2.StatusRequest(run="r", lease=closed.lease), soon()
        )
    stranger = ServedNode(network, 9)
    with pytest.raises(PermissionDenied, match="hosts no VNode of run 'r'"):
        stranger.orchestrator.resolve(orchestrator_pb2.ResolveRequest(run="r", vnode="v0"), soon())
    stranger.stop()
    first, second, third = map(network.where, ("v0", "v1", "v2"))
    peers = [(first, "v0"), (first, "v2"), (second, "v1"), (second, "v0"), (third, "v1"), (third, "v2")]
    for peer, vnode in peers:
        with pytest.raises(PermissionDenied, match=f"hosts no VNode of run 'r' that is upstream of '{vnode}'"):
            peer.orchestrator.resolve(orchestrator_pb2.ResolveRequest(run="r", vnode=vnode), soon())
    assert not any(place.token for place in network.status().locations), "who has no lease is given no tokens"
    closed.assert_untouched()


def test_nobody_says_that_it_is_where_another_is(closed: Closed) -> None:
    """Refused, and the orchestrator's calls go where they went before."""
    network, node = closed.network, closed.node
    another = next(each for each in network.nodes if each is not node)
    own, another.address = another.address, node.address.replace("127.0.0.1", "localhost")
    with pytest.raises(Conflict, match=f"another node is at {node.address}"):
        another.register()
    another.address = own
    assert another.beat() == []
    network.checkpoint(closed.lease, 0)
    closed.assert_untouched()


def test_versions_are_compared_before_anything_else(closed: Closed) -> None:
    with bearing("", closed.certificate(), closed.name) as pool:
        rows = [
            ("7-9", "this process is too old: it speaks wire protocol 1, the caller 7 to 9"),
            ("0-0", "the caller is too old: it speaks wire protocol 0, this process 1"),
        ]
        for value, why in rows:
            found = status_of(pool, closed.node.address, DESCRIBE, ((protocol.HEADER, value),))
            assert found == (grpc.StatusCode.FAILED_PRECONDITION, why)
        code, why = status_of(pool, closed.node.address, DESCRIBE, ((protocol.HEADER, "one"),))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        # Who names none speaks the first, as stubs that others generated do; two tokens are as good as none.
        twice = (*with_token("a")[1:], *with_token("b")[1:])
        assert status_of(pool, closed.node.address, DESCRIBE, twice)[0] is grpc.StatusCode.UNAUTHENTICATED


def test_no_method_is_open(closed: Closed) -> None:
    """Each method of each service, in pieces too, asks for a token before it looks at anything else."""
    members = str(closed.network.driver.join(soon()).members)
    served = [
        (closed.node.address, closed.name, (methods.VNODES, methods.PNODE)),
        (members, ORCHESTRATOR.dns, (methods.ORCHESTRATOR, methods.RUNS)),
    ]
    asked = 0
    for address, name, services in served:
        with bearing("", closed.certificate(), name) as pool:
            for path in (f"/{service.full_name}/{method.name}" for service in services for method in service.methods):
                code, why = status_of(pool, address, path, with_token(""))
                assert (code, "needs a token" in why) == (grpc.StatusCode.UNAUTHENTICATED, True), path
                asked += 1
    assert asked >= 21
    closed.assert_untouched()


def test_calls_go_on_while_the_orchestrator_is_away(closed: Closed) -> None:
    """Tokens and certificates outlive it, and their time is its own as it last told it."""
    network = closed.network
    network.orchestrator.close()
    vnode = RemoteVNode(network.driver_pool, closed.node.address)
    with pytest.raises(PNodeError) as answered:
        vnode.apply(vnode_pb2.ApplyRequest(fence=closed.place.fence), Deadline.after(10.0))
    assert "nobody asks for this" not in answered.value.message
    assert answered.value.reason == "INTERNAL", "the fake's own: it was let in"
    network.start()


def test_only_who_the_orchestrator_named_is_contacted(closed: Closed) -> None:
    vnode = RemoteVNode(closed.network.driver_pool, "127.0.0.1:9")
    with pytest.raises(PermissionDenied, match="was not given by the orchestrator"):
        vnode.apply(vnode_pb2.ApplyRequest(fence=closed.place.fence), soon())
