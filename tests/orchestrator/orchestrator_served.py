"""A node on a real server of this process: fences, states in a real store, no training."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from orchestrator_fakes import uuid_of
from orchestrator_time import soon

from pnode.errors import StaleFence, StepMismatch, UnknownVNode
from pnode.observe.counters import Counters
from pnode.security.identity import Identity
from pnode.security.principals import NODE
from pnode.security.tokens import Reader
from pnode.storage.content import get_content, put_content
from pnode.transport.addresses import Address
from pnode.transport.api import ForwardReply, ForwardRequest, TrainReply, TrainRequest
from pnode.transport.credentials import ServerTls
from pnode.transport.deadline import Deadline
from pnode.transport.guards import NodeGuard
from pnode.transport.server import make_server
from pnode.v1 import node_pb2, orchestrator_pb2, vnode_pb2

if TYPE_CHECKING:
    from orchestrator_net import Network

MEMORY = 64 << 20


class ServedVNode:
    """What a served node keeps of a VNode."""

    def __init__(self, request: node_pb2.AllocateRequest) -> None:
        self.fence = request.fence
        self.version = request.record.version


class ServedNode:
    """A node with a server of its own: fences, states in the store, no training."""

    def __init__(self, network: Network, index: int, *, port: int = 0) -> None:
        self.uuid = uuid_of(index)
        self.vnodes: dict[tuple[str, str], ServedVNode] = {}
        self.snapshots_may_go = threading.Event()
        self.snapshots_may_go.set()
        self.snapshot_asked = threading.Event()
        self.lies = False
        self.incarnation = 0
        self.draining = False
        self._store = network.store
        self.counters = Counters()
        self._key = Identity.fresh(self.uuid)
        self.meet(network)
        tls = network.settings.tls
        guard = NodeGuard(self._reader, self._now, tls=tls, uuid=self.uuid, generation=self._generation)
        shown = ServerTls(lambda: self._joiner.tls_identity()) if tls else None  # noqa: PLW0108 - of the present one
        host = network.settings.host
        self.server = make_server(
            vnodes=self, node=self, guard=guard, tls=shown, counters=self.counters, host=host, port=port
        )
        self.server.start()
        self.address = str(Address(host, self.server.port))
        self.register()

    # As a client of the orchestrator

    def meet(self, network: Network) -> None:
        """Find the orchestrator, or the one that came after it."""
        self._joiner, self.orchestrator = network.member(self._key, NODE)
        self.pool = network.pools[-1]

    def register(self) -> None:
        offer = node_pb2.Capabilities(vnode_memory_bytes=4 * MEMORY, max_vnodes=4, numerics_classes=["samebits-1"])
        request = orchestrator_pb2.RegisterRequest(
            node_uuid=self.uuid, address=self.address, capabilities=offer, protocol=1
        )
        self.incarnation = self.orchestrator.register(request, soon()).incarnation

    def beat(self) -> list[str]:
        """One heartbeat; returns the kinds of directives, which are followed."""
        request = orchestrator_pb2.HeartbeatRequest(
            node_uuid=self.uuid, incarnation=self.incarnation, vnodes=self.hosted(), draining=self.draining
        )
        kinds = []
        for directive in self.orchestrator.heartbeat(request, soon()).directives:
            kinds.append(str(directive.WhichOneof("kind")))
            if directive.HasField("release"):
                self.release(directive.release, soon())
            elif directive.HasField("reregister"):
                self.register()
        return kinds

    def _reader(self) -> Reader | None:
        return self._joiner.reader()

    def _now(self) -> float | None:
        return self._joiner.clock.now()

    def _generation(self, run: str, vnode: str) -> int | None:
        found = self.vnodes.get((run, vnode))
        return None if found is None else found.fence.generation

    def hosted(self) -> list[node_pb2.HostedVNode]:
        return [
            node_pb2.HostedVNode(fence=vnode.fence, state=vnode_pb2.VNODE_STATE_SERVING, version=vnode.version)
            for vnode in self.vnodes.values()
        ]

    # As a server

    def allocate(self, request: node_pb2.AllocateRequest, deadline: Deadline) -> node_pb2.AllocateReply:
        del deadline
        key = (request.fence.run, request.fence.vnode)
        old = self.vnodes.get(key)
        if old is not None and request.fence.epoch < old.fence.epoch:
            raise StaleFence("an older allocation")
        if old is None or request.fence.epoch > old.fence.epoch:
            self.vnodes[key] = ServedVNode(request)
        return node_pb2.AllocateReply()

    def release(self, request: node_pb2.ReleaseRequest, deadline: Deadline) -> node_pb2.ReleaseReply:
        del deadline
        key = (request.fence.run, request.fence.vnode)
        if key not in self.vnodes or self.vnodes[key].fence.epoch > request.fence.epoch:
            return node_pb2.ReleaseReply(released=False)
        del self.vnodes[key]
        return node_pb2.ReleaseReply(released=True)

    def drain(self, request: node_pb2.DrainRequest, deadline: Deadline) -> node_pb2.DrainReply:
        raise AssertionError("nobody asks for this")

    def inspect(self, request: node_pb2.InspectRequest, deadline: Deadline) -> node_pb2.InspectReply:
        del request, deadline
        return node_pb2.InspectReply(node_uuid=self.uuid, address=self.address, vnodes=self.hosted())

    def restore(self, request: vnode_pb2.RestoreRequest, deadline: Deadline) -> vnode_pb2.RestoreReply:
        del deadline
        vnode = self._vnode(request.fence)
        if request.fence.epoch != vnode.fence.epoch or request.fence.generation < vnode.fence.generation:
            raise StaleFence("another allocation or an older generation")
        vnode.fence = request.fence
        if request.record.sha256:
            get_content(self._store, request.record.sha256, max_bytes=1000)
        vnode.version = request.record.version
        return vnode_pb2.RestoreReply(version=vnode.version + self.lies)

    def snapshot(self, request: vnode_pb2.SnapshotRequest, deadline: Deadline) -> vnode_pb2.SnapshotReply:
        self.snapshot_asked.set()
        self.snapshots_may_go.wait(deadline.left_s())
        vnode = self._vnode(request.fence)
        if request.fence != vnode.fence:
            raise StaleFence("another fence")
        if request.version != vnode.version:
            raise StepMismatch(f"stands at {vnode.version}")
        if self.lies:
            return vnode_pb2.SnapshotReply(record=vnode_pb2.StateRecord(vnode="v9", version=1, sha256="../../etc"))
        return vnode_pb2.SnapshotReply(record=self.record(request.fence.vnode, vnode.version))

    def record(self, vnode: str, version: int) -> vnode_pb2.StateRecord:
        content = f"the state of {vnode} at version {version}".encode()
        sha256 = put_content(self._store, content)
        return vnode_pb2.StateRecord(vnode=vnode, version=version, sha256=sha256, size_bytes=len(content))

    def _vnode(self, fence: vnode_pb2.Fence) -> ServedVNode:
        found = self.vnodes.get((fence.run, fence.vnode))
        if found is None:
            raise UnknownVNode("not allocated here")
        return found

    def forward(self, request: ForwardRequest, deadline: Deadline) -> ForwardReply:
        raise AssertionError("nobody asks for this")

    def train(self, request: TrainRequest, deadline: Deadline) -> TrainReply:
        raise AssertionError("nobody asks for this")

    def apply(self, request: vnode_pb2.ApplyRequest, deadline: Deadline) -> vnode_pb2.ApplyReply:
        raise AssertionError("nobody asks for this")

    def describe(self, request: vnode_pb2.DescribeRequest, deadline: Deadline) -> vnode_pb2.DescribeReply:
        raise AssertionError("nobody asks for this")

    def stop(self) -> None:
        """Gone, as after SIGKILL."""
        self.snapshots_may_go.set()
        self.server.stop(0.0)
