"""Addresses: an IPv4 or IPv6 address and a port, nothing else; and by whose word they are contacted."""

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
    origin,
    parse_address,
    parse_host,
    parse_orchestrator,
    peer_host,
)

DIGITS = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:1", Address("127.0.0.1", 1)),
        ("127.8.9.10:65535", Address("127.8.9.10", 65535)),
        ("localhost:50051", Address("127.0.0.1", 50051)),
        ("10.0.0.7:80", Address("10.0.0.7", 80)),
        ("[::1]:50051", Address("::1", 50051)),
        ("[0:0:0:0:0:0:0:1]:50051", Address("::1", 50051)),
        ("[2001:DB8:0:0::0007]:80", Address("2001:db8::7", 80)),
        ("[::ffff:10.0.0.7]:80", Address("10.0.0.7", 80)),
        ("[::FFFF:7f00:1]:80", Address("127.0.0.1", 80)),
    ],
)
def test_an_address_is_read_and_written(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address
    assert address.target == f"{'ipv6' if ':' in address.host else 'ipv4'}:{address}"
    assert address.is_loopback == (address.host.startswith("127.") or address.host == "::1")


@pytest.mark.parametrize(
    "text",
    [
        "example.org:80", "127.1:80", "2130706433:80", "0x7f000001:80", "010.0.0.1:80",
        "[127.0.0.1]:80", "[1::2::3]:80", "[::ffff:127.1]:80", "[:::]:80", "[::1.2.3]:80", "[12345::]:80",
    ],
)  # fmt: skip
def test_names_and_odd_spellings_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="is not an IPv4 or IPv6 address"):
        parse_address(text)


@pytest.mark.parametrize(
    "host", ["[::1", "::1]", "[[::1]]", "fe80::1%eth0", "fe80::1%25eth0", "[fe80::1%1]", "::1 ", ""]
)
def test_hosts_with_zones_or_half_a_bracket_are_refused(host: str) -> None:
    with pytest.raises(BadRequest, match="is not an IPv4 or IPv6 address"):
        parse_host(host)


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
        "::1:80",
        "[::1]",
        "[::1]80",
        "[]:80",
        "[::1%lo]:80",
        "[::1]:80#",
        "ipv6:[::1]:80",
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
    assert str(ipaddress.ip_address(address.host)) == address.host


@given(st.ip_addresses(v=6), st.integers(1, 65535))
def test_every_ipv6_address_has_one_spelling(found: ipaddress.IPv6Address, port: int) -> None:
    address = parse_address(f"[{found}]:{port}")
    assert address == parse_address(f"[{found.exploded.upper()}]:{port}") == parse_address(str(address))
    assert peer_host(f"ipv6:%5B{found}%5D:{port}") == peer_host(f"ipv6:[{found}]:{port}") == address.host
    assert address.is_loopback == (found.ipv4_mapped or found).is_loopback


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

HERE, ELSEWHERE, FAR = "127.0.0.1", "10.0.0.7", "2001:db8::7"


@pytest.mark.parametrize("source", [ELSEWHERE, FAR, "fd00::7"])
@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.9.9.9", "169.254.169.254", "224.0.0.1", "255.255.255.255",
        "::1", "fe80::1", "febf::1", "ff02::1", "::", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:224.0.0.1",
        # As tunnels and gateways write 127.0.0.1 and 169.254.169.254: compatible, NAT64, 6to4, Teredo.
        "::7f00:1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1",
        "2001:0:808:808:0:0:80ff:fffe",
    ],
)  # fmt: skip
def test_another_machine_cannot_send_us_to_ourselves(host: str, source: str) -> None:
    with pytest.raises(PermissionDenied):
        check_reachable(Address(parse_host(host), 80), source)


@pytest.mark.parametrize(
    ("host", "source"),
    [
        ("127.0.0.1", HERE), ("169.254.1.1", HERE), ("10.0.0.7", HERE), ("10.0.0.9", ELSEWHERE), ("8.8.8.8", ELSEWHERE),
        ("::1", "::1"), ("::1", HERE), ("127.0.0.1", "::1"), ("fe80::1", "::1"),
        ("fd00::9", FAR), ("fd00::9", ELSEWHERE), ("2606:4700::1111", FAR), ("10.0.0.9", FAR), ("2002:808:808::1", FAR),
    ],
)  # fmt: skip
def test_what_the_source_can_mean_is_taken(host: str, source: str) -> None:
    check_reachable(Address(host, 80), source)


@pytest.mark.parametrize("host", ["0.0.0.0", "224.0.0.1", "::", "ff02::1", "4000::1"])  # noqa: S104
def test_some_addresses_are_nobodys(host: str) -> None:
    with pytest.raises(PermissionDenied, match="no address of a peer"):
        check_reachable(Address(host, 80), HERE)


def test_a_caller_elsewhere_names_only_its_own_address() -> None:
    check_own(Address(ELSEWHERE, 80), ELSEWHERE)
    check_own(Address("127.0.0.1", 80), HERE)
    check_own(Address(ELSEWHERE, 80), HERE)
    with pytest.raises(PermissionDenied, match=r"not the caller's own address: it calls from 10\.0\.0\.7"):
        check_own(Address("10.0.0.8", 80), ELSEWHERE)
    check_own(Address(FAR, 80), FAR)
    check_own(Address(FAR, 80), "::1")
    for other in ("2001:db8::8", ELSEWHERE, "::1"):
        with pytest.raises(PermissionDenied):
            check_own(Address(other, 80), FAR)


def test_a_peer_is_known_by_its_host_whatever_its_family() -> None:
    assert peer_host("ipv4:10.0.0.7:41234") == "10.0.0.7"
    assert peer_host("ipv6:%5B2001:db8::7%5D:41234") == "2001:db8::7"
    assert peer_host("ipv6:%5B::ffff:10.0.0.7%5D:41234") == "10.0.0.7"
    for odd in ("unix:/run/x", "ipv4:", "ipv6:%5Bfe80::1%25eth0%5D:9", "", "10.0.0.7:80"):
        with pytest.raises(BadRequest):
            peer_host(odd)


def test_a_stranger_is_a_host_or_a_network_of_which_it_has_every_address() -> None:
    assert origin("ipv4:10.0.0.7:1") == origin("ipv4:10.0.0.7:2") != origin("ipv4:10.0.0.8:1")
    assert origin("ipv6:%5B2001:db8::7%5D:1") == origin("ipv6:%5B2001:db8::ffff:8%5D:2") == "2001:db8::/64"
    assert origin("ipv6:%5B2001:db8:0:1::7%5D:1") != "2001:db8::/64"
    assert origin("unix:/run/x") == "unix"
