"""Addresses: an IPv4 address and a port, nothing else; and by whose word they are contacted."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pnode.errors import BadRequest, PermissionDenied
from pnode.transport.addresses import (
    Address,
    OrchestratorAddress,
    check_own,
    check_reachable,
    parse_address,
    parse_orchestrator,
)

DIGITS = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:1", Address("127.0.0.1", 1)),
        ("127.8.9.10:65535", Address("127.8.9.10", 65535)),
        ("localhost:50051", Address("127.0.0.1", 50051)),
        ("10.0.0.7:80", Address("10.0.0.7", 80)),
    ],
)
def test_an_address_is_read_and_written(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address
    assert address.target == f"ipv4:{address}"
    assert address.is_loopback == address.host.startswith("127.")


@pytest.mark.parametrize("text", ["example.org:80", "127.1:80", "2130706433:80", "0x7f000001:80", "010.0.0.1:80"])
def test_names_and_odd_spellings_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="is not an IPv4 address"):
        parse_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:0",
        "127.0.0.1:65536",
        "127.0.0.1:+80",
        "127.0.0.1: 80",
        "127.0.0.1:80\n",
        "127.0.0.1:٨٠",
        "127.0.0.1:80,10.0.0.1:80",
        "unix:/run/docker.sock",
        "dns:///localhost:80",
        "ipv4:127.0.0.1:80",
        "user@127.0.0.1:80",
        "[::1]:80",
        "x" * 100_000,
    ],
)
def test_what_is_not_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="is not an address") as caught:
        parse_address(text)
    assert len(caught.value.message) < 300


@settings(deadline=None)
@given(st.text())
def test_no_text_does_harm(text: str) -> None:
    try:
        address = parse_address(text)
    except BadRequest:
        return
    assert str(ipaddress.IPv4Address(address.host)) == address.host


def test_an_orchestrator_has_a_fingerprint_where_it_has_tls() -> None:
    plain = parse_orchestrator("127.0.0.1:50050")
    assert plain == OrchestratorAddress(Address("127.0.0.1", 50050))
    known = parse_orchestrator(f"10.0.0.1:50050#sha256:{DIGITS}")
    assert known.fingerprint == f"sha256:{DIGITS}"
    assert parse_orchestrator(str(known)) == known
    assert parse_orchestrator(str(plain)) == plain


@pytest.mark.parametrize("mark", ["#", "#sha256:", f"#{DIGITS}", f"#sha256:{DIGITS.upper()}", f"#sha256:{DIGITS}0"])
def test_a_spoiled_fingerprint_is_refused(mark: str) -> None:
    with pytest.raises(BadRequest, match="is not a fingerprint"):
        parse_orchestrator(f"10.0.0.1:50050{mark}")


# Whose word is taken for which address

HERE, ELSEWHERE = "127.0.0.1", "10.0.0.7"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "169.254.169.254", "224.0.0.1", "255.255.255.255"])
def test_another_machine_cannot_send_us_to_ourselves(host: str) -> None:
    with pytest.raises(PermissionDenied):
        check_reachable(Address(host, 80), ELSEWHERE)


@pytest.mark.parametrize(
    ("host", "source"),
    [("127.0.0.1", HERE), ("169.254.1.1", HERE), ("10.0.0.7", HERE), ("10.0.0.9", ELSEWHERE), ("8.8.8.8", ELSEWHERE)],
)
def test_what_the_source_can_mean_is_taken(host: str, source: str) -> None:
    check_reachable(Address(host, 80), source)


@pytest.mark.parametrize("host", ["0.0.0.0", "224.0.0.1"])  # noqa: S104
def test_some_addresses_are_nobodys(host: str) -> None:
    with pytest.raises(PermissionDenied, match="no address of a peer"):
        check_reachable(Address(host, 80), HERE)


def test_a_caller_elsewhere_names_only_its_own_address() -> None:
    check_own(Address(ELSEWHERE, 80), ELSEWHERE)
    check_own(Address("127.0.0.1", 80), HERE)
    check_own(Address(ELSEWHERE, 80), HERE)
    with pytest.raises(PermissionDenied, match=r"not the caller's own address: it calls from 10\.0\.0\.7"):
        check_own(Address("10.0.0.8", 80), ELSEWHERE)
