"""Small implementations of the interfaces, which remember what they were asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from pnode.transport.api import ForwardReply, ForwardRequest, TrainReply, TrainRequest
from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.v1 import node_pb2, orchestrator_pb2, vnode_pb2

WAIT_S = 30.0


def fence(vnode: str = "stem") -> vnode_pb2.Fence:
    return vnode_pb2.Fence(run="run", vnode=vnode, generation=3, epoch=5)


class Fake:
    """Remembers each request with its deadline; raises `error` when it is set."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.seen: list[tuple[str, Message | Parcel[Any], Deadline]] = []

    def note(self, name: str, request: Message | Parcel[Any], deadline: Deadline) -> None:
        self.seen.append((name, request, deadline))
        if self.error is not None:
            raise self.error


class FakeVNodes(Fake):
    """VNodesApi: echoes tensors."""

    def forward(self, request: ForwardRequest, deadline: Deadline) -> ForwardReply:
        self.note("forward", request, deadline)
        return Parcel(vnode_pb2.ForwardReply(version=7, outputs=request.head.inputs), request.payloads)

    def train(self, request: TrainRequest, deadline: Deadline) -> TrainReply:
        self.note("train", request, deadline)
        wanted = request.head.inputs if request.head.want_input_gradients else ()
        head = vnode_pb2.TrainReply(loss_sum=0.5, input_gradients=wanted)
        return Parcel(head, list(request.payloads[: len(wanted)]))

    def apply(self, request: vnode_pb2.ApplyRequest, deadline: Deadline) -> vnode_pb2.ApplyReply:
        self.note("apply", request, deadline)
        return vnode_pb2.ApplyReply(version=request.step + 1)

    def snapshot(self, request: vnode_pb2.SnapshotRequest, deadline: Deadline) -> vnode_pb2.SnapshotReply:
        self.note("snapshot", request, deadline)
        record = vnode_pb2.StateRecord(vnode=request.fence.vnode, version=request.version, sha256="ab" * 32)
        return vnode_pb2.SnapshotReply(record=record)

    def restore(self, request: vnode_pb2.RestoreRequest, deadline: Deadline) -> vnode_pb2.RestoreReply:
        self.note("restore", request, deadline)
        return vnode_pb2.RestoreReply(version=request.record.version)

    def describe(self, request: vnode_pb2.DescribeRequest, deadline: Deadline) -> vnode_pb2.DescribeReply:
        self.note("describe", request, deadline)
        return vnode_pb2.DescribeReply(fence=fence(request.vnode), numerics_class="samebits-1")


class FakeNode(Fake):
    """NodeApi."""

    def allocate(self, request: node_pb2.AllocateRequest, deadline: Deadline) -> node_pb2.AllocateReply:
        self.note("allocate", request, deadline)
        return node_pb2.AllocateReply()

    def release(self, request: node_pb2.ReleaseRequest, deadline: Deadline) -> node_pb2.ReleaseReply:
        self.note("release", request, deadline)
        return node_pb2.ReleaseReply(released=True)

    def drain(self, request: node_pb2.DrainRequest, deadline: Deadline) -> node_pb2.DrainReply:
        self.note("drain", request, deadline)
        return node_pb2.DrainReply()

    def inspect(self, request: node_pb2.InspectRequest, deadline: Deadline) -> node_pb2.InspectReply:
        self.note("inspect", request, deadline)
        return node_pb2.InspectReply(node_uuid="a node")


class FakeOrchestrator(Fake):
    """OrchestratorApi and RunsApi."""

    def register(self, request: orchestrator_pb2.RegisterRequest, deadline: Deadline) -> orchestrator_pb2.RegisterReply:
        self.note("register", request, deadline)
        return orchestrator_pb2.RegisterReply(incarnation=1, heartbeat_s=30.0)

    def heartbeat(
        self, request: orchestrator_pb2.HeartbeatRequest, deadline: Deadline
    ) -> orchestrator_pb2.HeartbeatReply:
        self.note("heartbeat", request, deadline)
        directive = orchestrator_pb2.Directive(reregister=orchestrator_pb2.Reregister())
        return orchestrator_pb2.HeartbeatReply(directives=[directive])

    def resolve(self, request: orchestrator_pb2.ResolveRequest, deadline: Deadline) -> orchestrator_pb2.ResolveReply:
        self.note("resolve", request, deadline)
        return orchestrator_pb2.ResolveReply(location=orchestrator_pb2.Location(address="127.0.0.1:50051"))

    def report_failure(
        self, request: orchestrator_pb2.ReportFailureRequest, deadline: Deadline
    ) -> orchestrator_pb2.ReportFailureReply:
        self.note("report_failure", request, deadline)
        return orchestrator_pb2.ReportFailureReply()

    def unregister(
        self, request: orchestrator_pb2.UnregisterRequest, deadline: Deadline
    ) -> orchestrator_pb2.UnregisterReply:
        self.note("unregister", request, deadline)
        return orchestrator_pb2.UnregisterReply()

    def submit(self, request: orchestrator_pb2.SubmitRequest, deadline: Deadline) -> orchestrator_pb2.SubmitReply:
        self.note("submit", request, deadline)
        return orchestrator_pb2.SubmitReply(lease="a lease", lease_s=10.0)

    def status(self, request: orchestrator_pb2.StatusRequest, deadline: Deadline) -> orchestrator_pb2.StatusReply:
        self.note("status", request, deadline)
        return orchestrator_pb2.StatusReply(status=orchestrator_pb2.RunStatus(id=request.run))

    def checkpoint(
        self, request: orchestrator_pb2.CheckpointRequest, deadline: Deadline
    ) -> orchestrator_pb2.CheckpointReply:
        self.note("checkpoint", request, deadline)
        return orchestrator_pb2.CheckpointReply(manifest_sha256="cd" * 32)

    def finish(self, request: orchestrator_pb2.FinishRequest, deadline: Deadline) -> orchestrator_pb2.FinishReply:
        self.note("finish", request, deadline)
        return orchestrator_pb2.FinishReply()


class BlockedVNodes(FakeVNodes):
    """Every Forward waits until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()
        self._changed = threading.Condition()
        self._num_inside = 0

    def forward(self, request: ForwardRequest, deadline: Deadline) -> ForwardReply:
        with self._changed:
            self._num_inside += 1
            self._changed.notify_all()
        assert self.release.wait(WAIT_S)
        return super().forward(request, deadline)

    def wait_inside(self, num_calls: int) -> None:
        """Until so many calls have come in."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._num_inside >= num_calls, WAIT_S)


class Calling:
    """One call in a thread of its own, and what became of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def wait(self) -> Calling:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self
