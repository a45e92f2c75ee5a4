"""The interfaces of api.py, at an address: the caller cannot tell a remote VNode from a local one.

A stub sends each call once; only what was refused for its token, and so changed nothing, it sends again with a new
one where there is one. What is idempotent is known to the caller, who retries with retry.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from pnode.errors import BadRequest, DeadlineExceeded, PeerUnavailable, ReplyTooLarge, TooLarge, Unauthenticated
from pnode.transport import codec, compression, methods, pieces
from pnode.transport.addresses import parse_address
from pnode.transport.api import ForwardReply, ForwardRequest, TrainReply, TrainRequest
from pnode.transport.channels import ChannelPool, Line
from pnode.transport.codec import Buffer, Parcel
from pnode.transport.deadline import NOBODY_ELSE, Deadline
from pnode.transport.passes import Metadata
from pnode.transport.status import from_rpc_error
from pnode.v1 import node_pb2, orchestrator_pb2, vnode_pb2

log = logging.getLogger(__name__)
T = TypeVar("T")
Reply = TypeVar("Reply", bound=Message)

# gRPC's clock cannot count further than some hundred years; a day is longer than any call.
_MAX_TIMEOUT_S = 86_400.0
# What a reply has beside its tensors: their names and shapes, of as many as there may be.
_HEAD_BYTES = 1 << 20

# One exchange: a request goes out with its headers, a reply comes in.
_Send = Callable[[Deadline, Metadata], Buffer]


class _Remote:
    """One service at one address. Raises BadRequest for an address that may not be contacted."""

    service: ServiceDescriptor

    def __init__(self, pool: ChannelPool, address: str) -> None:
        self._pool = pool
        self._address = parse_address(address)

    @property
    def address(self) -> str:
        """Where the calls go, as host:port."""
        return str(self._address)

    def _call(self, name: str, request: Message, reply: type[Reply], deadline: Deadline) -> Reply:
        raw = codec.serialised(request, self._pool.max_message_bytes)
        sending = self._sending(name, raw)
        answer = self._asked(name, request, sending, lambda answer: codec.parsed(reply, answer), deadline)
        self._pool.passes.learn(self.service.full_name, answer)
        return answer

    def _carry(
        self, name: str, request: Parcel[Any], reply: type[Reply], deadline: Deadline, max_bytes: int | None = None
    ) -> Parcel[Reply]:
        """A call whose messages carry tensors; the payloads of the reply are views of the bytes that came.

        What is too large for one message goes in pieces. How large the reply is only the peer knows: where that is too
        large, the same call is sent again, in pieces, and is recognised there. `max_bytes` of tensors are in it
        at most, where the caller knows: a peer that sends more makes us hold one message more, or none of its pieces.
        """
        sent = compression.asking(request) if self._pool.compresses else request
        parts = codec.pieces(sent)
        most = self._pool.max_whole_bytes if max_bytes is None else min(max_bytes, self._pool.max_whole_bytes)

        def read(raw: Buffer) -> Parcel[Reply]:
            came = codec.decode(reply, raw)
            if max_bytes is not None and sum(map(len, came.payloads)) > most:
                raise TooLarge(f"its tensors have more than the {most} bytes that were asked for")
            if not compression.is_compressed(came):
                return came
            if not compression.asks(sent.head):
                raise BadRequest("it is compressed, which was not asked for")
            return compression.plain(came, most, lambda num_bytes: None)

        def asked(send: _Send) -> Parcel[Reply]:
            return self._asked(name, request.head, send, read, deadline)

        if sum(map(len, parts)) <= self._pool.max_message_bytes:
            try:
                return asked(self._sending(name, b"".join(parts)))
            except ReplyTooLarge:
                log.debug("%s at %s: the reply comes in pieces", name, self._address)
        return asked(self._sending_in_pieces(name, parts, max_bytes))

    def _asked(self, name: str, head: Message, send: _Send, read: Callable[[Buffer], T], deadline: Deadline) -> T:
        deadline.check()
        try:
            raw = self._carried(name, head, send, deadline)
        except Unauthenticated:
            if not self._pool.passes.renounce(self.service.full_name):
                raise
            raw = self._carried(name, head, send, deadline)
        try:
            return read(raw)
        except BadRequest as error:
            raise self._garbage(name, error) from error

    def _carried(self, name: str, head: Message, send: _Send, deadline: Deadline) -> Buffer:
        metadata = self._pool.passes.metadata(self.service.full_name, self._address, head, deadline)
        weather = self._pool.weather
        if weather is None:
            return send(deadline, metadata)
        return weather.carry(lambda until: send(until, metadata), self.address, name, deadline)

    def _sending(self, name: str, raw: bytes) -> _Send:
        def send(deadline: Deadline, metadata: Metadata) -> Buffer:
            return self._said(name, lambda line, path: _sent(line.unary(path), raw, deadline, metadata))

        return send

    def _sending_in_pieces(self, name: str, parts: Sequence[Buffer], max_bytes: int | None) -> _Send:
        num_bytes, most = sum(map(len, parts)), self._pool.max_whole_bytes
        if num_bytes > most:
            raise TooLarge(f"a {name} of {num_bytes} bytes is over the maximum of {most} bytes")
        expected = most if max_bytes is None else min(most, max_bytes + _HEAD_BYTES)

        def send(deadline: Deadline, metadata: Metadata) -> Buffer:
            chunks = pieces.split(parts, self._pool.max_message_bytes)

            def say(line: Line, path: str) -> Buffer:
                return _sent_in_pieces(line.channel.stream_stream(path), chunks, expected, deadline, metadata)

            try:
                return self._said(name + methods.IN_PIECES, say)
            except BadRequest as error:
                if expected == most and isinstance(error, TooLarge):
                    # More than we are configured to take, and nobody said how much it would be.
                    raise
                raise self._garbage(name, error) from error

        return send

    def _garbage(self, name: str, error: BadRequest) -> PeerUnavailable:
        return PeerUnavailable(f"{self._address} answered {name} with garbage: {error.message}")

    def _said(self, name: str, say: Callable[[Line, str], Buffer]) -> Buffer:
        """One exchange, over the line there, of the method's path; what gRPC raises becomes what the peer raised."""
        with self._pool.lease(self._address) as line:
            try:
                return say(line, f"/{self.service.full_name}/{name}")
            except grpc.RpcError as error:
                raise from_rpc_error(error, f"{name} at {self._address}") from error
            except ValueError as error:
                # What gRPC raises when the pool was closed between taking the channel and using it.
                raise PeerUnavailable(f"{self._address}: {error}") from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address})"


