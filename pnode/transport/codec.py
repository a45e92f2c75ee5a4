"""Messages that carry tensors: protobuf reads and writes the head, this file the payloads, without needless copies.

Such a message ends in `repeated bytes payloads = 100`. Protobuf's Python runtime copies that field when it parses,
again at every look, and once more when it serialises. Here the payloads that came are views of the bytes that came,
and what goes out is one join. The bytes are those of the .proto: any protobuf library reads and writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from pnode.errors import BadRequest, TooLarge

M = TypeVar("M", bound=Message)
Buffer: TypeAlias = "bytes | memoryview"

FIELD = "payloads"
NUMBER = 100
# Field 100 of wire type 2 (a length, then so many bytes), as a varint.
_TAG = b"\xa2\x06"
_VARINT = 0
_LENGTH_DELIMITED = 2
_FIXED = {1: 8, 5: 4}
_MAX_VARINT_BYTES = 10
# Five bytes hold every length below 2 GiB, and protobuf takes no longer ones either.
_MAX_LENGTH_BYTES = 5
# A message of ours has a few fields beside its tensors, and those are counted (tensors.py). Beyond this many, a loop in
# Python would let a stranger buy seconds with megabytes, so protobuf's own parser takes over.
_MAX_FIELDS = 4096


@dataclass(frozen=True, slots=True)
class Parcel(Generic[M]):
    """A message without its payloads, and the payloads beside it: bytes of the caller's, or views of what came."""

    head: M
    payloads: Sequence[Buffer] = ()
    # The whole message, where it is written already. It is what head and payloads say.
    whole: bytes | None = field(default=None, compare=False, repr=False)


def carries(kind: type[Message]) -> bool:
    """Whether messages of this kind end in payloads."""
    field = kind.DESCRIPTOR.fields_by_name.get(FIELD)
    return field is not None and field.number == NUMBER


def reader_of(kind: type[M]) -> Callable[[Buffer], M | Parcel[M]]:
    """What reads messages of this kind: as parcels where they carry payloads."""
    read: Callable[[type[M], Buffer], M | Parcel[M]] = decode if carries(kind) else parsed
    return lambda raw: read(kind, raw)


def written(message: Message | Parcel[Any], max_message_bytes: int) -> bytes:
    """A message of either sort as bytes. Raises TooLarge where they are over the configured maximum."""
    if isinstance(message, Parcel):
        return encode(message, max_message_bytes)
    return serialised(message, max_message_bytes)


def encode(parcel: Parcel[Any], max_message_bytes: int) -> bytes:
    """The message as bytes: one join. Raises TooLarge where they are over the configured maximum."""
    parts = pieces(parcel)
    _check_most(parcel.head, sum(map(len, parts)), max_message_bytes)
    # A join of one `bytes` is that very one.
    return b"".join(parts)


def sealed(parcel: Parcel[M]) -> Parcel[M]:
    """The same message, written: its payloads are views of the one copy that was made of them."""
    parts = pieces(parcel)
    whole = b"".join(parts)
    view, at = memoryview(whole), len(parts[0])
    payloads: list[Buffer] = []
    for framing, payload in zip(parts[1::2], parts[2::2], strict=True):
        at += len(framing)
        payloads.append(view[at : at + len(payload)])
        at += len(payload)
    return Parcel(parcel.head, payloads, whole)


def pieces(parcel: Parcel[Any]) -> list[Buffer]:
    """What makes up the message, in order: the head, then each payload behind its tag and length."""
    if parcel.whole is not None:
        return [parcel.whole]
    parts: list[Buffer] = [parcel.head.SerializeToString()]
    for payload in parcel.payloads:
        # Views of other items than bytes have another length than what is joined.
        flat = payload if isinstance(payload, bytes) else memoryview(payload).cast("B")
        parts += (_TAG + _varint(len(flat)), flat)
    return parts


