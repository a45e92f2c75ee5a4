"""An orchestrator and fake nodes on real servers of this process, over a real store. Time by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable

from orchestrator_fakes import uuid_of

from pnode.errors import StaleFence, StepMismatch, UnknownVNode
from pnode.observe.counters import Counters
from pnode.orchestrator.core import Core
from pnode.orchestrator.orchestrator import Orchestrator
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.security.identity import Identity
from pnode.security.principals import DRIVER, NODE
from pnode.security.tokens import Reader
from pnode.storage.blob import BlobStore
from pnode.storage.content import get_content, put_content
from pnode.transport.addresses import Address, parse_orchestrator
from pnode.transport.api import ForwardReply, ForwardRequest, TrainReply, TrainRequest
from pnode.transport.channels import ChannelPool
from pnode.transport.credentials import ServerTls
from pnode.transport.deadline import Deadline
from pnode.transport.guards import NodeGuard
from pnode.transport.joiner import Joiner
from pnode.transport.remote import RemoteOrchestrator, RemoteRuns
from pnode.transport.server import make_server
from pnode.v1 import node_pb2, orchestrator_pb2, spec_pb2, tensor_pb2, vnode_pb2

WAIT_S = 30.0
MEMORY = 64 << 20


def soon() -> Deadline:
    """A deadline that no test should ever reach."""
    return Deadline.after(WAIT_S)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def stage(index: int, last: int, run: str) -> spec_pb2.VNodeSpec:
    """One linear layer of a chain; the last one owns the loss."""
    linear = spec_pb2.Operator(
        name=f"layer{index}",
        inputs=[f"x{index}"],
        output=f"x{index + 1}",
        linear=spec_pb2.Linear(in_features=4, out_features=4, bias=True),
    )
    spec = spec_pb2.VNodeSpec(
        id=f"v{index}",
        run=run,
        profile="samebits-1",
        seed=1,
        inputs=[tensor_pb2.TensorSpec(name=f"x{index}", dtype=tensor_pb2.DTYPE_F32, shape=[4])],
        operators=[linear],
        optimizer=spec_pb2.Optimizer(sgd=spec_pb2.Sgd(lr=0.1)),
        limits=spec_pb2.Limits(memory_bytes=MEMORY, cpu_s=10, wall_s=10, max_rows=64),
        checkpoint=spec_pb2.CheckpointPolicy(keep=2),
        window=2,
    )
    if index < last:
        spec.outputs.append(f"x{index + 1}")
        spec.downstream = f"v{index + 1}"
    else:
        spec.targets.add(name="label", dtype=tensor_pb2.DTYPE_I64)
        spec.loss.cross_entropy.CopyFrom(spec_pb2.CrossEntropy(logits=f"x{index + 1}", target="label"))
    return spec


def chain(run: str = "r", num_vnodes: int = 3) -> orchestrator_pb2.RunSpec:
    """A run of linear layers that passes every check."""
    return orchestrator_pb2.RunSpec(id=run, vnodes=[stage(index, num_vnodes - 1, run) for index in range(num_vnodes)])


class ServedVNode:
    """What a served node keeps of a VNode."""

    def __init__(self, request: node_pb2.AllocateRequest) -> None:
        self.fence = request.fence
        self.version = request.record.version


class ServedNode:
    """A node with a server of its own: fences, states in the store, no training."""

    def __init__(self, network: Network, index: int) -> None:
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
        self.server = make_server(vnodes=self, node=self, guard=guard, tls=shown, counters=self.counters, host=host)
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


class Network:
    """All of it. `close` ends every server, thread and channel."""

    def __init__(self, store: BlobStore, settings: OrchestratorSettings | None = None) -> None:
        self.store = store
        self.clock = Clock()
        self.settings = settings or OrchestratorSettings(port=0, tick_s=0.02)
        self.nodes: list[ServedNode] = []
        self.pools: list[ChannelPool] = []
        self.start()

    def start(self) -> None:
        """An orchestrator, new or again."""
        self.orchestrator = Orchestrator(self.store, self.settings, clock=self.clock)
        self.orchestrator.start()
        self.driver, self.as_driver = self.member(Identity.fresh(), DRIVER)
        self.driver_pool = self.pools[-1]
        self.runs = RemoteRuns(self.driver_pool, self.as_driver.address)

    def member(self, key: Identity, role: str) -> tuple[Joiner, RemoteOrchestrator]:
        """Somebody who can join, and what it calls the orchestrator by."""
        where = parse_orchestrator(self.orchestrator.address)
        joiner = Joiner(key, where, role=role, enrolment=self.settings.enrolment)
        self.pools.append(ChannelPool(passes=joiner))
        return joiner, RemoteOrchestrator(self.pools[-1], str(where.address))

    def join(self, number: int = 1) -> ServedNode:
        """So many nodes join; returns the last."""
        for _ in range(number):
            self.nodes.append(ServedNode(self, len(self.nodes) + 1))
        return self.nodes[-1]

    def close(self) -> None:
        self.orchestrator.close()
        for node in self.nodes:
            node.stop()
        for pool in self.pools:
            pool.close()

    # A driver

    def submit(self, spec: orchestrator_pb2.RunSpec | None = None, holder: str = "driver") -> str:
        """Submit; returns the lease."""
        request = orchestrator_pb2.SubmitRequest(run=spec or chain(), holder=holder)
        return self.runs.submit(request, soon()).lease

    def status(self, run: str = "r", lease: str = "") -> orchestrator_pb2.RunStatus:
        return self.runs.status(orchestrator_pb2.StatusRequest(run=run, lease=lease), soon()).status

    def checkpoint(
        self, lease: str, version: int, *, generation: int = 1, deadline: Deadline | None = None
    ) -> orchestrator_pb2.CheckpointReply:
        request = orchestrator_pb2.CheckpointRequest(
            run="r", lease=lease, generation=generation, version=version, cursor=version
        )
        return self.runs.checkpoint(request, deadline or soon())

    def train_to(self, version: int) -> None:
        for node in self.nodes:
            for vnode in node.vnodes.values():
                vnode.version = version

    def report(self, vnode: str, reason: str, reporter: str = "") -> None:
        fence = next(place.fence for place in self.status().locations if place.fence.vnode == vnode)
        request = orchestrator_pb2.ReportFailureRequest(fence=fence, reason=reason, reporter_uuid=reporter)
        stub = next((node.orchestrator for node in self.nodes if node.uuid == reporter), self.as_driver)
        stub.report_failure(request, soon())

    def where(self, vnode: str) -> ServedNode:
        uuid = next(place.node_uuid for place in self.status().locations if place.fence.vnode == vnode)
        return next(node for node in self.nodes if node.uuid == uuid)

    # Waiting

    def until(self, predicate: Callable[[Core], bool]) -> None:
        """Wait for the core, not for the clock."""
        assert self.orchestrator.wait_for(predicate, WAIT_S), "waited in vain"

    def until_state(self, state: orchestrator_pb2.RunState.ValueType, generation: int = 1) -> None:
        """Wait for a state of the run, at this generation or a later one."""
        self.until(lambda core: core.run("r").state == state and core.run("r").generation >= generation)