def _sent(
    send: grpc.UnaryUnaryMultiCallable[bytes, bytes], raw: bytes, deadline: Deadline, metadata: Metadata
) -> bytes:
    """The reply. Where whoever we ask for leaves, the call is cancelled on the wire too."""
    timeout_s = min(deadline.left_s(), _MAX_TIMEOUT_S)
    if deadline.caller is NOBODY_ELSE:
        # Nobody can leave, and a call without a future is faster.
        return send(raw, timeout=timeout_s, metadata=metadata)
    call = send.future(raw, timeout=timeout_s, metadata=metadata)
    try:
        with deadline.caller.telling(call.cancel):
            return call.result()
    except grpc.FutureCancelledError:
        raise DeadlineExceeded("the caller no longer waits for the answer") from None


def _sent_in_pieces(
    send: grpc.StreamStreamMultiCallable[bytes, bytes],
    chunks: Iterator[bytes],
    max_whole_bytes: int,
    deadline: Deadline,
    metadata: Metadata,
) -> Buffer:
    """The reply of a call whose messages are cut into chunks."""
    call = send(chunks, timeout=min(deadline.left_s(), _MAX_TIMEOUT_S), metadata=metadata)
    try:
        with deadline.caller.telling(call.cancel):
            return pieces.joined(call, max_whole_bytes, lambda num_bytes: None)
    except grpc.RpcError:
        if deadline.caller.gone:
            raise DeadlineExceeded("the caller no longer waits for the answer") from None
        raise
    finally:
        # Of a reply that was not read to its end.
        call.cancel()


class RemoteVNode(_Remote):
    """VNodesApi at an address. It serves every VNode there: the fence in each request names the one meant."""

    service = methods.VNODES

    def forward(self, request: ForwardRequest, deadline: Deadline) -> ForwardReply:
        return self._carry("Forward", request, vnode_pb2.ForwardReply, deadline, request.head.max_output_bytes or None)

    def train(self, request: TrainRequest, deadline: Deadline) -> TrainReply:
        # A gradient is as large as its input.
        wanted = request.payloads[: len(request.head.inputs)] if request.head.want_input_gradients else ()
        num_bytes = sum(map(len, wanted))
        return self._carry("Train", request, vnode_pb2.TrainReply, deadline, num_bytes)

    def apply(self, request: vnode_pb2.ApplyRequest, deadline: Deadline) -> vnode_pb2.ApplyReply:
        return self._call("Apply", request, vnode_pb2.ApplyReply, deadline)

    def snapshot(self, request: vnode_pb2.SnapshotRequest, deadline: Deadline) -> vnode_pb2.SnapshotReply:
        return self._call("Snapshot", request, vnode_pb2.SnapshotReply, deadline)

    def restore(self, request: vnode_pb2.RestoreRequest, deadline: Deadline) -> vnode_pb2.RestoreReply:
        return self._call("Restore", request, vnode_pb2.RestoreReply, deadline)

    def describe(self, request: vnode_pb2.DescribeRequest, deadline: Deadline) -> vnode_pb2.DescribeReply:
        return self._call("Describe", request, vnode_pb2.DescribeReply, deadline)


