"""Challenges are good for one join within a minute; an authority outlives restarts and issues what it was asked for."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from pnode.errors import BadRequest, ConfigError, Unauthenticated
from pnode.security import certificates
from pnode.security.authority import Authority
from pnode.security.joining import Challenges, statement
from pnode.security.principals import DRIVER, NODE, ORCHESTRATOR, Principal

UUID = "5f0c0f6e-34e0-4d8e-9f5c-5f6e34e04d8e"
WHO = Principal(NODE, UUID)


class Clock:
    def __init__(self) -> None:
        self.now = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


# Challenges


def test_a_challenge_is_taken_back_once(clock: Clock) -> None:
    challenges = Challenges(clock)
    first, second = challenges.make(), challenges.make()
    assert first != second
    challenges.use(first)
    with pytest.raises(Unauthenticated, match="used before: a join cannot be replayed"):
        challenges.use(first)
    challenges.use(second)


def test_a_challenge_ends_and_is_then_forgotten(clock: Clock) -> None:
    challenges = Challenges(clock)
    late, used = challenges.make(), challenges.make()
    challenges.use(used)
    clock.now += 61.0
    for challenge in (late, used):
        with pytest.raises(Unauthenticated, match="older than 60 s"):
            challenges.use(challenge)
    challenges.use(challenges.make())
    assert len(challenges._used) == 1


def test_used_challenges_are_forgotten_in_the_order_of_their_use(clock: Clock) -> None:
    """Whatever the order in which they were made; and none while it could still be used again."""
    challenges = Challenges(clock)
    made = [challenges.make() for _ in range(3)]
    for challenge in reversed(made):
        challenges.use(challenge)
        clock.now += 25.0
    for challenge in made[1:]:
        with pytest.raises(Unauthenticated, match="older than 60 s"):
            challenges.use(challenge)
    challenges.use(challenges.make())
    assert len(challenges._used) == 3, "the one that was used 75 s ago is forgotten"


def test_a_challenge_of_another_life_is_not_taken(clock: Clock) -> None:
    with pytest.raises(Unauthenticated, match="not given out by this orchestrator"):
        Challenges(clock).use(Challenges(clock).make())


@given(st.binary(max_size=100))
def test_no_bytes_are_a_challenge(raw: bytes) -> None:
    with pytest.raises(Unauthenticated):
        Challenges(Clock()).use(raw)


def test_no_two_joins_have_the_same_statement() -> None:
    """Lengths are part of it: no field can lend characters to its neighbour."""
    base: dict[str, Any] = {"role": "node", "uuid": UUID, "challenge": b"c", "request": b"r", "fingerprint": "f"}
    others: list[dict[str, Any]] = [
        {"role": "nod", "uuid": "e" + UUID},
        {"challenge": b"d"},
        {"request": b"s"},
        {"fingerprint": ""},
        {"role": "driver"},
    ]
    statements = {statement(**{**base, **other}) for other in [{}, *others]}
    assert len(statements) == 6


# The authority


def test_an_authority_is_kept_owner_only(tmp_path: Path, clock: Clock) -> None:
    first = Authority.kept(tmp_path / "keys", clock)
    again = Authority.kept(tmp_path / "keys", clock)
    assert (first.fingerprint, first.pem, first.signer.public) == (again.fingerprint, again.pem, again.signer.public)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys").iterdir()} == {0o600}
    assert Authority.fresh(clock).fingerprint != first.fingerprint


def test_a_spoiled_authority_is_refused(tmp_path: Path, clock: Clock) -> None:
    Authority.kept(tmp_path / "a", clock)
    Authority.kept(tmp_path / "b", clock)
    path = tmp_path / "a" / "authority.pem"
    key, certificate = path.read_bytes(), (tmp_path / "b" / "authority.pem").read_bytes()
    marker = b"-----BEGIN CERTIFICATE-----"
    mixed = key[: key.index(marker)] + certificate[certificate.index(marker) :]
    for content, why in ((b"nonsense", "holds no authority"), (mixed, "a certificate of another key")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=why):
            Authority.kept(tmp_path / "a", clock)


def issued(authority: Authority, who: Principal, life_s: float = 3600.0) -> x509.Certificate:
    pem = authority.issue(certificates.new_key().request, who, life_s)
    return x509.load_pem_x509_certificate(pem)


def test_a_certificate_says_who_and_until_when(clock: Clock) -> None:
    authority = Authority.fresh(clock)
    made = issued(authority, WHO)
    made.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.pem))
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [WHO.dns]
    now = datetime.datetime.fromtimestamp(clock.now, datetime.UTC)
    assert made.not_valid_after_utc == now + datetime.timedelta(hours=1)
    assert made.not_valid_before_utc < now - datetime.timedelta(hours=20), "home clocks are late"
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_only_who_serves_may_show_it_as_a_server(clock: Clock) -> None:
    authority = Authority.fresh(clock)
    for who, serves in ((WHO, True), (ORCHESTRATOR, True), (Principal(DRIVER, UUID), False)):
        usage = issued(authority, who).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert (ExtendedKeyUsageOID.SERVER_AUTH in usage) == serves
        assert ExtendedKeyUsageOID.CLIENT_AUTH in usage


def request_for(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "anybody")])
    made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.DER)


def test_a_request_names_nothing_that_counts(clock: Clock) -> None:
    """The name in a certificate is the one that was proven, whatever the request asks for."""
    pem = Authority.fresh(clock).issue(request_for(ec.generate_private_key(ec.SECP256R1())), WHO, 60.0)
    assert b"anybody" not in x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)


def test_bad_requests_are_refused(clock: Clock) -> None:
    good = certificates.new_key().request
    # The signature stands at the end.
    unsigned = good[:-4] + bytes(byte ^ 0x55 for byte in good[-4:])
    rows = [
        (b"", "malformed"),
        (good[:100], "malformed"),
        (unsigned, "is not signed by its key|malformed"),
        (good + bytes(5000), "4096 at most"),
        (request_for(ec.generate_private_key(ec.SECP384R1())), "not for a P-256 key"),
        (request_for(rsa.generate_private_key(65537, 2048)), "not for a P-256 key"),
    ]
    for request, why in rows:
        with pytest.raises(BadRequest, match=why):
            Authority.fresh(clock).issue(request, WHO, 60.0)
