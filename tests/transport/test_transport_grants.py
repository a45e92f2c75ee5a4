"""Tokens for VNodes: the newest of each generation, few generations, and none for whom there is none."""

from __future__ import annotations

import pytest

from pnode.errors import PermissionDenied
from pnode.security.identity import Identity
from pnode.transport import methods
from pnode.transport.addresses import parse_orchestrator
from pnode.transport.grants import Grants
from pnode.transport.joiner import Joiner
from pnode.v1 import orchestrator_pb2, vnode_pb2


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def location(
    token: str, *, vnode: str = "v", generation: int = 1, address: str = "127.0.0.1:9"
) -> orchestrator_pb2.Location:
    fence = vnode_pb2.Fence(run="r", vnode=vnode, generation=generation, epoch=1)
    return orchestrator_pb2.Location(fence=fence, node_uuid="u", address=address, token=token)


def apply(vnode: str = "v", generation: int = 1) -> vnode_pb2.ApplyRequest:
    return vnode_pb2.ApplyRequest(fence=vnode_pb2.Fence(run="r", vnode=vnode, generation=generation))


def test_each_generation_has_its_own_token() -> None:
    grants = Grants(Clock())
    assert grants.token_for(apply()) == ""
    grants.learn(location("first"))
    grants.learn(location("second", generation=2))
    assert grants.token_for(apply()) == "first"
    assert grants.token_for(apply(generation=2)) == "second"
    assert grants.token_for(apply(generation=3)) == ""
    assert grants.token_for(apply("w")) == ""
    grants.learn(location("third", generation=3))
    assert grants.token_for(apply()) == "", "that generation is over for all"
    assert grants.token_for(vnode_pb2.DescribeRequest(run="r", vnode="v")) == "third"
    grants.learn(location(""))
    assert grants.token_for(apply(generation=3)) == "third"


def test_old_tokens_are_named_to_be_renewed() -> None:
    clock = Clock()
    grants = Grants(clock)
    grants.learn(location("old"))
    clock.now += 5.0
    grants.learn(location("new", vnode="w"))
    assert grants.older_than(5.0) == [("r", "v")]
    grants.learn(location("renewed"))
    assert grants.older_than(5.0) == []
    grants.forget("r", "v")
    assert grants.token_for(apply()) == ""


def test_what_is_kept_is_bounded() -> None:
    grants = Grants(Clock())
    for number in range(4100):
        grants.learn(location("token", vnode=f"v{number}"))
    assert grants.token_for(apply("v3")) == ""
    assert grants.token_for(apply("v4")) == "token"


@pytest.mark.parametrize("address", ["127.0.0.1:9", "169.254.169.254:80", "0.0.0.0:80"])
def test_an_orchestrator_elsewhere_sends_nobody_to_itself(address: str) -> None:
    reply = orchestrator_pb2.ResolveReply(location=location("token", address=address))
    elsewhere = Joiner(Identity.fresh(), parse_orchestrator("10.0.0.1:50050#sha256:" + "0" * 64))
    with pytest.raises(PermissionDenied):
        elsewhere.learn(methods.ORCHESTRATOR.full_name, reply)
    assert elsewhere.grants.token_for(apply()) == "", "nothing of it is kept"


def test_where_it_is_configured_any_address_is_taken() -> None:
    reply = orchestrator_pb2.ResolveReply(location=location("token"))
    told = parse_orchestrator("10.0.0.1:50050#sha256:" + "0" * 64)
    trusting = Joiner(Identity.fresh(), told, any_address=True)
    trusting.learn(methods.ORCHESTRATOR.full_name, reply)
    assert trusting.grants.token_for(apply()) == "token"


def test_only_the_orchestrators_word_is_learned() -> None:
    joiner = Joiner(Identity.fresh(), parse_orchestrator("127.0.0.1:50050"))
    joiner.learn(methods.VNODES.full_name, orchestrator_pb2.ResolveReply(location=location("token")))
    assert joiner.grants.token_for(apply()) == ""
