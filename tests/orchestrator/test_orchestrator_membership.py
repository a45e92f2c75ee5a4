"""Membership: incarnations fence ghosts; silence expires. Leases and patience, too: small pure parts."""

from __future__ import annotations

import pytest
from orchestrator_fakes import capabilities, uuid_of

from pnode.errors import Busy, Conflict, LeaseLost
from pnode.orchestrator.leases import Lease
from pnode.orchestrator.membership import Member, Membership
from pnode.orchestrator.patience import Patience
from pnode.v1 import node_pb2

A, B = uuid_of(1), uuid_of(2)
HERE, ELSEWHERE = "127.0.0.1:1", "127.0.0.1:2"
LOAD = node_pb2.Load()


@pytest.fixture
def members() -> Membership:
    return Membership(silence_s=90.0, max_nodes=2)


def join(members: Membership, uuid: str = A, address: str = "", now: float = 0.0) -> Member:
    return members.register(uuid, address or (HERE if uuid == A else ELSEWHERE), capabilities(), now)


def test_incarnations_rise(members: Membership) -> None:
    assert [join(members, A).incarnation, join(members, B).incarnation, join(members, A).incarnation] == [1, 2, 3]


def test_a_heartbeat_keeps_a_member(members: Membership) -> None:
    member = join(members)
    assert members.heartbeat(A, member.incarnation, node_pb2.Load(num_vnodes=3), 80.0) is member
    assert member.load.num_vnodes == 3
    assert members.silent(170.0) == []
    assert members.silent(170.1) == [member]


def test_its_memory_is_that_of_its_last_heartbeat(members: Membership) -> None:
    member = join(members)
    registered = member.capabilities.vnode_memory_bytes
    assert member.memory_bytes == registered > 0
    for granted in (0, 5, 2 * registered):
        members.heartbeat(A, member.incarnation, node_pb2.Load(granted_memory_bytes=granted), 1.0)
        assert member.memory_bytes == granted
    members.heartbeat(A, member.incarnation, LOAD, 2.0)
    assert member.memory_bytes == registered, "an older node does not tell"


@pytest.mark.parametrize("incarnation", [0, 2, 99])
def test_another_incarnation_is_nobody(members: Membership, incarnation: int) -> None:
    join(members)
    assert members.heartbeat(A, incarnation, LOAD, 1.0) is None
    assert members.heartbeat(B, 1, LOAD, 1.0) is None
    assert not members.remove(A, incarnation)


def test_a_restarted_node_fences_its_older_self(members: Membership) -> None:
    old = join(members).incarnation
    new = join(members)
    assert members.heartbeat(A, old, LOAD, 1.0) is None
    assert not members.remove(A, old)
    assert members.remove(A, new.incarnation)


def test_a_ghost_elsewhere_is_refused_rather_than_asked_back(members: Membership) -> None:
    old = join(members, A, HERE).incarnation
    join(members, A, ELSEWHERE)
    with pytest.raises(Conflict, match=ELSEWHERE):
        members.heartbeat(A, old, LOAD, 1.0)


def test_an_address_is_its_members_until_that_one_is_gone(members: Membership) -> None:
    first = join(members, A, HERE)
    with pytest.raises(Conflict, match=f"another node is at {HERE}"):
        join(members, B, HERE)
    assert members.every() == [first]
    assert members.remove(A, first.incarnation)
    assert join(members, B, HERE).address == HERE


def test_a_successor_is_one_of_one_incarnation(members: Membership) -> None:
    first = join(members, A, HERE)
    members.check(B, HERE, successor_of=first.incarnation)
    again = join(members, A, HERE)
    for incarnation in (0, first.incarnation, again.incarnation + 1):
        with pytest.raises(Conflict):
            members.check(B, HERE, successor_of=incarnation)
    members.check(B, HERE, successor_of=again.incarnation)


def test_a_successor_needs_no_more_room_than_there_was(members: Membership) -> None:
    first, _ = join(members, A), join(members, B)
    members.check(uuid_of(3), HERE, successor_of=first.incarnation)
    for address in (ELSEWHERE, "127.0.0.1:3"):
        with pytest.raises(Busy):
            members.check(uuid_of(3), address, successor_of=first.incarnation)


