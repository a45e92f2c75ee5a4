"""The node's local registry: which VNodes it was given, within the memory and the number that its owner granted."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

from pnode.errors import Conflict, StaleFence, UnknownVNode
from pnode.node.admission import Guests, admit, admit_window, kept_bytes
from pnode.node.budget import Budget
from pnode.node.hosted import HostedVNode
from pnode.v1 import node_pb2, vnode_pb2

Key = tuple[str, str]

# Releases that are remembered. One that was forgotten costs memory until the next heartbeat, nothing else.
_MAX_REMEMBERED = 4096


class Allocations:
    """The VNodes allocated here, by (run, id). Thread-safe; `max_vnodes` and `disk_bytes` may be set at any time."""

    def __init__(
        self,
        make: Callable[[node_pb2.AllocateRequest], HostedVNode],
        *,
        max_vnodes: int,
        budget: Budget,
        in_flight_bytes: int,
    ) -> None:
        self._make = make
        self.max_vnodes = max_vnodes
        self.disk_bytes: int | None = None
        self._budget = budget
        self._in_flight_bytes = in_flight_bytes
        self._lock = threading.Lock()
        self._vnodes: dict[Key, HostedVNode] = {}
        self._released: OrderedDict[Key, int] = OrderedDict()

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
        return _limits_bytes(self.every())

    @property
    def granted_bytes(self) -> int:
        """Memory that may be promised in all as of now, to those that are here and to others."""
        return self._budget.granted_bytes(_used_bytes(self.every()))

    @property
    def over_bytes(self) -> int:
        """How much more than their owner grants by now was promised to those that have a worker."""
        serving = [vnode for vnode in self.every() if vnode.state == vnode_pb2.VNODE_STATE_SERVING]
        return max(0, _limits_bytes(serving) - self._budget.most_bytes())

    def allocate(self, request: node_pb2.AllocateRequest) -> None:
        """Take a VNode in, or renew one under a higher epoch. A retry of the same allocation changes nothing.

        Raises StaleFence for an older epoch or one that was released, Conflict for another spec under the same fence,
        Busy without room.
        """
        key = (request.fence.run, request.fence.vnode)
        with self._lock:
            old = self._vnodes.get(key)
            if old is not None and not _is_newer(old, request):
                return
            self._check_not_released(key, request.fence)
            self._admit(request, old)
            self._vnodes[key] = self._make(request)
        if old is not None:
            old.close()

    def _check_not_released(self, key: Key, fence: vnode_pb2.Fence) -> None:
        """An Allocate that comes after its own Release must not bring the VNode back."""
        released = self._released.get(key)
        if released is not None and fence.epoch <= released:
            raise StaleFence(f"VNode {fence.vnode!r} was released from this node at epoch {released}")

    def _admit(self, request: node_pb2.AllocateRequest, old: HostedVNode | None) -> None:
        others = [vnode for vnode in self._vnodes.values() if vnode is not old]
        kept = sum(kept_bytes(vnode.spec) for vnode in others)
        guests = Guests(len(others), _limits_bytes(others), _used_bytes(others), kept)
        admit(request.spec, guests, self._budget, max_vnodes=self.max_vnodes, disk_bytes=self.disk_bytes)
        admit_window(request.spec, [vnode.spec for vnode in others], self._in_flight_bytes)

    def release(self, fence: vnode_pb2.Fence) -> bool:
        """Let a VNode go. False where it was not here, or only under a newer epoch."""
        key = (fence.run, fence.vnode)
        with self._lock:
            self._remember_released(key, fence.epoch)
            found = self._vnodes.get(key)
            if found is None or found.fence.epoch > fence.epoch:
                return False
            del self._vnodes[key]
        found.close()
        return True

    def _remember_released(self, key: Key, epoch: int) -> None:
        self._released[key] = max(epoch, self._released.pop(key, 0))
        if len(self._released) > _MAX_REMEMBERED:
            self._released.popitem(last=False)

    def close(self) -> None:
        """Release all of them."""
        for vnode in self.every():
            self.release(vnode.fence)


def _limits_bytes(vnodes: Sequence[HostedVNode]) -> int:
    return sum(vnode.spec.limits.memory_bytes for vnode in vnodes)


def _used_bytes(vnodes: Sequence[HostedVNode]) -> int:
    return sum(min(vnode.used_bytes, vnode.spec.limits.memory_bytes) for vnode in vnodes)


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