def decode(kind: type[M], raw: Buffer) -> Parcel[M]:
    """The message in `raw`; its payloads are views of it. Raises BadRequest where it is malformed.

    Fields may come in any order, and unknown ones of a newer protocol are kept.
    """
    found = _split(raw)
    if found is None:
        return _by_protobuf(kind, raw)
    head, payloads = found
    return Parcel(parsed(kind, head, len(raw)), payloads)


def parsed(kind: type[M], raw: Buffer, num_bytes: int | None = None) -> M:
    """A message without payloads. Raises BadRequest where it is malformed; `num_bytes`: what to call its size."""
    try:
        return kind.FromString(bytes(raw))
    except DecodeError as error:
        name, size = kind.DESCRIPTOR.name, len(raw) if num_bytes is None else num_bytes
        raise BadRequest(f"{size} bytes are not a whole {name}: the message is truncated or malformed") from error


def serialised(message: Message, max_message_bytes: int) -> bytes:
    """The bytes of a message without payloads. Raises TooLarge where they are over the configured maximum."""
    _check_most(message, message.ByteSize(), max_message_bytes)
    return message.SerializeToString()


def _check_most(message: Message, num_bytes: int, max_message_bytes: int) -> None:
    if num_bytes > max_message_bytes:
        name = message.DESCRIPTOR.name
        raise TooLarge(f"a {name} of {num_bytes} bytes is over the maximum of {max_message_bytes} bytes")


def _by_protobuf(kind: type[M], raw: Buffer) -> Parcel[M]:
    """The plain way, for what no writer of ours sends: protobuf judges it, and its copies are the payloads."""
    message: Any = parsed(kind, raw)
    payloads = list(message.payloads)
    message.ClearField(FIELD)
    return Parcel(message, payloads)


def _split(raw: Buffer) -> tuple[bytes, list[Buffer]] | None:
    """The bytes of all other fields, in their order, and the payloads; None for whatever is not plain and whole.

    Only lengths are looked at. What the other fields hold is for protobuf to judge.
    """
    view, end = memoryview(raw), len(raw)
    payloads: list[Buffer] = []
    others: list[Buffer] = []
    at = 0
    try:
        for _ in range(_MAX_FIELDS):
            if at == end:
                return b"".join(others), payloads
            begin = at
            is_payload = raw[at] == _TAG[0] and raw[at + 1] == _TAG[1]
            content, at = _extent(raw, at)
            if at > end:
                return None
            if is_payload:
                payloads.append(view[content:at])
            else:
                others.append(view[begin:at])
    except (_Unplain, IndexError):
        # An index out of range: the message ends within a tag, a length or a varint.
        return None
    return None


class _Unplain(Exception):
    """Whole perhaps, but nothing that a writer of ours sends."""


def _extent(raw: Buffer, at: int) -> tuple[int, int]:
    """Where the content of the field at `at` begins and where it ends."""
    wire_type = raw[at] & 7
    if raw[at] >= 0x80:
        # Numbers of 2048 and above have longer tags: no field of ours has one.
        at += 1
        if raw[at] >= 0x80:
            raise _Unplain
    at += 1
    if wire_type == _LENGTH_DELIMITED:
        length, at = _length(raw, at)
        return at, at + length
    if wire_type == _VARINT:
        return at, _after_varint(raw, at)
    if wire_type in _FIXED:
        return at, at + _FIXED[wire_type]
    # A group, which no message of ours has, or a wire type that does not exist.
    raise _Unplain


def _length(raw: Buffer, at: int) -> tuple[int, int]:
    """A length, and where what it measures begins."""
    length = shift = 0
    for _ in range(_MAX_LENGTH_BYTES):
        byte = raw[at]
        at += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return length, at
        shift += 7
    raise _Unplain


def _after_varint(raw: Buffer, at: int) -> int:
    for end in range(at, at + _MAX_VARINT_BYTES):
        if raw[end] < 0x80:
            return end + 1
    raise _Unplain


def _varint(number: int) -> bytes:
    """A length as it is written."""
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
