"""An orchestrator and nodes on real servers of this process, over a real store. Time by hand."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator_served import MEMORY, ServedNode
from orchestrator_time import WAIT_S, Clock, soon

from pnode.orchestrator.core import Core
from pnode.orchestrator.orchestrator import Orchestrator
from pnode.orchestrator.settings import OrchestratorSettings
from pnode.security.identity import Identity
from pnode.security.principals import DRIVER
from pnode.storage.blob import BlobStore
from pnode.transport.addresses import parse_orchestrator
from pnode.transport.channels import ChannelPool
from pnode.transport.deadline import Deadline
from pnode.transport.joiner import Joiner
from pnode.transport.remote import RemoteOrchestrator, RemoteRuns
from pnode.v1 import orchestrator_pb2, spec_pb2, tensor_pb2


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
