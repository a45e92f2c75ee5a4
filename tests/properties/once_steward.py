"""The orchestrator as design section 6 has it, of fibers: leases, places, generations, manifests, recovery.

The real one is a state machine with a property of its own (tests/orchestrator); this one asks the nodes in plain loops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from node_world import RUN, specs
from once_fibers import FiberDeadline
from once_network import Network, Process
from once_nodes import STAGES, OnceNode, Shelf, Witness

from pnode.errors import DeadlineExceeded, PeerUnavailable, PNodeError, StaleFence, Unavailable, UnknownVNode
from pnode.orchestrator.leases import Lease
from pnode.transport.deadline import Deadline
from pnode.v1 import node_pb2, orchestrator_pb2, vnode_pb2

T = TypeVar("T")
ORCHESTRATOR = "orchestrator"


class Steward(Process):
    """Implements RunsApi and OrchestratorApi as far as drivers and nodes use them."""

    def __init__(self, network: Network, homes: Sequence[str], window: int, reply_bytes: int) -> None:
        super().__init__(ORCHESTRATOR)
        self._network = network
        self._reply_bytes = reply_bytes
        self.specs = specs(STAGES, window)
        self.ids = [spec.id for spec in self.specs]
        self.shelf, self.witness = Shelf(), Witness()
        self.homes = dict(zip(self.ids, homes, strict=True))
        self.nodes: dict[str, OnceNode] = {}
        self._starts = 0
        self.generation = 1
        self.epochs = dict.fromkeys(self.ids, 1)
        self.serves_run = False
        self.lost: set[str] = set(self.ids)
        self.manifest: tuple[int, list[vnode_pb2.StateRecord]] = (0, [vnode_pb2.StateRecord(vnode=i) for i in self.ids])
        self.lease: Lease | None = None
        self.finished = False
        self.serves = {"runs": self, "orchestrator": self}
        network.processes[ORCHESTRATOR] = self
        for name in dict.fromkeys(homes):
            self.start_node(name)
        self.recover()

    # Nodes

    def start_node(self, name: str) -> None:
        """A node's process starts, again perhaps; its address is a new one."""
        self._starts += 1
        node = OnceNode(f"{name}:{self._starts}", self._network, self.shelf, self.witness, self._reply_bytes)
        self.nodes[name] = self._network.processes[node.address] = node

    def home(self, vnode: str) -> OnceNode:
        return self.nodes[self.homes[vnode]]

    def look(self) -> None:
        """What heartbeats and probes tell: VNodes that are no longer alive where they should be are lost."""
        if self.serves_run:
            self.lost |= {vnode for vnode in self.ids if not self._alive(vnode)}
            if self.lost:
                self.recover()

    def _alive(self, vnode: str) -> bool:
        found = self.home(vnode).allocations.find(RUN, vnode)
        here = found is not None and found.fence.epoch == self.epochs[vnode]
        return here and found is not None and found.state != vnode_pb2.VNODE_STATE_LOST

    # Recovery

    def recover(self) -> None:
        """A new generation: everything asked under the old one is void."""
        self.generation += 1
        self.serves_run = False
        generation = self.generation
        self._network.scheduler.spawn(f"recovery {generation}", self, lambda: self._recover(generation))

    def _recover(self, generation: int) -> None:
        if self.generation != generation:
            return
        records = dict(zip(self.ids, self.manifest[1], strict=True))
        self.lost |= {vnode for vnode in self.ids if not self._alive(vnode)}
        fresh = [vnode for vnode in self.ids if vnode in self.lost]
        self.epochs |= dict.fromkeys(fresh, generation)
        try:
            for vnode in fresh:
                self._allocate(vnode, generation, records[vnode])
            for vnode in self.ids:
                self._restore(vnode, generation, records[vnode])
        except PNodeError as error:
            if self.generation != generation:
                return
            if not isinstance(error, Unavailable | DeadlineExceeded | UnknownVNode):
                raise AssertionError(f"a recovery was refused in its own generation: {error}") from error
            self.lost.update(vnode for vnode in self.ids if not self._alive(vnode))
            self.recover()
            return
        if self.generation == generation:
            self.lost.clear()
            self.serves_run = True

    def _allocate(self, vnode: str, generation: int, record: vnode_pb2.StateRecord) -> None:
        spec = self.specs[self.ids.index(vnode)]
        request = node_pb2.AllocateRequest(
            spec=spec, fence=self.fence(vnode, generation), record=record, upstream=self._upstream(vnode, generation)
        )
        stub = self._network.stub(self.home(vnode).address, "node")
        self._insist(generation, lambda deadline: stub.allocate(request, deadline))

    def _restore(self, vnode: str, generation: int, record: vnode_pb2.StateRecord) -> None:
        request = vnode_pb2.RestoreRequest(
            fence=self.fence(vnode, generation), record=record, upstream=self._upstream(vnode, generation)
        )
        stub = self._network.stub(self.home(vnode).address, "vnodes")
        self._insist(generation, lambda deadline: stub.restore(request, deadline))

    def _insist(self, generation: int, ask: Callable[[Deadline], T]) -> T:
        """Ask until it is answered, a few times, or void."""
        for tries in range(4):
            if self.generation != generation:
                raise StaleFence("void")
            try:
                return ask(FiberDeadline(self._network.scheduler))
            except (PeerUnavailable, DeadlineExceeded):
                if tries == 3:
                    raise
        raise AssertionError("not reached")

    def fence(self, vnode: str, generation: int) -> vnode_pb2.Fence:
        return vnode_pb2.Fence(run=RUN, vnode=vnode, generation=generation, epoch=self.epochs[vnode])

    def _upstream(self, vnode: str, generation: int) -> vnode_pb2.Fence:
        index = self.ids.index(vnode)
        return self.fence(self.ids[index - 1], generation) if index else vnode_pb2.Fence()

    # For nodes and drivers

    def resolve(self, request: orchestrator_pb2.ResolveRequest, deadline: Deadline) -> orchestrator_pb2.ResolveReply:
        del deadline
        if not self.serves_run:
            raise Unavailable("recovering")
        return orchestrator_pb2.ResolveReply(location=self._location(request.vnode))

    def report_failure(self, request: Any, deadline: Deadline) -> orchestrator_pb2.ReportFailureReply:
        del request, deadline
        self.look()
        return orchestrator_pb2.ReportFailureReply()

    def _location(self, vnode: str) -> orchestrator_pb2.Location:
        return orchestrator_pb2.Location(
            fence=self.fence(vnode, self.generation), node_uuid=self.homes[vnode], address=self.home(vnode).address
        )

    def submit(self, request: orchestrator_pb2.SubmitRequest, deadline: Deadline) -> orchestrator_pb2.SubmitReply:
        del deadline
        if self.lease is None:
            self.lease = Lease(request.holder, request.nonce, 1e9, request.nonce)
        self.lease.take(request.holder, request.nonce, 0.0, 1e9, request.nonce)
        return orchestrator_pb2.SubmitReply(status=self._status(), lease=self.lease.id, lease_s=1e6)

    def status(self, request: orchestrator_pb2.StatusRequest, deadline: Deadline) -> orchestrator_pb2.StatusReply:
        del deadline
        self._check(request.lease)
        return orchestrator_pb2.StatusReply(status=self._status())

    def _check(self, lease: str) -> None:
        assert self.lease is not None, "nobody has a lease before one was given"
        self.lease.check(lease)

    def _status(self) -> orchestrator_pb2.RunStatus:
        state = orchestrator_pb2.RUN_STATE_RUNNING if self.serves_run else orchestrator_pb2.RUN_STATE_RECOVERING
        return orchestrator_pb2.RunStatus(
            id=RUN,
            state=state,
            generation=self.generation,
            version=self.manifest[0],
            locations=[self._location(vnode) for vnode in self.ids],
        )

    def checkpoint(
        self, request: orchestrator_pb2.CheckpointRequest, deadline: Deadline
    ) -> orchestrator_pb2.CheckpointReply:
        """A record of every VNode, then the manifest: that is the commit."""
        del deadline
        self._check(request.lease)
        generation, version = request.generation, request.version
        if version > self.manifest[0]:
            records = [self._snapshot(vnode, generation, version) for vnode in self.ids]
            if self.generation != generation or not self.serves_run:
                raise StaleFence(f"generation {generation} is over")
            if version > self.manifest[0]:
                self.manifest = (version, records)
        return orchestrator_pb2.CheckpointReply(manifest_sha256="0" * 64, records=self.manifest[1])

    def _snapshot(self, vnode: str, generation: int, version: int) -> vnode_pb2.StateRecord:
        request = vnode_pb2.SnapshotRequest(fence=self.fence(vnode, generation), version=version)
        stub = self._network.stub(self.home(vnode).address, "vnodes")
        reply: vnode_pb2.SnapshotReply = self._insist(generation, lambda deadline: stub.snapshot(request, deadline))
        return reply.record
