"""Real messages, mutated, against a real server: each gets one status, and what is refused changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode
from hypothesis import given, settings
from hypothesis import strategies as st
from node_world import World, batch, specs

from pnode.errors import PNodeError, UnknownNode
from pnode.node.control import Control
from pnode.observe.counters import Counters
from pnode.transport import codec
from pnode.transport.codec import Parcel
from pnode.transport.server import Server, make_server
from pnode.transport.status import code_of, from_rpc_error
from pnode.transport.tensors import metas, payloads
from pnode.v1 import node_pb2, vnode_pb2

Draw = Callable[[st.SearchStrategy[Any]], Any]
# A mutated Train may be a whole one that waits for its turn.
TIMEOUT_S = 0.5
# What a caller can be told of a message. INTERNAL and UNKNOWN would be faults of ours.
REFUSALS = {
    StatusCode.INVALID_ARGUMENT,
    StatusCode.NOT_FOUND,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.ALREADY_EXISTS,
    StatusCode.RESOURCE_EXHAUSTED,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.DATA_LOSS,
}


class Target:
    """A world of two stages on one node, served on a port."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder, ("a", "a"))
        self.node = self.world.nodes["a"]
        self.counters = Counters()
        control = Control(
            gate=self.node.gate,
            allocations=self.node.allocations,
            numerics_classes=["samebits-1"],
            refusals={},
            inspect=node_pb2.InspectReply,
            drain=lambda reason: None,
        )
        self.server: Server = make_server(vnodes=self.node.serving, node=control, counters=self.counters)
        self.server.start()
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.server.port}")
        self.world.train(self.world.request(0, 0))

    def send(self, path: str, raw: bytes) -> PNodeError | None:
        """What became of it. The node is at rest again when this returns."""
        send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(path)
        try:
            send(raw, timeout=TIMEOUT_S)
            return None
        except grpc.RpcError as error:
            return from_rpc_error(error)
        finally:
            assert self.node.gate.wait_empty(20.0)

    def standing(self) -> list[Any]:
        """All that a message could change: of every VNode its fence, its account and the bytes of its state."""
        found: list[Any] = []
        for vnode in self.node.allocations.every():
            worker = self.node.workers.get(vnode.spec.id)
            state = b"" if worker is None else worker.call("state", {}, (), deadline_s=None).tensors[0].payload
            accumulated = None if worker is None else worker.call("describe", {}, (), deadline_s=None).fields
            digest = hashlib.sha256(state).hexdigest()
            account = (vnode.ledger.generation, vnode.ledger.version, vnode.ledger.next)
            front = (vnode.spec.SerializeToString(), vnode.state, account, vnode._upstream, vnode._record)
            found.append((vnode.fence, *front, accumulated, digest))
        return found

    def close(self) -> None:
        self.channel.close()
        self.server.stop(1.0)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    target = Target(tmp_path_factory.mktemp("world"))
    yield target
    target.close()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    target = Target(tmp_path_factory.mktemp("other"))
    yield target
    target.close()


def states(standing: list[Any]) -> list[Any]:
    """Of each VNode its spec and the digest of its state."""
    return [(each[1], each[-1]) for each in standing]


def wire(message: Message | Parcel[Any]) -> bytes:
    return codec.written(message, 1 << 20)


def messages(world: World) -> dict[str, bytes]:
    """One real message for each method of VNodes, and more than one of those that carry tensors."""
    first, rows = world.fence("stage1"), batch(1)
    forward = vnode_pb2.ForwardRequest(fence=first, inputs=metas(rows.inputs))
    return {
        "Forward": wire(Parcel(forward, payloads(rows.inputs))),
        "Train": wire(world.request(0, 0)),
        "Train#1": wire(world.request(0, 1)),
        "Apply": wire(vnode_pb2.ApplyRequest(fence=first, step=0, num_microbatches=4)),
        "Snapshot": wire(vnode_pb2.SnapshotRequest(fence=first, version=1)),
        "Describe": wire(vnode_pb2.DescribeRequest(run=first.run, vnode=first.vnode)),
    }


def mutated(raw: bytes, kind: type[Message], draw: Draw) -> bytes:
    """Deformed in what it says, or in its bytes."""
    return deformed(kind.FromString(raw), draw) if draw(st.booleans()) else spoilt(raw, draw)


def deformed(message: Message, draw: Draw) -> bytes:
    """A whole message of the same kind, with a few fields that say something else."""
    for _ in range(draw(st.integers(1, 3))):
        places = list(leaves(message))
        if not places:
            break
        owner, field = draw(st.sampled_from(places))
        now = getattr(owner, field.name)
        if not field.is_repeated:
            setattr(owner, field.name, draw(other_value(field, now)))
        elif (how := draw(st.integers(0, 2))) == 0 or not len(now):
            now.extend(now[:1] or [new_element(field, draw)])
        elif how == 1:
            now.pop(draw(st.integers(0, len(now) - 1)))
        elif field.message_type is None:
            at = draw(st.integers(0, len(now) - 1))
            now[at] = draw(other_value(field, now[at]))
    return message.SerializeToString()


