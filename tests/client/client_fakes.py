"""A network in one process for drivers to drive: real stages, one lock, faults by schedule.

It implements the interfaces that orchestrators and nodes serve, with their exactly-once rules, so the driver cannot
tell. Checkpoints are kept in memory.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pnode.client.batch import from_array
from pnode.client.local import _tensors
from pnode.errors import (
    Busy,
    DeadlineExceeded,
    LeaseLost,
    PeerUnavailable,
    PNodeError,
    StaleFence,
    StepMismatch,
    UnknownRun,
    WorkerLost,
)
from pnode.transport.api import ForwardReply, ForwardRequest, TrainReply, TrainRequest
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.transport.tensors import metas, payloads, unpack
from pnode.v1 import orchestrator_pb2, vnode_pb2
from pnode.vnode.requests import Requests
from pnode.vnode.stage import Stage
from pnode.vnode.state import run_digest

Answer = TypeVar("Answer")

RUNNING, RECOVERING = orchestrator_pb2.RUN_STATE_RUNNING, orchestrator_pb2.RUN_STATE_RECOVERING

# What may happen to a call: the request is lost, the reply is lost, there is no room, the VNode dies before or after.
FAULTS = ("request", "reply", "busy", "kill", "kill after", "forget", "deadline")


@dataclass
class FakeNetwork:
    """One run on as many nodes as it has VNodes. `faults`: by the number of the call to any VNode, what befalls it."""

    faults: dict[int, str] = field(default_factory=dict)
    polls_to_recover: int = 1

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        self.calls = 0
        self.spec: orchestrator_pb2.RunSpec | None = None
        self.stages: list[Stage] = []
        self.dead: set[int] = set()
        self.generation = 0
        self.version = 0
        self.lease = ""
        self.holder = ""
        self.leases = 0
        self.lease_is_live = False
        self.checkpoints: dict[int, list[bytes]] = {}
        self.recovering = 0
        self.finished = False
        self.reports: list[orchestrator_pb2.ReportFailureRequest] = []
        self.forgotten = False

    # Runs

    def submit(self, request: orchestrator_pb2.SubmitRequest, deadline: Deadline) -> orchestrator_pb2.SubmitReply:
        deadline.check()
        with self.changed:
            if self.lease_is_live and request.holder != self.holder:
                self.lease_is_live = False  # it runs out before the next try
                raise LeaseLost("somebody else holds it", retry_after_s=0.001)
            if self.spec is None:
                self.spec = request.run
                self.stages = [Stage(spec) for spec in request.run.vnodes]
                self.generation = 1
            self.forgotten = False
            self.leases += 1
            self.holder, self.lease, self.lease_is_live = request.holder, f"lease-{self.leases}", True
            return orchestrator_pb2.SubmitReply(status=self._status(), lease=self.lease, lease_s=30.0)

    def status(self, request: orchestrator_pb2.StatusRequest, deadline: Deadline) -> orchestrator_pb2.StatusReply:
        deadline.check()
        with self.changed:
            if self.forgotten:
                raise UnknownRun("the orchestrator restarted")
            self._check_lease(request.lease)
            if self.recovering:
                self.recovering -= 1
                if not self.recovering:
                    self._recover()
            return orchestrator_pb2.StatusReply(status=self._status())

    def checkpoint(
        self, request: orchestrator_pb2.CheckpointRequest, deadline: Deadline
    ) -> orchestrator_pb2.CheckpointReply:
        deadline.check()
        with self.changed:
            self._check_lease(request.lease)
            self._check_generation(request.generation)
            self._check_alive(range(len(self.stages)))
            if {stage.version for stage in self.stages} != {request.version}:
                raise StepMismatch("not everybody stands there")
            states = [stage.state() for stage in self.stages]
            self.checkpoints[request.version] = states
            records = [
                vnode_pb2.StateRecord(vnode=spec.id, version=request.version, sha256=hashlib.sha256(state).hexdigest())
                for spec, state in zip(self._spec.vnodes, states, strict=True)
            ]
            return orchestrator_pb2.CheckpointReply(manifest_sha256=run_digest(states), records=records)

    def finish(self, request: orchestrator_pb2.FinishRequest, deadline: Deadline) -> orchestrator_pb2.FinishReply:
        deadline.check()
        self._check_lease(request.lease)
        self.finished = True
        return orchestrator_pb2.FinishReply()

    # Orchestrator, as far as drivers use it

    def report_failure(
        self, request: orchestrator_pb2.ReportFailureRequest, deadline: Deadline
    ) -> orchestrator_pb2.ReportFailureReply:
        deadline.check()
        with self.changed:
            self.reports.append(request)
            if self.dead and not self.recovering and request.fence.generation == self.generation:
                self.recovering = self.polls_to_recover
                self.changed.notify_all()
        return orchestrator_pb2.ReportFailureReply()

    def register(self, *_: object) -> orchestrator_pb2.RegisterReply:
        raise NotImplementedError

    def heartbeat(self, *_: object) -> orchestrator_pb2.HeartbeatReply:
        raise NotImplementedError

    def resolve(self, *_: object) -> orchestrator_pb2.ResolveReply:
        raise NotImplementedError

    def unregister(self, *_: object) -> orchestrator_pb2.UnregisterReply:
        raise NotImplementedError

    # Nodes

    def at(self, address: str) -> FakeNode:
        """What serves at an address."""
        return FakeNode(self, int(address.removeprefix("node:")))

    def kill(self, index: int) -> None:
        """A VNode's node dies; calls that wait are told."""
        with self.changed:
            self.dead.add(index)
            self.changed.notify_all()

    def call(self, index: int, work: Callable[[], Answer]) -> Answer:
        """Run one call under the lock, with what the schedule has for it."""
        with self.changed:
            fault = self.faults.get(self.calls, "")
            self.calls += 1
            match fault:
                case "request":
                    raise PeerUnavailable("the request was lost")
                case "deadline":
                    raise DeadlineExceeded("no answer in time")
                case "busy":
                    raise Busy("no room", retry_after_s=0.001)
                case "forget":
                    self.forgotten = True
                case "kill":
                    self.kill(index)
            self._check_alive([index])
            reply = work()
            if fault == "kill after":
                self.kill(index)
            if fault in ("reply", "kill after"):
                raise PeerUnavailable("the reply was lost")
            return reply

    # Inside

    @property
    def _spec(self) -> orchestrator_pb2.RunSpec:
        assert self.spec is not None
        return self.spec

    def _status(self) -> orchestrator_pb2.RunStatus:
        locations = [
            orchestrator_pb2.Location(fence=self.fence(index), node_uuid=f"uuid-{index}", address=f"node:{index}")
            for index in range(len(self.stages))
        ]
        return orchestrator_pb2.RunStatus(
            id=self._spec.id,
            state=RECOVERING if self.recovering else RUNNING,
            generation=self.generation,
            version=self.version,
            locations=locations,
            message="a node is lost" if self.recovering else "",
        )

    def fence(self, index: int) -> vnode_pb2.Fence:
        """Of a VNode now."""
        return vnode_pb2.Fence(
            run=self._spec.id, vnode=self._spec.vnodes[index].id, generation=self.generation, epoch=self.generation
        )

    def _recover(self) -> None:
        self.generation += 1
        self.dead.clear()
        self.version = max(self.checkpoints, default=0)
        states: Sequence[bytes | None] = self.checkpoints.get(self.version) or [None] * len(self.stages)
        for stage, state in zip(self.stages, states, strict=True):
            stage.restore(state)
        self.changed.notify_all()

    def _check_lease(self, lease: str) -> None:
        if lease != self.lease:
            raise LeaseLost("another driver has it")

    def _check_generation(self, generation: int) -> None:
        if generation != self.generation:
            raise StaleFence(f"generation {generation} is not {self.generation}")

    def _check_alive(self, indices: Iterable[int]) -> None:
        for index in indices:
            if index in self.dead:
                raise PeerUnavailable(f"node:{index} does not answer") if index % 2 else WorkerLost("it died")

    def check_fence(self, fence: vnode_pb2.Fence) -> None:
        """As a node does."""
        self._check_generation(fence.generation)


