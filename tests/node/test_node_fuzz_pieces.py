"""Real messages in pieces, mutated: each gets one status, what is refused changes nothing and leaves no memory held."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest
import xxhash
import zstandard
from grpc import StatusCode
from hypothesis import given, settings
from hypothesis import strategies as st
from node_world import World, soon
from test_node_fuzz import REFUSALS, TIMEOUT_S, Draw, Target, messages, mutated, spoilt

from pnode.errors import DeadlineExceeded, PNodeError, TooLarge
from pnode.transport import codec, pieces
from pnode.transport.status import code_of, from_rpc_error
from pnode.v1 import tensor_pb2, vnode_pb2

Chunk = tensor_pb2.Chunk
KINDS: dict[str, Any] = {"Forward": vnode_pb2.ForwardRequest, "Train": vnode_pb2.TrainRequest}
# A field of a newer protocol, which everybody keeps and nobody reads: it makes a small message one of many pieces.
_PADDING_TAG = b"\xc2\x3e"
PIECE_BYTES = 4096
# 64 MiB of zeros, in a few kilobytes.
BOMB = zstandard.ZstdCompressor().compress(bytes(64 << 20))


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    target = Target(tmp_path_factory.mktemp("pieces"))
    yield target
    target.close()


def send(target: Target, path: str, chunks: Sequence[bytes]) -> PNodeError | None:
    """What became of a call in pieces. The node is at rest again when this returns."""
    call: grpc.StreamStreamMultiCallable[bytes, bytes] = target.channel.stream_stream(path)
    try:
        for _ in call(iter(chunks), timeout=TIMEOUT_S):
            continue
        return None
    except grpc.RpcError as error:
        return from_rpc_error(error)
    finally:
        assert target.node.gate.wait_empty(20.0)


def padded(raw: bytes, num_bytes: int = 5 * PIECE_BYTES) -> bytes:
    """The same message, with an unknown field of so many bytes."""
    return raw + _PADDING_TAG + codec._varint(num_bytes) + bytes(range(256)) * (num_bytes // 256)


def chunk(piece: bytes, whole: bytes | None = None) -> Any:
    head = Chunk(payloads=[piece])
    if whole is not None:
        head.whole.CopyFrom(tensor_pb2.Whole(num_bytes=len(whole), xxh3_128=xxhash.xxh3_128_digest(whole)))
    return head


def cut(raw: bytes) -> list[Any]:
    """The chunks of a message, as messages."""
    parts = [raw[begin : begin + PIECE_BYTES] for begin in range(0, len(raw), PIECE_BYTES)]
    return [chunk(part, None if index else raw) for index, part in enumerate(parts)]


def compressed(raw: bytes, kind: Any, draw: Draw) -> bytes:
    """The same message, but that a payload is a frame: of other sizes, cut off, a bomb, or of no known kind."""
    message = kind.FromString(raw)
    metas = [*message.inputs, *getattr(message, "targets", ())]
    at = draw(st.integers(0, len(metas) - 1))
    frame = draw(st.sampled_from([zstandard.ZstdCompressor().compress(message.payloads[at]), BOMB, BOMB[:-9], b"x"]))
    message.payloads[at] = frame
    metas[at].compression = draw(st.sampled_from([20, 20, 20, 7]))
    if draw(st.booleans()):
        metas[at].shape[:] = draw(st.sampled_from([[64 << 20], [1 << 62], [-1], [1 << 31, 1 << 31], [16 << 20]]))
    message.accepts = draw(st.sampled_from([0, 20, 99]))
    return bytes(message.SerializeToString())


def misannounced(chunks: list[Any], draw: Draw) -> None:
    """Another size or digest than what comes."""
    whole = chunks[0].whole
    how = draw(st.integers(0, 4))
    if how == 0:
        now = whole.num_bytes
        whole.num_bytes = draw(st.sampled_from([0, 1, max(now, 1) - 1, min(now, 1 << 40) + 1, 1 << 40, 2**64 - 1]))
    elif how == 1:
        whole.xxh3_128 = draw(st.sampled_from([b"", whole.xxh3_128[::-1], whole.xxh3_128 + b"\0"]))
    elif how == 2:
        chunks[0].ClearField("whole")
    elif how == 3:
        chunks[-1].whole.CopyFrom(whole)
    else:
        chunks.insert(0, Chunk())


def misordered(chunks: list[Any], draw: Draw) -> None:
    """Pieces that are lost, doubled, exchanged, or more than there should be."""
    at, other = (draw(st.integers(0, len(chunks) - 1)) for _ in range(2))
    how = draw(st.integers(0, 5))
    if how == 0:
        del chunks[at]
    elif how == 1:
        chunks.insert(other, chunks[at])
    elif how == 2:
        chunks[at], chunks[other] = chunks[other], chunks[at]
    elif how == 3:
        del chunks[at:]
    elif how == 4:
        chunks.append(draw(st.sampled_from([Chunk(), chunk(b""), chunk(b"x"), chunk(bytes(PIECE_BYTES))])))
    else:
        chunks.extend(chunks * 3)


def missized(chunks: list[Any], draw: Draw) -> None:
    """A piece that is cut short, empty, in two halves, of several parts, or larger than any may be."""
    at = draw(st.integers(0, len(chunks) - 1))
    piece = chunks[at].payloads[0]
    how = draw(st.integers(0, 4))
    if how == 0:
        chunks[at].payloads[0] = draw(st.sampled_from([b"", piece[:1], piece[:-1], piece[: PIECE_BYTES // 2]]))
    elif how == 1:
        chunks.insert(at + 1, chunk(piece[100:]))
        chunks[at].payloads[0] = piece[:100]
    elif how == 2:
        chunks[at].payloads[:] = [piece[:7], b"", piece[7:]]
    elif how == 3:
        chunks[at].payloads[0] = piece + bytes(draw(st.sampled_from([1, PIECE_BYTES, pieces.CHUNK_BYTES])))
    else:
        chunks[at].ClearField("payloads")


def mutated_pieces(raw: bytes, kind: Any, draw: Draw) -> list[bytes]:
    """The chunks of a message that says something else, or that are not what they should be."""
    how = draw(st.integers(0, 5))
    if how == 0:
        return [each.SerializeToString() for each in cut(padded(mutated(raw, kind, draw)))]
    if how == 1:
        return [each.SerializeToString() for each in cut(padded(compressed(raw, kind, draw)))]
    chunks = cut(padded(raw))
    for change in draw(st.lists(st.sampled_from([misannounced, misordered, missized]), min_size=1, max_size=2)):
        if chunks and all(each.payloads for each in chunks):
            change(chunks, draw)
    sent = [each.SerializeToString() for each in chunks]
    if how == 2 and sent:
        at = draw(st.integers(0, len(sent) - 1))
        sent[at] = spoilt(sent[at], draw)
    return sent


def real(world: World) -> dict[str, bytes]:
    return {name: raw for name, raw in messages(world).items() if name.partition("#")[0] in KINDS}


def num_noted(target: Target) -> int:
    return target.counters.total("refused") + target.counters.total("ended")


def held(target: Target) -> int:
    return sum(target.server.served[0].limits.intake.turns._held.values())


def test_what_is_mutated_here_is_accepted_as_it_is(target: Target) -> None:
    for name, raw in real(target.world).items():
        if name != "Train#1":
            method = name.partition("#")[0]
            chunks = [each.SerializeToString() for each in cut(padded(raw))]
            assert len(chunks) > 5
            assert send(target, f"/pnode.v1.VNodes/{method}Stream", chunks) is None


@settings(max_examples=400)
@given(st.data())
def test_mutated_pieces_get_one_status_and_change_nothing_if_refused(target: Target, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(real(target.world))))
    method = name.partition("#")[0]
    sent = mutated_pieces(real(target.world)[name], KINDS[method], data.draw)
    before, refused = target.standing(), target.counters.total("refused")
    error = send(target, f"/pnode.v1.VNodes/{method}Stream", sent)
    if error is None:
        return
    assert code_of(error) in REFUSALS, (name, error)
    assert error.message
    assert target.standing() == before
    if code_of(error) is not StatusCode.DEADLINE_EXCEEDED:
        assert target.counters.total("refused") == refused + 1


def test_a_chunk_over_what_grpc_takes_ends_its_call(target: Target) -> None:
    before, noted = target.standing(), num_noted(target)
    raw = real(target.world)["Forward"]
    sent = [each.SerializeToString() for each in [cut(padded(raw))[0], chunk(bytes((64 << 20) + 1))]]
    error = send(target, "/pnode.v1.VNodes/ForwardStream", sent)
    assert error is not None
    assert isinstance(error, TooLarge | DeadlineExceeded)
    assert target.standing() == before
    deadline = soon()
    while num_noted(target) == noted:
        deadline.check()
        threading.Event().wait(0.01)
    assert num_noted(target) == noted + 1


def test_after_all_that_nothing_is_held(target: Target) -> None:
    deadline = soon()
    while held(target):
        deadline.check()
        threading.Event().wait(0.01)
