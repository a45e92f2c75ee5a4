"""The codec against protobuf's own parser and writer: the same messages, the same refusals, and no copies."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transport_fakes import fence

from pnode.errors import BadRequest, TooLarge
from pnode.transport.codec import Parcel, carries, decode, encode
from pnode.v1 import tensor_pb2, vnode_pb2
from pnode.vnode.tensors import ITEM_BYTES

KINDS: list[Any] = [
    vnode_pb2.ForwardRequest,
    vnode_pb2.ForwardReply,
    vnode_pb2.TrainRequest,
    vnode_pb2.TrainReply,
]
MOST = 1 << 20


def by_protobuf(kind: Any, raw: bytes) -> tuple[bytes, list[bytes]] | None:
    """Head and payloads as protobuf reads them; None where it refuses."""
    try:
        message = kind.FromString(raw)
    except DecodeError:
        return None
    payloads = list(message.payloads)
    message.ClearField("payloads")
    return message.SerializeToString(deterministic=True), payloads


def by_codec(kind: Any, raw: bytes) -> tuple[bytes, list[bytes]] | None:
    try:
        parcel = decode(kind, raw)
    except BadRequest:
        return None
    return parcel.head.SerializeToString(deterministic=True), [bytes(payload) for payload in parcel.payloads]


def varint(number: int, num_bytes: int = 0) -> bytes:
    """A varint; with more bytes than it needs, where `num_bytes` asks for them."""
    groups = [number & 0x7F]
    while number := number >> 7:
        groups.append(number & 0x7F)
    groups += [0] * (num_bytes - len(groups))
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


META = tensor_pb2.TensorMeta(name="x", dtype=tensor_pb2.DTYPE_F32, shape=[2, 3])
HEADS: list[Any] = [
    vnode_pb2.ForwardRequest(fence=fence(), inputs=[META, META]),
    vnode_pb2.ForwardReply(version=2**63, outputs=[META]),
    vnode_pb2.TrainRequest(fence=fence(), step=1, batch_rows=64, inputs=[META], targets=[META]),
    vnode_pb2.TrainReply(loss_sum=0.5, duplicate=True, input_gradients=[META]),
]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.DESCRIPTOR.name)
@pytest.mark.parametrize("payloads", [[], [b""], [b"ab", b"", bytes(range(256)) * 65]], ids=len)
def test_a_stock_client_reads_and_writes_the_same_bytes(head: Any, payloads: list[bytes]) -> None:
    whole = type(head)()
    whole.CopyFrom(head)
    whole.payloads.extend(payloads)
    raw = encode(Parcel(head, payloads), MOST)
    assert raw == whole.SerializeToString()
    assert decode(type(head), raw) == Parcel(head, payloads)


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
def test_every_dtype_of_the_contract_passes(dtype: int) -> None:
    content = bytes(range(256))
    count = len(content) // ITEM_BYTES[dtype]
    meta = tensor_pb2.TensorMeta(name="x", dtype=dtype, shape=[count])  # type: ignore[arg-type]  # from the table
    parcel = Parcel(vnode_pb2.ForwardReply(outputs=[meta]), [memoryview(content)])
    assert decode(vnode_pb2.ForwardReply, encode(parcel, MOST)) == parcel


def test_payloads_are_views_of_what_came() -> None:
    raw = encode(Parcel(HEADS[0], [b"first", b"second"]), MOST)
    for payload in decode(vnode_pb2.ForwardRequest, raw).payloads:
        assert isinstance(payload, memoryview)
        assert payload.obj is raw


def test_what_is_too_large_is_not_written() -> None:
    parcel = Parcel(vnode_pb2.ForwardRequest(), [bytes(2000)])
    assert len(encode(parcel, 2004)) == 2004
    with pytest.raises(TooLarge, match="ForwardRequest of 2004 bytes is over the maximum of 2003"):
        encode(parcel, 2003)


def test_only_messages_with_tensors_are_parcels() -> None:
    assert all(carries(kind) for kind in KINDS)
    assert not carries(vnode_pb2.ApplyRequest)


# Whatever a writer may send

RAWS = st.one_of(
    # Whole messages, their fields in any order: payloads first, between, twice.
    st.lists(
        st.one_of(
            st.binary(max_size=200).map(lambda content: field(100, content)),
            st.just(field(1, fence().SerializeToString())),
            st.just(field(2, META.SerializeToString())),
            st.integers(0, 2**64 - 1).map(lambda number: varint(2 << 3) + varint(number)),
            st.just(varint(101 << 3 | 5) + bytes(4)),
            st.just(varint(102 << 3 | 1) + bytes(8)),
        ),
        max_size=8,
    ).map(b"".join),
    # Fields of any number, wire type and length, the varints longer than they need be.
    st.lists(
        st.builds(
            lambda number, wire_type, tag_bytes, length, length_bytes, content: (
                varint(number << 3 | wire_type, tag_bytes) + varint(length, length_bytes) + content
            ),
            st.sampled_from([0, 1, 2, 7, 100, 2047, 2048, 2**29 - 1, 2**29]),
            st.integers(0, 7),
            st.integers(0, 7),
            st.sampled_from([0, 1, 2, 3, 127, 2**31 - 1, 2**31, 2**32 + 1, 2**63]),
            st.integers(0, 11),
            st.binary(max_size=4),
        ),
        max_size=4,
    ).map(b"".join),
    st.binary(max_size=40),
)


@settings(deadline=None, max_examples=500)
@given(st.sampled_from(KINDS), RAWS)
@example(vnode_pb2.ForwardRequest, varint(100 << 3 | 3) + field(100, b"x") + varint(100 << 3 | 4))
@example(vnode_pb2.ForwardRequest, varint(100 << 3) + varint(7))
@example(vnode_pb2.ForwardRequest, varint(100 << 3 | 2, 5) + varint(1) + b"x")
@example(vnode_pb2.ForwardRequest, varint(100 << 3 | 2) + varint(1, 5) + b"x")
@example(vnode_pb2.ForwardRequest, varint(100 << 3 | 2) + varint(1, 6) + b"x")
@example(vnode_pb2.ForwardRequest, b"\xa2")
@example(vnode_pb2.ForwardRequest, b"\xa2\x06\x80")
@example(vnode_pb2.ForwardRequest, field(100, b"x") * 5000)
def test_whatever_comes_is_read_or_refused_as_protobuf_does(kind: Any, raw: bytes) -> None:
    assert by_codec(kind, raw) == by_protobuf(kind, raw)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(HEADS), st.lists(st.binary(max_size=40), max_size=4), st.data())
def test_damage_to_real_messages_is_read_or_refused_as_protobuf_does(
    head: Any, payloads: list[bytes], draw: st.DataObject
) -> None:
    raw = bytearray(encode(Parcel(head, payloads), MOST))
    for _ in range(draw.draw(st.integers(0, 3))):
        at = draw.draw(st.integers(0, len(raw) - 1))
        raw[at] = draw.draw(st.integers(0, 255))
    cut = bytes(raw[: draw.draw(st.integers(0, len(raw)))])
    for damaged in (bytes(raw), cut):
        assert by_codec(type(head), damaged) == by_protobuf(type(head), damaged)


@pytest.mark.parametrize(
    "raw",
    [
        field(100, b"x")[:-1],
        varint(100 << 3 | 2) + varint(2**31),
        varint(100 << 3 | 2) + b"\x80" * 11,
        varint(100 << 3 | 6),
        varint(100 << 3 | 4),
        b"\x02\x00",
    ],
)
def test_malformed_bytes_are_bad_requests(raw: bytes) -> None:
    with pytest.raises(BadRequest, match=f"^{len(raw)} bytes are not a whole ForwardRequest"):
        decode(vnode_pb2.ForwardRequest, raw)