@dataclass
class FakeNode:
    """VNodesApi for one VNode."""

    network: FakeNetwork
    index: int

    @property
    def _stage(self) -> Stage:
        return self.network.stages[self.index]

    def _call(self, fence: vnode_pb2.Fence, work: Callable[[], Answer]) -> Answer:
        def checked() -> Answer:
            self.network.check_fence(fence)
            return work()

        return self.network.call(self.index, checked)

    def train(self, parcel: TrainRequest, deadline: Deadline) -> TrainReply:
        request = parcel.head

        def work() -> vnode_pb2.TrainReply:
            self._await_turn(request, deadline)
            self._chain(parcel)
            self.network.changed.notify_all()
            return vnode_pb2.TrainReply()

        return Parcel(self._call(request.fence, work))

    def _await_turn(self, request: vnode_pb2.TrainRequest, deadline: Deadline) -> None:
        network, stage = self.network, self._stage
        while stage.version == request.step and stage.accumulated < request.microbatch:
            if not network.changed.wait(deadline.left_s()):
                raise DeadlineExceeded("its turn did not come")
            network.check_fence(request.fence)
            network._check_alive(range(len(network.stages)))

    def _chain(self, parcel: TrainRequest) -> None:
        """All VNodes, one after the other; one that is dead stops it half way, as a real chain is stopped."""
        request, stages = parcel.head, self.network.stages
        tensors = unpack([*request.inputs, *request.targets], parcel.payloads, max_bytes=1 << 20)
        inputs, labels = tensors[: len(request.inputs)], tensors[len(request.inputs) :]
        Requests(self.network._spec.vnodes[0]).microbatch(inputs, labels)
        values, targets = _tensors(inputs), _tensors(labels)
        for index, stage in enumerate(stages):
            self.network._check_alive([index])
            given = targets if stage is stages[-1] else {}
            values = stage.begin(request.step, request.microbatch, request.batch_rows, values, given)
        gradients: dict[str, Any] = {}
        for index in reversed(range(len(stages))):
            self.network._check_alive([index])
            finished = stages[index].finish(request.step, request.microbatch, gradients, want_input_gradients=index > 0)
            gradients = finished.input_gradients

    def apply(self, request: vnode_pb2.ApplyRequest, deadline: Deadline) -> vnode_pb2.ApplyReply:
        deadline.check()
        done = self._call(request.fence, lambda: self._stage.apply(request.step, request.num_microbatches))
        return vnode_pb2.ApplyReply(version=done.version, loss=done.loss)

    def forward(self, request: ForwardRequest, deadline: Deadline) -> ForwardReply:
        deadline.check()
        tensors = _tensors(unpack(request.head.inputs, request.payloads, max_bytes=1 << 20))
        outputs = self._call(request.head.fence, lambda: self._stage.forward(tensors))
        found = [from_array(name, value.numpy()) for name, value in outputs.items()]
        return Parcel(vnode_pb2.ForwardReply(outputs=metas(found)), payloads(found))

    def describe(self, request: vnode_pb2.DescribeRequest, deadline: Deadline) -> vnode_pb2.DescribeReply:
        deadline.check()

        def work() -> vnode_pb2.DescribeReply:
            stage, fence = self._stage, self.network.fence(self.index)
            return vnode_pb2.DescribeReply(fence=fence, version=stage.version, accumulated=stage.accumulated)

        reply = self.network.call(self.index, work)
        assert isinstance(reply, vnode_pb2.DescribeReply)
        return reply

    def snapshot(self, *_: object) -> vnode_pb2.SnapshotReply:
        raise PNodeError("drivers do not ask for it")

    def restore(self, *_: object) -> vnode_pb2.RestoreReply:
        raise PNodeError("drivers do not ask for it")
