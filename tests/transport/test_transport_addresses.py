"""Addresses: host:port on loopback, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pnode.errors import BadRequest
from pnode.transport.addresses import Address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:1", Address("127.0.0.1", 1)),
        ("127.8.9.10:65535", Address("127.8.9.10", 65535)),
        ("localhost:50051", Address("127.0.0.1", 50051)),
    ],
)
def test_loopback_is_accepted(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address
    assert address.target == f"ipv4:{address}"


@pytest.mark.parametrize(
    "text", ["10.0.0.1:80", "0.0.0.0:80", "169.254.169.254:80", "example.org:80", "127.1:80", "2130706433:80"]
)
def test_everything_beyond_loopback_waits_for_tls(text: str) -> None:
    with pytest.raises(BadRequest, match="refused until TLS exists"):
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
    assert address.host.startswith("127.")