def new_element(field: Any, draw: Draw) -> Any:
    if field.message_type is not None:
        return GetMessageClass(field.message_type)()
    return draw(other_value(field, b"" if field.type == FieldDescriptor.TYPE_BYTES else 0))


def leaves(message: Message) -> Iterator[tuple[Message, Any]]:
    """Every field that can be changed, with the message that it belongs to."""
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is None or field.is_repeated:
            yield message, field
        if field.message_type is not None:
            for each in value if field.is_repeated else [value] if message.HasField(field.name) else []:
                yield from leaves(each)


def other_value(field: Any, now: object) -> st.SearchStrategy[object]:
    """Numbers at the edges of their types, names of others, bytes too short and too long."""
    if field.type == FieldDescriptor.TYPE_BYTES:
        assert isinstance(now, bytes)
        return st.sampled_from([b"", now[:-1], now + b"\0", now[::-1], b"\xff" * len(now)])
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.sampled_from(["", "stage1", "stage2", "tokens", "label", "nowhere", "\0", "x" * 300])
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.just(not now)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return st.integers(0, 12)
    most = {FieldDescriptor.TYPE_UINT32: 2**32 - 1, FieldDescriptor.TYPE_UINT64: 2**64 - 1}
    least = 0 if field.type in most else -1
    return st.sampled_from([least, 0, 1, 2, 3, 4, 7, 2**31 - 1, most.get(field.type, 2**31)])


def spoilt(raw: bytes, draw: Draw) -> bytes:
    """A few bytes flipped, lost, doubled, put in, or all of the end cut off."""
    for _ in range(draw(st.integers(1, 2))):
        at, length = draw(st.integers(0, max(0, len(raw) - 1))), draw(st.integers(1, 8))
        kind = draw(st.integers(0, 4))
        if kind == 0:
            raw = raw[:at] + bytes([draw(st.integers(0, 255))]) + raw[at + 1 :]
        elif kind == 1:
            raw = raw[:at] + raw[at + length :]
        elif kind == 2:
            raw = raw[:at] + raw[at : at + length] + raw[at:]
        elif kind == 3:
            raw = raw[:at] + draw(st.binary(min_size=length, max_size=length)) + raw[at:]
        else:
            raw = raw[:at]
    return raw


@settings(max_examples=400)
@given(st.data())
def test_a_mutated_message_gets_one_status_and_changes_nothing_if_refused(target: Target, data: st.DataObject) -> None:
    real = messages(target.world)
    name = data.draw(st.sampled_from(sorted(real)))
    method = name.partition("#")[0]
    raw = mutated(real[name], getattr(vnode_pb2, f"{method}Request"), data.draw)
    before, refused = target.standing(), target.counters.total("refused")
    error = target.send(f"/pnode.v1.VNodes/{method}", raw)
    if error is None:
        return
    assert code_of(error) in REFUSALS, (name, error)
    assert error.message
    assert target.standing() == before
    if code_of(error) is not StatusCode.DEADLINE_EXCEEDED:
        assert target.counters.total("refused") == refused + 1


@settings(max_examples=100)
@given(st.data())
def test_a_mutated_restore_never_takes_back_a_generation(other: Target, data: st.DataObject) -> None:
    """Refused, it changes nothing, but for a newer generation: zombies must stay out even where its record is bad."""
    vnode = other.world.vnode("stage1")
    # Back where every example begins, whatever the one before has made it adopt.
    fence = vnode._fence = other.world.fence("stage1")
    before = other.standing()
    record = vnode_pb2.StateRecord(vnode="stage1", version=0)
    raw = wire(vnode_pb2.RestoreRequest(fence=fence, record=record))
    error = other.send("/pnode.v1.VNodes/Restore", mutated(raw, vnode_pb2.RestoreRequest, data.draw))
    assert vnode.fence.generation >= fence.generation
    assert vnode.fence.epoch == fence.epoch
    if error is not None:
        assert code_of(error) in REFUSALS | {StatusCode.NOT_FOUND}, error
        after = other.standing()
        assert states(after) == states(before)
        assert after == before or vnode.fence.generation > fence.generation


@settings(max_examples=100)
@given(st.data())
def test_a_mutated_allocation_is_one_or_changes_nothing(target: Target, data: st.DataObject) -> None:
    spec = specs(2)[0]
    fence = vnode_pb2.Fence(run=spec.run, vnode="another", generation=1, epoch=1)
    spec.id = "another"
    raw = wire(node_pb2.AllocateRequest(spec=spec, fence=fence))
    raw = mutated(raw, node_pb2.AllocateRequest, data.draw)
    before = target.standing()
    error = target.send("/pnode.v1.PNode/Allocate", raw)
    if error is not None:
        assert not isinstance(error, UnknownNode)
        assert code_of(error) in REFUSALS, error
        assert target.standing() == before
        return
    for vnode in target.node.allocations.every():
        if vnode.spec.id not in ("stage1", "stage2"):
            target.node.allocations.release(vnode.fence)