class RemoteNode(_Remote):
    """NodeApi at an address."""

    service = methods.PNODE

    def allocate(self, request: node_pb2.AllocateRequest, deadline: Deadline) -> node_pb2.AllocateReply:
        return self._call("Allocate", request, node_pb2.AllocateReply, deadline)

    def release(self, request: node_pb2.ReleaseRequest, deadline: Deadline) -> node_pb2.ReleaseReply:
        return self._call("Release", request, node_pb2.ReleaseReply, deadline)

    def drain(self, request: node_pb2.DrainRequest, deadline: Deadline) -> node_pb2.DrainReply:
        return self._call("Drain", request, node_pb2.DrainReply, deadline)

    def inspect(self, request: node_pb2.InspectRequest, deadline: Deadline) -> node_pb2.InspectReply:
        return self._call("Inspect", request, node_pb2.InspectReply, deadline)


class RemoteOrchestrator(_Remote):
    """OrchestratorApi at an address."""

    service = methods.ORCHESTRATOR

    def register(self, request: orchestrator_pb2.RegisterRequest, deadline: Deadline) -> orchestrator_pb2.RegisterReply:
        return self._call("Register", request, orchestrator_pb2.RegisterReply, deadline)

    def heartbeat(
        self, request: orchestrator_pb2.HeartbeatRequest, deadline: Deadline
    ) -> orchestrator_pb2.HeartbeatReply:
        return self._call("Heartbeat", request, orchestrator_pb2.HeartbeatReply, deadline)

    def resolve(self, request: orchestrator_pb2.ResolveRequest, deadline: Deadline) -> orchestrator_pb2.ResolveReply:
        return self._call("Resolve", request, orchestrator_pb2.ResolveReply, deadline)

    def report_failure(
        self, request: orchestrator_pb2.ReportFailureRequest, deadline: Deadline
    ) -> orchestrator_pb2.ReportFailureReply:
        return self._call("ReportFailure", request, orchestrator_pb2.ReportFailureReply, deadline)

    def unregister(
        self, request: orchestrator_pb2.UnregisterRequest, deadline: Deadline
    ) -> orchestrator_pb2.UnregisterReply:
        return self._call("Unregister", request, orchestrator_pb2.UnregisterReply, deadline)


class RemoteDoor(_Remote):
    """DoorApi at an address."""

    service = methods.DOOR

    def challenge(
        self, request: orchestrator_pb2.ChallengeRequest, deadline: Deadline
    ) -> orchestrator_pb2.ChallengeReply:
        return self._call("Challenge", request, orchestrator_pb2.ChallengeReply, deadline)

    def join(self, request: orchestrator_pb2.JoinRequest, deadline: Deadline) -> orchestrator_pb2.JoinReply:
        return self._call("Join", request, orchestrator_pb2.JoinReply, deadline)


class RemoteRuns(_Remote):
    """RunsApi at an address."""

    service = methods.RUNS

    def submit(self, request: orchestrator_pb2.SubmitRequest, deadline: Deadline) -> orchestrator_pb2.SubmitReply:
        return self._call("Submit", request, orchestrator_pb2.SubmitReply, deadline)

    def status(self, request: orchestrator_pb2.StatusRequest, deadline: Deadline) -> orchestrator_pb2.StatusReply:
        return self._call("Status", request, orchestrator_pb2.StatusReply, deadline)

    def checkpoint(
        self, request: orchestrator_pb2.CheckpointRequest, deadline: Deadline
    ) -> orchestrator_pb2.CheckpointReply:
        return self._call("Checkpoint", request, orchestrator_pb2.CheckpointReply, deadline)

    def finish(self, request: orchestrator_pb2.FinishRequest, deadline: Deadline) -> orchestrator_pb2.FinishReply:
        return self._call("Finish", request, orchestrator_pb2.FinishReply, deadline)
