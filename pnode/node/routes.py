"""Where a downstream VNode is: in this node, or at the location that the orchestrator gave, cached by generation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from pnode.errors import StaleFence
from pnode.transport.api import OrchestratorApi, VNodesApi
from pnode.transport.deadline import Deadline
from pnode.v1 import orchestrator_pb2, vnode_pb2


@dataclass(frozen=True)
class Route:
    """A VNode that can be called, and the fence to call it with."""

    fence: vnode_pb2.Fence
    vnode: VNodesApi
    address: str


class Routes:
    """Local VNodes first, then the cache, then the orchestrator. Nothing else is ever contacted."""

    def __init__(
        self,
        *,
        local: Callable[[str, str], Route | None],
        orchestrator: OrchestratorApi,
        remote: Callable[[str], VNodesApi],
    ) -> None:
        self._local = local
        self._orchestrator = orchestrator
        self._remote = remote
        self._lock = threading.Lock()
        self._cache: dict[tuple[str, str], Route] = {}

    def find(self, run: str, vnode: str, generation: int, deadline: Deadline) -> Route:
        """The route to a VNode in this generation of its run.

        Raises StaleFence where the run has moved on to another generation; UnknownVNode or PeerUnavailable as the
        orchestrator answers.
        """
        route = self._known(run, vnode)
        if route is None or route.fence.generation != generation:
            route = self._resolve(run, vnode, deadline)
        if route.fence.generation != generation:
            raise StaleFence(
                f"VNode {vnode!r} of run {run!r} is at generation {route.fence.generation}, not at {generation}"
            )
        return route

    def forget(self, run: str, vnode: str) -> None:
        """Drop what is cached, so that the next call asks the orchestrator again."""
        with self._lock:
            self._cache.pop((run, vnode), None)

    def _known(self, run: str, vnode: str) -> Route | None:
        local = self._local(run, vnode)
        if local is not None:
            return local
        with self._lock:
            return self._cache.get((run, vnode))

    def _resolve(self, run: str, vnode: str, deadline: Deadline) -> Route:
        request = orchestrator_pb2.ResolveRequest(run=run, vnode=vnode)
        location = self._orchestrator.resolve(request, deadline).location
        route = Route(location.fence, self._remote(location.address), location.address)
        with self._lock:
            self._cache[(run, vnode)] = route
        # The orchestrator may name this very node: then the call stays inside the process.
        local = self._local(run, vnode)
        return local if local is not None and local.fence == location.fence else route