def test_a_full_house_takes_nobody_new(members: Membership) -> None:
    join(members, A)
    join(members, B)
    with pytest.raises(Busy):
        join(members, uuid_of(3))
    join(members, B)


def test_a_drain_is_timed_from_its_first_word(members: Membership) -> None:
    member = join(members)
    assert not member.draining
    member.drain(10.0)
    member.drain(50.0)
    assert member.draining
    assert members.overdue(70.0, 60.0) == []
    assert members.overdue(70.1, 60.0) == [member]


def test_lease_of_one_holder_is_renewed_and_keeps_its_id() -> None:
    lease = Lease("a", "first", 10.0)
    lease.take("a", "second", 5.0, 10.0)
    assert (lease.id, lease.expires_s) == ("first", 15.0)
    lease.renew("first", 12.0, 10.0)
    assert lease.expires_s == 22.0


def test_lease_passes_on_only_when_it_expired() -> None:
    lease = Lease("a", "first", 10.0)
    with pytest.raises(LeaseLost, match=r"another driver holds this run for another 1\.0 s") as refused:
        lease.take("b", "second", 9.0, 10.0)
    assert refused.value.retry_after_s == pytest.approx(1.0)
    lease.renew("first", 11.0, 10.0)
    lease.take("b", "second", 21.0, 10.0)
    assert (lease.holder, lease.id) == ("b", "second")
    with pytest.raises(LeaseLost):
        lease.renew("first", 22.0, 10.0)
    with pytest.raises(LeaseLost):
        lease.check("first")


def test_a_holder_that_came_back_fences_its_earlier_life_at_once() -> None:
    lease = Lease("a", "first", 10.0, "life 1")
    lease.take("a", "again", 1.0, 10.0, "life 1")
    assert lease.id == "first"
    lease.take("a", "second", 2.0, 10.0, "life 2")
    assert lease.id == "second"
    for late in (3.0, 99.0):
        with pytest.raises(LeaseLost):
            lease.take("a", "third", late, 10.0, "life 1")
    lease.check("second")


def test_a_lease_is_its_owners_whoever_names_its_holder() -> None:
    lease = Lease("a", "first", 10.0, "life 1", "key 1")
    for holder, owner in (("a", "key 2"), ("a", ""), ("b", "key 1")):
        with pytest.raises(LeaseLost) as refused:
            lease.take(holder, "stolen", 2.0, 10.0, "life 2", owner=owner)
        assert refused.value.retry_after_s == pytest.approx(8.0)
    for owner in ("key 2", ""):
        with pytest.raises(LeaseLost):
            lease.renew("first", 2.0, 10.0, owner=owner)
    assert lease == Lease("a", "first", 10.0, "life 1", "key 1"), "nothing has changed"
    lease.take("a", "second", 2.0, 10.0, "life 2", owner="key 1")
    lease.check("second", owner="key 1")
    lease.take("a", "third", 12.0, 10.0, "life 3", owner="key 2")
    lease.check("third", owner="key 2")
    with pytest.raises(LeaseLost):
        lease.check("third", owner="key 1")


def test_patience_ends_only_without_progress() -> None:
    patience = Patience(max_losses=2, retry_s=0.1, retry_cap_s=1.0, avoid_s=5.0)
    assert [patience.lost("a"), patience.lost("a"), patience.lost("b"), patience.lost("a")] == [0, 0, 0, 3]
    patience.progressed(4)
    assert patience.lost("a") == 0
    patience.progressed(4)
    assert [patience.lost("a"), patience.lost("a")] == [0, 3]


def test_pauses_double_up_to_the_cap_and_begin_again() -> None:
    patience = Patience(max_losses=2, retry_s=0.1, retry_cap_s=0.5, avoid_s=5.0)
    assert [patience.pause_s() for _ in range(6)] == [0.0, 0.1, 0.2, 0.4, 0.5, 0.5]
    patience.served()
    assert patience.pause_s() == 0.0


def test_a_node_is_avoided_for_a_while() -> None:
    patience = Patience(max_losses=2, retry_s=0.1, retry_cap_s=0.5, avoid_s=5.0)
    patience.avoid("v", A, 10.0)
    assert patience.avoided(14.9) == {("v", A)}
    assert patience.avoided(15.0) == frozenset()
