"""Messages in pieces: cut into chunks of a stream, and put together again, within what was announced and allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import xxhash

from pnode.errors import BadRequest, TooLarge
from pnode.transport import codec
from pnode.transport.codec import Buffer, Parcel
from pnode.v1 import tensor_pb2

# Large enough that a chunk's own cost does not count, small enough to go out while the next one is made.
PIECE_BYTES = 1 << 20
# Or a stranger could sell a megabyte in a million calls to Python. The last piece may be shorter.
_LEAST_BYTES = 4096
# What a chunk needs beside its piece.
HEAD_BYTES = 64
# The largest chunk: whoever waits for room for the whole message holds no more than its first one meanwhile.
CHUNK_BYTES = PIECE_BYTES + HEAD_BYTES


def split(parts: Sequence[Buffer], max_message_bytes: int) -> Iterator[bytes]:
    """The chunks of the message that `parts` make up, each as bytes."""
    piece_bytes = max(_LEAST_BYTES, min(PIECE_BYTES, max_message_bytes - HEAD_BYTES))
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    whole = tensor_pb2.Whole(num_bytes=sum(map(len, parts)), xxh3_128=digest.digest())
    head = tensor_pb2.Chunk(whole=whole)
    if not whole.num_bytes:
        # An empty message is one, too.
        yield codec.encode(Parcel(head), max_message_bytes)
    for piece in _cut(parts, piece_bytes):
        yield codec.encode(Parcel(head, [piece]), max_message_bytes)
        head = tensor_pb2.Chunk()


def _cut(parts: Sequence[Buffer], piece_bytes: int) -> Iterator[Buffer]:
    """The same bytes in order, so many at a time: a view, or a copy where a piece is of several parts."""
    piece: list[Buffer] = []
    room = piece_bytes
    for part in parts:
        rest = memoryview(part)
        while rest:
            piece.append(rest[:room])
            rest, room = rest[room:], room - len(piece[-1])
            if not room:
                yield _one(piece)
                piece, room = [], piece_bytes
    if piece:
        yield _one(piece)


def _one(piece: Sequence[Buffer]) -> Buffer:
    return piece[0] if len(piece) == 1 else b"".join(piece)


def joined(chunks: Iterable[bytes], max_whole_bytes: int, reserve: Callable[[int], None]) -> memoryview:
    """The message that came in chunks. `reserve` is told its size before a byte of it is asked for.

    Raises TooLarge for one over the maximum, BadRequest for anything but the message that the first chunk announces.
    """
    raws = iter(chunks)
    first = _chunk(next(raws, b""))
    if not first.head.HasField("whole"):
        raise BadRequest("the first chunk does not say what it is a piece of")
    whole = first.head.whole
    if whole.num_bytes > max_whole_bytes:
        raise TooLarge(f"a message of {whole.num_bytes} bytes is over the maximum of {max_whole_bytes} bytes")
    reserve(whole.num_bytes)
    gathered = bytearray(whole.num_bytes)
    end = _put(gathered, 0, first)
    for raw in raws:
        if end == len(gathered):
            # Even an empty one: they could come for ever.
            raise BadRequest(f"more than the {end} bytes that were announced came")
        end = _put(gathered, end, _chunk(raw))
    if end != len(gathered):
        raise BadRequest(f"{end} of {len(gathered)} bytes of the message came")
    if xxhash.xxh3_128_digest(gathered) != whole.xxh3_128:
        raise BadRequest("the pieces make up another message than was announced")
    return memoryview(gathered)


def _chunk(raw: bytes) -> Parcel[tensor_pb2.Chunk]:
    if len(raw) > CHUNK_BYTES:
        raise BadRequest(f"a chunk of {len(raw)} bytes came: the largest has {CHUNK_BYTES}")
    return codec.decode(tensor_pb2.Chunk, raw)


def _put(gathered: bytearray, begin: int, chunk: Parcel[tensor_pb2.Chunk]) -> int:
    """Where the next piece goes."""
    end = begin
    for payload in chunk.payloads:
        if end + len(payload) > len(gathered):
            raise BadRequest(f"more than the {len(gathered)} bytes that were announced came")
        gathered[end : end + len(payload)] = payload
        end += len(payload)
    if end - begin < _LEAST_BYTES and end < len(gathered):
        raise BadRequest(f"a piece of {end - begin} bytes came: all but the last have at least {_LEAST_BYTES}")
    return end
