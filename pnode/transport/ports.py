"""Ports that servers are bound to: what cannot be bound, or must not be, is said in our own words."""

from __future__ import annotations

import errno
import socket

import grpc

from pnode.errors import BadRequest, ConfigError
from pnode.transport.addresses import Address, is_loopback, parse_host
from pnode.transport.credentials import ServerTls, server_credentials


def check_bindable(host: str, port: int, *, tls: bool = False) -> str:
    """The address that `host` names, when a server could serve there now.

    For those with much to do before they serve: whoever waited for that should not learn then that the port was taken.
    Raises ConfigError where the host is beyond loopback without TLS, or the port cannot be bound.
    """
    try:
        address = parse_host(host)
    except BadRequest as error:
        raise ConfigError(f"host {error.message}") from error
    if not tls and not is_loopback(address):
        raise ConfigError(f"host {address} is beyond loopback: refused without TLS")
    _probe(address, port)
    return address


def bind(inner: grpc.Server, host: str, port: int, tls: ServerTls | None) -> int:
    """The port that a server was bound to; 0 lets the system choose. Raises ConfigError as `check_bindable` does."""
    where = str(Address(check_bindable(host, port, tls=tls is not None), port))
    try:
        if tls is None:
            return inner.add_insecure_port(where)
        return inner.add_secure_port(where, server_credentials(tls))
    except RuntimeError as error:
        raise ConfigError(f"{where} cannot be bound") from error


def _probe(address: str, port: int) -> None:
    """Bind once without gRPC, which would log in its own words and not say why it failed."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"port {port} does not lie between 0 and 65535")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(f"port {port} is in use") from error
            raise ConfigError(f"port {port} of {address} cannot be bound: {error.strerror}") from error
