"""What the orchestrator may ask of this node: Allocate, Release, Drain, Inspect."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pnode.errors import Draining, SpecError
from pnode.node.allocations import Allocations
from pnode.node.gate import Gate
from pnode.transport.deadline import Deadline
from pnode.v1 import node_pb2
from pnode.vnode import spec as vnode_spec


class Control:
    """Implements the transport's NodeApi."""

    def __init__(
        self,
        *,
        gate: Gate,
        allocations: Allocations,
        numerics_classes: list[str],
        refusals: Mapping[str, str],
        inspect: Callable[[], node_pb2.InspectReply],
        drain: Callable[[str], None],
    ) -> None:
        self._gate = gate
        self._allocations = allocations
        self._profiles = {name.split("/")[0] for name in numerics_classes}
        self._refusals = refusals
        self._inspect = inspect
        self._drain = drain

    def allocate(self, request: node_pb2.AllocateRequest, deadline: Deadline) -> node_pb2.AllocateReply:
        """Take a VNode in. Nothing is loaded before its first request."""
        deadline.check()
        if self._gate.closed:
            raise Draining("this node is draining and takes no VNodes")
        self._gate.check_not_held()
        vnode_spec.validate(request.spec)
        for name, ours, theirs in (
            ("run", request.spec.run, request.fence.run),
            ("id", request.spec.id, request.fence.vnode),
        ):
            if ours != theirs:
                raise SpecError(name, f"{ours!r} is not the {theirs!r} of the fence")
        if request.spec.profile not in self._profiles:
            why = self._refusals.get(request.spec.profile, f"not among {sorted(self._profiles)} of this node")
            raise SpecError("profile", f"{request.spec.profile!r}: {why}")
        self._allocations.allocate(request)
        return node_pb2.AllocateReply()

    def release(self, request: node_pb2.ReleaseRequest, deadline: Deadline) -> node_pb2.ReleaseReply:
        """Let a VNode go; its worker ends at once."""
        deadline.check()
        return node_pb2.ReleaseReply(released=self._allocations.release(request.fence))

    def drain(self, request: node_pb2.DrainRequest, deadline: Deadline) -> node_pb2.DrainReply:
        """Begin to leave; answered at once."""
        deadline.check()
        self._drain(request.reason or "the orchestrator asked for it")
        return node_pb2.DrainReply()

    def inspect(self, request: node_pb2.InspectRequest, deadline: Deadline) -> node_pb2.InspectReply:
        """Everything about this node, for the orchestrator's probes and for people."""
        del request
        deadline.check()
        return self._inspect()
