"""Tokens for calls to VNodes, as the orchestrator gave them with each VNode's location."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from google.protobuf.message import Message

from pnode.v1 import orchestrator_pb2

# Generations of a run whose tokens are kept: calls of the one before may still be on their way.
_KEPT_GENERATIONS = 2
_MAX_KEPT = 4096

Key = tuple[str, str]


class _Grant(NamedTuple):
    token: str
    at_s: float


class Grants:
    """By run and VNode, then by generation. Thread-safe. `now` is any clock that runs steadily, or None."""

    def __init__(self, now: Callable[[], float | None]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._grants: dict[Key, dict[int, _Grant]] = {}

    def learn(self, location: orchestrator_pb2.Location) -> None:
        """Keep the token of a location, if it has one."""
        if not location.token:
            return
        key = (location.fence.run, location.fence.vnode)
        with self._lock:
            # The one learned last stands last: the oldest goes where there are too many.
            of_vnode = self._grants.pop(key, {})
            of_vnode[location.fence.generation] = _Grant(location.token, self._now() or 0.0)
            for old in sorted(of_vnode)[:-_KEPT_GENERATIONS]:
                del of_vnode[old]
            self._grants[key] = of_vnode
            while len(self._grants) > _MAX_KEPT:
                del self._grants[next(iter(self._grants))]

    def token_for(self, request: Message) -> str:
        """The token for a request to a VNode; empty where there is none. A request without a fence has the newest."""
        named: Any = request
        fence = getattr(named, "fence", named)
        with self._lock:
            of_vnode = self._grants.get((fence.run, fence.vnode), {})
            if not of_vnode:
                return ""
            found = of_vnode.get(getattr(fence, "generation", max(of_vnode)))
            return "" if found is None else found.token

    def older_than(self, age_s: float) -> list[Key]:
        """The VNodes whose newest token was given so long ago."""
        now = self._now() or 0.0
        with self._lock:
            return [
                key
                for key, of_vnode in self._grants.items()
                if now - max(grant.at_s for grant in of_vnode.values()) >= age_s
            ]

    def forget(self, run: str, vnode: str) -> None:
        """That VNode is called no more."""
        with self._lock:
            self._grants.pop((run, vnode), None)
