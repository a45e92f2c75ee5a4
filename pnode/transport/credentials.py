"""From TLS identities to gRPC's credentials, for servers that change theirs while they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import grpc

from pnode.security.certificates import TlsIdentity
from pnode.security.principals import Principal, from_dns


class ServerTls(NamedTuple):
    """`identity` is asked at every handshake, so a renewed certificate needs no restart.

    `of_members`: only those with a certificate of the same authority may connect. Else anybody may: a door.
    `came` is told of every connection, before anything is known of it.
    """

    identity: Callable[[], TlsIdentity]
    of_members: bool = True
    came: Callable[[], None] = lambda: None


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """What a server shows and asks for."""
    shown = tls.identity()

    configuration = _configuration(shown, of_members=tls.of_members)

    def current() -> grpc.ServerCertificateConfiguration:
        nonlocal shown, configuration
        tls.came()
        found = tls.identity()
        if found is not shown:
            configuration = _configuration(found, of_members=tls.of_members)
            shown = found
        return configuration

    return grpc.dynamic_ssl_server_credentials(configuration, current, require_client_authentication=tls.of_members)


def _configuration(identity: TlsIdentity, *, of_members: bool) -> grpc.ServerCertificateConfiguration:
    believed = identity.authority if of_members else None
    return grpc.ssl_server_certificate_configuration([(identity.key, identity.certificate)], believed)


def channel_credentials(identity: TlsIdentity) -> grpc.ChannelCredentials:
    """What a client shows and whom it believes. Without a key of its own it is a stranger at a door."""
    if not identity.key:
        return grpc.ssl_channel_credentials(identity.authority)
    return grpc.ssl_channel_credentials(identity.authority, identity.key, identity.certificate)


def peer_principal(context: grpc.ServicerContext) -> Principal | None:
    """Whose certificate the caller's connection has; None without one, or with one that names nobody of ours."""
    names = context.auth_context().get("x509_subject_alternative_name", ())
    found = [from_dns(bytes(name).decode("ascii", "replace")) for name in names]
    return found[0] if len(found) == 1 else None
