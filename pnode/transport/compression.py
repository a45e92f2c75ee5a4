"""Payloads compressed on their way: declared tensor by tensor, without loss, and off unless configured.

Only the wire knows: what is sent is compressed last, what came is as it was before anything else looks at it. So
digests, retries and whoever computes see the same request either way. A reply is compressed where its request asks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from google.protobuf.message import Message

from pnode.errors import BadRequest, TooLarge
from pnode.transport.codec import Buffer, Parcel
from pnode.transport.tensors import MAX_DIMS, MAX_TENSORS
from pnode.v1 import tensor_pb2
from pnode.v1.tensor_pb2 import COMPRESSION_UNSPECIFIED, COMPRESSION_ZSTD, TensorMeta
from pnode.vnode.tensors import ITEM_BYTES, num_bytes

M = TypeVar("M", bound=Message)

# The fastest: a wire that is slower than this is worth it, and one that is faster is worth no level.
_LEVEL = 1


def is_compressed(parcel: Parcel[Any]) -> bool:
    """Whether some tensor of the message is."""
    kind: Any = type(parcel.head)
    for name in _fields(kind):
        metas = getattr(parcel.head, name)
        # More are refused by whoever counts them.
        for meta in metas if len(metas) <= MAX_TENSORS else ():
            if meta.compression != COMPRESSION_UNSPECIFIED:
                return True
    return False


def asking(parcel: Parcel[M]) -> Parcel[M]:
    """The request to send: compressed, and the reply may be."""
    head: Any = _copied(parcel.head)
    head.accepts = COMPRESSION_ZSTD
    return compressed(Parcel(head, parcel.payloads))


def asks(head: Any) -> bool:
    """Whether whoever sent this request reads compressed replies."""
    return bool(head.accepts == COMPRESSION_ZSTD)


def compressed(parcel: Parcel[M]) -> Parcel[M]:
    """The message to send: each payload compressed that gets smaller by it. The given one is left alone."""
    import zstandard  # noqa: PLC0415 - only those load it who compress

    head = _copied(parcel.head)
    metas = _metas(head)
    if len(metas) != len(parcel.payloads):
        return parcel  # for the other side to refuse
    payloads: list[Buffer] = []
    for meta, payload in zip(metas, parcel.payloads, strict=True):
        # A compressor for each: they may not be shared by threads.
        packed = zstandard.ZstdCompressor(level=_LEVEL).compress(memoryview(payload).cast("B"))
        is_smaller = len(packed) < len(payload)
        meta.compression = COMPRESSION_ZSTD if is_smaller else COMPRESSION_UNSPECIFIED
        payloads.append(packed if is_smaller else payload)
    return Parcel(head, payloads)


def plain(parcel: Parcel[M], max_bytes: int, reserve: Callable[[int], None]) -> Parcel[M]:
    """The message as it was before it was compressed. `reserve` is told its size before anything is decompressed.

    Raises TooLarge for more than `max_bytes` in all; BadRequest for what is not one whole zstd frame of just the size
    that dtype and shape say.
    """
    if not is_compressed(parcel):
        return parcel
    metas = _metas(parcel.head)
    if len(metas) != len(parcel.payloads):
        raise BadRequest(f"the message describes {len(metas)} tensors and carries {len(parcel.payloads)} payloads")
    total = sum(map(_size, metas))
    if total > max_bytes:
        raise TooLarge(f"{total} bytes of tensors are over the maximum of {max_bytes} bytes")
    reserve(total)
    payloads = [_plain(meta, payload) for meta, payload in zip(metas, parcel.payloads, strict=True)]
    head = _copied(parcel.head)
    for meta in _metas(head):
        meta.compression = COMPRESSION_UNSPECIFIED
    return Parcel(head, payloads)


def _metas(head: Message) -> list[TensorMeta]:
    """The metadata of all tensors of a message, in the order of their payloads."""
    kind: Any = type(head)
    return [meta for name in _fields(kind) for meta in getattr(head, name)]


@cache
def _fields(kind: Any) -> tuple[str, ...]:
    numbers = {
        field.number: field.name
        for field in kind.DESCRIPTOR.fields
        if field.message_type is tensor_pb2.TensorMeta.DESCRIPTOR
    }
    return tuple(numbers[number] for number in sorted(numbers))


def _copied(head: M) -> M:
    copy = type(head)()
    copy.CopyFrom(head)
    return copy


def _size(meta: TensorMeta) -> int:
    if meta.dtype not in ITEM_BYTES or len(meta.shape) > MAX_DIMS or any(dim < 0 for dim in meta.shape):
        raise BadRequest(f"tensor {meta.name[:100]!r} has an unknown dtype, a negative dimension or too many")
    return num_bytes(meta.dtype, meta.shape)


def _plain(meta: TensorMeta, payload: Buffer) -> Buffer:
    if meta.compression == COMPRESSION_UNSPECIFIED:
        return payload
    import zstandard  # noqa: PLC0415

    what = f"tensor {meta.name[:100]!r} of {_size(meta)} bytes"
    if meta.compression != COMPRESSION_ZSTD:
        raise BadRequest(f"{what}: compression {meta.compression} is not known here")
    try:
        # What the header says is what will be allocated, so it is looked at first.
        announced = zstandard.frame_content_size(payload)
        if announced != _size(meta):
            raise BadRequest(f"{what} would be {announced} when decompressed")
        return zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise BadRequest(f"{what} is no whole zstd frame: {error}") from None
