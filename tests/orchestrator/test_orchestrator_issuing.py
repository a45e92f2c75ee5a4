"""What the orchestrator gives away: to each its own, for a time, and always with half of it left."""

from __future__ import annotations

from cryptography import x509
from orchestrator_time import Clock

from pnode.orchestrator.issuing import Issuer
from pnode.security.authority import Authority
from pnode.security.principals import DRIVER, NODE, Principal
from pnode.v1 import orchestrator_pb2, vnode_pb2

DRIVING = Principal(DRIVER, "5f0c0f6e-34e0-4d8e-9f5c-5f6e34e04d8e")
HOSTING = Principal(NODE, "5f0c0f6e-34e0-4d8e-9f5c-5f6e34e04d8f")
TOKEN_S = 400.0


def location(vnode: str, address: str = "127.0.0.1:9") -> orchestrator_pb2.Location:
    fence = vnode_pb2.Fence(run="r", vnode=vnode, generation=3, epoch=1)
    return orchestrator_pb2.Location(fence=fence, address=address)


def issuer(clock: Clock) -> Issuer:
    return Issuer(Authority.fresh(clock), token_s=TOKEN_S, certificate_s=1000.0)


def test_a_driver_trains_by_the_first_vnode_alone() -> None:
    made = issuer(Clock())
    status = orchestrator_pb2.RunStatus(locations=[location("v0"), location("v1"), location("v2", address="")])
    made.for_driver(HOSTING, status)
    made.for_driver(None, status)
    assert not any(place.token for place in status.locations)
    made.for_driver(DRIVING, status)
    first, second = (made.reader.read(place.token) for place in status.locations[:2])
    assert status.locations[2].token == "", "it has no place"
    assert (first.holder, first.run, first.vnode, first.generation) == (DRIVING, "r", "v0", 3)
    assert set(first.kinds) == {"apply", "describe", "forward", "train"}
    assert set(second.kinds) == {"apply", "describe", "forward"}


def test_a_peer_may_train_and_nothing_that_is_a_drivers() -> None:
    made, place = issuer(Clock()), location("v1")
    made.for_peer(None, place)
    assert place.token == ""
    made.for_peer(HOSTING, place)
    assert set(made.reader.read(place.token).kinds) == {"train"}


def test_half_of_a_tokens_life_is_left_when_its_holder_asks_again() -> None:
    """Members ask after a quarter of the life, and are given what was made at most a quarter ago."""
    clock = Clock()
    made = issuer(clock)
    first = made.member_token(HOSTING)
    assert made.reader.read(first).expires_s == 501
    clock.now += TOKEN_S / 4 - 1.0
    assert made.member_token(HOSTING) == first
    assert made.renew_s == TOKEN_S / 4
    clock.now += made.renew_s
    assert made.reader.read(first).expires_s - clock.now > TOKEN_S / 2
    assert made.member_token(HOSTING) != first
    assert made.member_token(DRIVING) != made.member_token(HOSTING)


def test_the_orchestrators_own_certificate_is_renewed() -> None:
    clock = Clock()
    made = issuer(clock)
    first = made.tls_identity()
    assert made.tls_identity() is first
    clock.now += 501.0
    second = made.tls_identity()
    assert second != first
    ends = [x509.load_pem_x509_certificate(each.certificate).not_valid_after_utc for each in (first, second)]
    assert (ends[1] - ends[0]).total_seconds() == 501.0
