"""The node's local registry: which VNodes it was given, within the memory and the number that its owner granted."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pnode.errors import Busy, Conflict, SpecError, StaleFence, UnknownVNode
from pnode.node.hosted import HostedVNode
from pnode.v1 import node_pb2, vnode_pb2

# A refused allocation may be asked again after this long: by then another VNode may have left.
_RETRY_AFTER_S = 5.0

Key = tuple[str, str]


class Allocations:
    """The VNodes allocated here, by (run, id). Thread-safe."""

    def __init__(
        self, make: Callable[[node_pb2.AllocateRequest], HostedVNode], *, max_vnodes: int, memory_bytes: int
    ) -> None:
        self._make = make
        self._max_vnodes = max_vnodes
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._vnodes: dict[Key, HostedVNode] = {}

    def get(self, run: str, vnode: str) -> HostedVNode:
        """Raises UnknownVNode where it was never allocated here, or was released."""
        found = self.find(run, vnode)
        if found is None:
            raise UnknownVNode(f"VNode {vnode!r} of run {run!r} is not allocated to this node")
        return found

    def find(self, run: str, vnode: str) -> HostedVNode | None:
        """The VNode, or None."""
        with self._lock:
            return self._vnodes.get((run, vnode))

    def every(self) -> list[HostedVNode]:
        """All of them, in the order of their allocation."""
        with self._lock:
            return list(self._vnodes.values())

    @property
    def reserved_bytes(self) -> int:
        """Memory promised to the VNodes that are here."""
        return sum(vnode.spec.limits.memory_bytes for vnode in self.every())

    def allocate(self, request: node_pb2.AllocateRequest) -> None:
        """Take a VNode in, or renew one under a higher epoch. A retry of the same allocation changes nothing.

        Raises StaleFence for an older epoch, Conflict for another spec under the same fence, Busy without room.
        """
        key = (request.fence.run, request.fence.vnode)
        with self._lock:
            old = self._vnodes.get(key)
            if old is not None and not _is_newer(old, request):
                return
            self._admit(request, old)
            self._vnodes[key] = self._make(request)
        if old is not None:
            old.close()

    def _admit(self, request: node_pb2.AllocateRequest, old: HostedVNode | None) -> None:
        need = request.spec.limits.memory_bytes
        if need > self._memory_bytes:
            raise SpecError(
                "limits.memory_bytes", f"{need} is over the {self._memory_bytes} that this node grants to all VNodes"
            )
        others = [vnode for vnode in self._vnodes.values() if vnode is not old]
        free = self._memory_bytes - sum(vnode.spec.limits.memory_bytes for vnode in others)
        if need > free:
            raise Busy(f"needs {need} bytes of memory, {free} are free", retry_after_s=_RETRY_AFTER_S)
        if len(others) >= self._max_vnodes:
            raise Busy(f"already hosts {self._max_vnodes} VNodes, the most allowed", retry_after_s=_RETRY_AFTER_S)

    def release(self, fence: vnode_pb2.Fence) -> bool:
        """Let a VNode go. False where it was not here, or only under a newer epoch."""
        key = (fence.run, fence.vnode)
        with self._lock:
            found = self._vnodes.get(key)
            if found is None or found.fence.epoch > fence.epoch:
                return False
            del self._vnodes[key]
        found.close()
        return True

    def close(self) -> None:
        """Release all of them."""
        for vnode in self.every():
            self.release(vnode.fence)


def _is_newer(old: HostedVNode, request: node_pb2.AllocateRequest) -> bool:
    """Whether the request replaces `old`; False for a retry of what is here."""
    ours, theirs = old.fence, request.fence
    if theirs.epoch < ours.epoch or theirs.generation < ours.generation:
        raise StaleFence(
            f"VNode {ours.vnode!r} is here at epoch {ours.epoch}, generation {ours.generation}; "
            f"an allocation came for epoch {theirs.epoch}, generation {theirs.generation}"
        )
    if theirs.epoch > ours.epoch:
        return True
    if old.spec != request.spec:
        raise Conflict(f"VNode {ours.vnode!r} is here at epoch {ours.epoch} with another spec")
    return False
