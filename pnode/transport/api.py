"""The interfaces behind the wire. Local objects and remote stubs implement the same ones: a caller cannot tell.

Every method takes the request message and the caller's Deadline, returns the reply message, and raises PNodeError.
Fences travel inside the requests. What carries tensors is a Parcel: the message, and the payloads beside it.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

from pnode.transport.codec import Parcel
from pnode.transport.deadline import Deadline
from pnode.v1 import node_pb2, orchestrator_pb2, vnode_pb2

ForwardRequest: TypeAlias = Parcel[vnode_pb2.ForwardRequest]
ForwardReply: TypeAlias = Parcel[vnode_pb2.ForwardReply]
TrainRequest: TypeAlias = Parcel[vnode_pb2.TrainRequest]
TrainReply: TypeAlias = Parcel[vnode_pb2.TrainReply]


class VNodesApi(Protocol):
    """What a PNode serves to peers and clients."""

    def forward(self, request: ForwardRequest, deadline: Deadline, /) -> ForwardReply: ...
    def train(self, request: TrainRequest, deadline: Deadline, /) -> TrainReply: ...
    def apply(self, request: vnode_pb2.ApplyRequest, deadline: Deadline, /) -> vnode_pb2.ApplyReply: ...
    def snapshot(self, request: vnode_pb2.SnapshotRequest, deadline: Deadline, /) -> vnode_pb2.SnapshotReply: ...
    def restore(self, request: vnode_pb2.RestoreRequest, deadline: Deadline, /) -> vnode_pb2.RestoreReply: ...
    def describe(self, request: vnode_pb2.DescribeRequest, deadline: Deadline, /) -> vnode_pb2.DescribeReply: ...


class NodeApi(Protocol):
    """What a PNode serves to its orchestrator."""

    def allocate(self, request: node_pb2.AllocateRequest, deadline: Deadline, /) -> node_pb2.AllocateReply: ...
    def release(self, request: node_pb2.ReleaseRequest, deadline: Deadline, /) -> node_pb2.ReleaseReply: ...
    def drain(self, request: node_pb2.DrainRequest, deadline: Deadline, /) -> node_pb2.DrainReply: ...
    def inspect(self, request: node_pb2.InspectRequest, deadline: Deadline, /) -> node_pb2.InspectReply: ...


class OrchestratorApi(Protocol):
    """What an orchestrator serves to nodes."""

    def register(
        self, request: orchestrator_pb2.RegisterRequest, deadline: Deadline, /
    ) -> orchestrator_pb2.RegisterReply: ...
    def heartbeat(
        self, request: orchestrator_pb2.HeartbeatRequest, deadline: Deadline, /
    ) -> orchestrator_pb2.HeartbeatReply: ...
    def resolve(
        self, request: orchestrator_pb2.ResolveRequest, deadline: Deadline, /
    ) -> orchestrator_pb2.ResolveReply: ...
    def report_failure(
        self, request: orchestrator_pb2.ReportFailureRequest, deadline: Deadline, /
    ) -> orchestrator_pb2.ReportFailureReply: ...
    def unregister(
        self, request: orchestrator_pb2.UnregisterRequest, deadline: Deadline, /
    ) -> orchestrator_pb2.UnregisterReply: ...


class DoorApi(Protocol):
    """What an orchestrator serves to those who are no members yet."""

    def challenge(
        self, request: orchestrator_pb2.ChallengeRequest, deadline: Deadline, /
    ) -> orchestrator_pb2.ChallengeReply: ...
    def join(self, request: orchestrator_pb2.JoinRequest, deadline: Deadline, /) -> orchestrator_pb2.JoinReply: ...


class RunsApi(Protocol):
    """What an orchestrator serves to drivers."""

    def submit(
        self, request: orchestrator_pb2.SubmitRequest, deadline: Deadline, /
    ) -> orchestrator_pb2.SubmitReply: ...
    def status(
        self, request: orchestrator_pb2.StatusRequest, deadline: Deadline, /
    ) -> orchestrator_pb2.StatusReply: ...
    def checkpoint(
        self, request: orchestrator_pb2.CheckpointRequest, deadline: Deadline, /
    ) -> orchestrator_pb2.CheckpointReply: ...
    def finish(
        self, request: orchestrator_pb2.FinishRequest, deadline: Deadline, /
    ) -> orchestrator_pb2.FinishReply: ...
