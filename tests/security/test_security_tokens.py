"""Call tokens: one algorithm, one header, exactly our claims; nothing that anybody else wrote is ever read."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from pnode.errors import PermissionDenied, Unauthenticated
from pnode.security import tokens
from pnode.security.clock import NetworkClock
from pnode.security.principals import DRIVER, NODE, ORCHESTRATOR, Principal, from_dns
from pnode.security.tokens import Claims, Reader, Signer

UUID = "5f0c0f6e-34e0-4d8e-9f5c-5f6e34e04d8e"
KEY = Ed25519PrivateKey.generate()
SIGNER = Signer(KEY)
READER = Reader(SIGNER.public)
VNODE = Claims(
    Principal(DRIVER, UUID), tokens.VNODE, 1000, 2000, run="r", vnode="v", generation=7, kinds=("forward", "train")
)


@pytest.mark.parametrize(
    "claims",
    [
        VNODE,
        Claims(Principal(NODE, UUID), tokens.MEMBER, 1, 2),
        Claims(ORCHESTRATOR, tokens.NODE, 1, 2, node=UUID),
        replace(VNODE, run="r" * 100, vnode="v" * 100, kinds=()),
    ],
)
def test_what_is_signed_is_read(claims: Claims) -> None:
    token = SIGNER.sign(claims)
    assert READER.read(token) == claims
    assert READER.read(token) == claims, "the second time from what is known"


def forged(payload: dict[str, Any], key: Any = KEY, algorithm: str = "EdDSA", **header: Any) -> str:
    return jwt.encode(payload, key, algorithm=algorithm, headers=header)


GOOD: dict[str, Any] = jwt.decode(SIGNER.sign(VNODE), options={"verify_signature": False})


def encoded(part: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("", "malformed"),
        ("a.b.c", "malformed"),
        ("é" * 40, "malformed"),
        ("x" * 3000, "2048 at most"),
        (forged(GOOD, Ed25519PrivateKey.generate()), "not signed by this network's orchestrator"),
        (forged(GOOD, "a secret of thirty-two bytes at least", "HS256"), "another header"),
        (f"{encoded({'alg': 'none', 'typ': 'JWT'})}.{encoded(GOOD)}.", "another header"),
        (forged(GOOD, kid="1"), "another header"),
        (forged(GOOD, typ="at+jwt"), "another header"),
        (forged({**GOOD, "more": 1}), "other claims"),
        (forged({name: value for name, value in GOOD.items() if name != "gen"}), "other claims"),
        (forged({**GOOD, "gen": "7"}), "other claims"),
        (forged({**GOOD, "gen": True}), "other claims"),
        (forged({**GOOD, "exp": 2000.5}), "other claims"),
        (forged({**GOOD, "kinds": "forward"}), "other claims"),
        (forged({**GOOD, "aud": "member"}), "other claims"),
        (forged({**GOOD, "aud": "everything"}), "other claims"),
    ],
)
def test_what_is_not_just_ours_is_refused(token: str, why: str) -> None:
    with pytest.raises(Unauthenticated, match=why) as refused:
        READER.read(token)
    assert token == "" or token not in refused.value.message, "no secret goes into messages and logs"


@settings(deadline=None)
@given(st.data())
def test_no_changed_token_is_read(data: st.DataObject) -> None:
    token = SIGNER.sign(VNODE)
    at = data.draw(st.integers(0, len(token) - 1))
    # The last character of the signature carries four bits that mean nothing to a lax reader.
    other = data.draw(st.characters(min_codepoint=33, max_codepoint=126).filter(lambda found: found != token[at]))
    changed = token[:at] + other + token[at + 1 :]
    try:
        claims = READER.read(changed)
    except Unauthenticated:
        return
    assert claims == VNODE
    assert at == len(token) - 1


@settings(deadline=None)
@given(st.text())
def test_no_text_does_harm(text: str) -> None:
    with pytest.raises(Unauthenticated):
        READER.read(text)


def test_a_token_is_judged_by_the_time_that_it_is_told() -> None:
    VNODE.check_time(1000)
    VNODE.check_time(980)
    VNODE.check_time(1999.9)
    with pytest.raises(Unauthenticated, match="ended 10 s ago"):
        VNODE.check_time(2010)
    with pytest.raises(Unauthenticated, match="begins only in 40 s"):
        VNODE.check_time(960)


def test_a_token_is_for_one_vnode_in_one_generation() -> None:
    VNODE.check_vnode("r", "v")
    VNODE.check_generation(7)
    for run, vnode in (("r", "w"), ("s", "v"), ("", "")):
        with pytest.raises(PermissionDenied, match="the token is for VNode 'v' of run 'r'"):
            VNODE.check_vnode(run, vnode)
    for generation in (6, 8):
        with pytest.raises(PermissionDenied, match=f"for generation 7, the call for {generation}"):
            VNODE.check_generation(generation)


def test_a_flood_of_tokens_is_not_kept() -> None:
    reader = Reader(SIGNER.public)
    for number in range(1100):
        reader.read(SIGNER.sign(replace(VNODE, generation=number)))
    assert len(reader._known) == 1024


# The names in certificates


def test_names_in_certificates_are_read_back() -> None:
    for who in (Principal(NODE, UUID), Principal(DRIVER, UUID), ORCHESTRATOR):
        assert from_dns(who.dns) == who


@pytest.mark.parametrize(
    "name", ["", "example.org", f"{UUID}.king.pnode.internal", f"x.{UUID}.node.pnode.internal", "node.pnode.internal"]
)
def test_other_names_are_nobody(name: str) -> None:
    assert from_dns(name) is None


# The orchestrator's time


def test_the_networks_time_is_what_the_orchestrator_said_and_runs_on() -> None:
    steady = [50.0]
    clock = NetworkClock(lambda: steady[0])
    assert clock.now() is None
    clock.set(1_000_000.0)
    steady[0] += 30.0
    assert clock.now() == 1_000_030.0
    clock.set(900_000.0)
    assert clock.now() == 900_000.0
    assert abs(1_000_000.0 - time.time()) > 1e6, "this machine's own clock says something else"
