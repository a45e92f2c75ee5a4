"""VNodes as this node serves them, to peers over gRPC and to its own chains alike."""

from __future__ import annotations

from pnode.errors import BadRequest
from pnode.node.allocations import Allocations
from pnode.node.chain import TrainChain
from pnode.node.forwards import forward
from pnode.node.gate import Gate
from pnode.node.hosted import HostedVNode
from pnode.observe.counters import Counters
from pnode.transport.api import ForwardReply, ForwardRequest, TrainReply, TrainRequest
from pnode.transport.deadline import Deadline
from pnode.transport.tensors import unpack
from pnode.transport.turns import Bounds
from pnode.v1 import vnode_pb2


class Serving:
    """Implements the transport's VNodesApi over the VNodes allocated here."""

    def __init__(
        self,
        *,
        gate: Gate,
        allocations: Allocations,
        chain: TrainChain,
        numerics_classes: list[str],
        max_whole_bytes: int,
        queue: Bounds,
        counters: Counters,
    ) -> None:
        self._gate = gate
        self._allocations = allocations
        self._chain = chain
        self._classes = {name.split("/")[0]: name for name in numerics_classes}
        self._max_whole_bytes = max_whole_bytes
        self._queue = queue
        self._counters = counters

    def forward(self, request: ForwardRequest, deadline: Deadline) -> ForwardReply:
        """Inference through one VNode at its current version."""
        with self._gate:
            fence = request.head.fence
            vnode = self._vnode(fence)
            inputs = unpack(request.head.inputs, request.payloads, max_bytes=self._max_whole_bytes)
            reply = forward(vnode, fence, inputs, deadline, queue=self._queue, counters=self._counters)
            _check_expected(request.head.max_output_bytes, sum(map(len, reply.payloads)))
            return reply

    def train(self, request: TrainRequest, deadline: Deadline) -> TrainReply:
        """One microbatch through this VNode and all below it."""
        with self._gate:
            return self._chain.train(self._vnode(request.head.fence), request, deadline)

    def apply(self, request: vnode_pb2.ApplyRequest, deadline: Deadline) -> vnode_pb2.ApplyReply:
        """The optimizer step. Allowed while draining: it ends a step that is all but done."""
        vnode = self._vnode(request.fence)
        with vnode.commanding(request.fence, deadline):
            vnode.ledger.check_apply(request.step, request.num_microbatches)
            fields = {"step": request.step, "num_microbatches": request.num_microbatches}
            applied = vnode.command("apply", fields, (), deadline).fields
            with vnode.changed:
                if vnode.ledger.version == request.step:
                    vnode.ledger.applied(request.step)
                vnode.changed.notify_all()
        return vnode_pb2.ApplyReply(version=int(applied["version"]), loss=applied.get("loss"))

    def snapshot(self, request: vnode_pb2.SnapshotRequest, deadline: Deadline) -> vnode_pb2.SnapshotReply:
        """Upload the state. Allowed while draining: that is when it matters most."""
        return vnode_pb2.SnapshotReply(record=self._vnode(request.fence).snapshot(request, deadline))

    def restore(self, request: vnode_pb2.RestoreRequest, deadline: Deadline) -> vnode_pb2.RestoreReply:
        """Adopt a generation and a state."""
        with self._gate:
            # Not checked against our fence: the newer generation is what it brings.
            vnode = self._allocations.get(request.fence.run, request.fence.vnode)
            return vnode_pb2.RestoreReply(version=vnode.restore(request, deadline))

    def describe(self, request: vnode_pb2.DescribeRequest, deadline: Deadline) -> vnode_pb2.DescribeReply:
        """What it is and where it stands."""
        del deadline  # answered by the front alone
        vnode = self._allocations.get(request.run, request.vnode)
        return vnode.describe(self._classes[vnode.spec.profile])

    def _vnode(self, fence: vnode_pb2.Fence) -> HostedVNode:
        vnode = self._allocations.get(fence.run, fence.vnode)
        vnode.check(fence)
        return vnode


def _check_expected(most: int, num_bytes: int) -> None:
    """Raises BadRequest where the caller says that it will not read so much: it takes the VNode for another."""
    if most and num_bytes > most:
        raise BadRequest(f"the outputs have {num_bytes} bytes, the request allows {most} (max_output_bytes)")
