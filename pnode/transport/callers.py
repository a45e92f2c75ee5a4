"""Who calls: the name that fairness, bounds and logs go by."""

from __future__ import annotations

import grpc

_MAX_CHARS = 200


def caller_name(context: grpc.ServicerContext) -> str:
    """The authenticated identity, else the connection: calls without TLS come from this machine alone."""
    for identity in context.peer_identities() or ():
        return bytes(identity).decode("utf-8", "replace")[:_MAX_CHARS]
    return context.peer()[:_MAX_CHARS]
