"""Who calls: the name that fairness, bounds and logs go by, and whom the guard found behind it."""

from __future__ import annotations

from contextvars import ContextVar

import grpc

from pnode.security.principals import Principal
from pnode.transport.addresses import origin

_MAX_CHARS = 200

_caller: ContextVar[Principal | None] = ContextVar("caller", default=None)


def caller_name(context: grpc.ServicerContext, holder: Principal | None, *, stranger: bool = False) -> str:
    """Whoever the guard found, else the connection: without a guard all calls come from this machine alone.

    A stranger, who may come from anywhere, is its host, or its network where that is IPv6: it could have as many
    connections, and there as many addresses, as it likes.
    """
    peer = origin(context.peer()) if stranger else context.peer()
    return (peer if holder is None else str(holder))[:_MAX_CHARS]


def caller() -> Principal | None:
    """The caller of the call that runs here; None inside one process, and where everybody may call."""
    return _caller.get()


class calling:  # noqa: N801 - used as a function is
    """Name the caller for as long as its call runs."""

    __slots__ = ("_before", "_who")

    def __init__(self, who: Principal | None) -> None:
        self._who = who

    def __enter__(self) -> None:
        self._before = _caller.set(self._who)

    def __exit__(self, *_: object) -> None:
        _caller.reset(self._before)
