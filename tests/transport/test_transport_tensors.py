"""Tensors of a message: what was packed comes back, and nothing else gets through."""

from __future__ import annotations

import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pnode.errors import BadRequest, TooLarge
from pnode.transport.codec import Parcel, decode, encode
from pnode.transport.tensors import MAX_DIMS, MAX_TENSORS, metas, payloads, unpack
from pnode.v1 import tensor_pb2, vnode_pb2
from pnode.vnode.tensors import ITEM_BYTES, TensorBytes, num_bytes

MAX_BYTES = 1 << 20


@st.composite
def tensors(draw: st.DrawFn) -> list[TensorBytes]:
    made = []
    for name in draw(st.lists(st.text(min_size=1, max_size=8), max_size=5, unique=True)):
        dtype = draw(st.sampled_from(sorted(ITEM_BYTES)))
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
        size = num_bytes(dtype, shape)
        made.append(TensorBytes(name, dtype, shape, draw(st.binary(min_size=size, max_size=size))))
    return made


@settings(deadline=None)
@given(tensors())
def test_what_is_packed_comes_back_through_the_wire(given_tensors: list[TensorBytes]) -> None:
    parcel = Parcel(vnode_pb2.ForwardRequest(inputs=metas(given_tensors)), payloads(given_tensors))
    arrived = decode(vnode_pb2.ForwardRequest, encode(parcel, MAX_BYTES))
    assert unpack(arrived.head.inputs, arrived.payloads, max_bytes=MAX_BYTES) == given_tensors


def test_memoryviews_of_any_item_size_are_packed() -> None:
    floats = array.array("f", [1.0, 2.0])
    view = TensorBytes("x", tensor_pb2.DTYPE_F32, (2,), memoryview(floats))
    sent = encode(Parcel(vnode_pb2.ForwardRequest(), payloads([view])), MAX_BYTES)
    assert vnode_pb2.ForwardRequest.FromString(sent).payloads == [floats.tobytes()]


META = st.builds(
    lambda name, dtype, shape: tensor_pb2.TensorMeta(name=name, dtype=dtype, shape=shape),
    st.text(max_size=300),
    st.integers(-1, 8),
    st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(0, 3)), max_size=10),
)


@settings(deadline=None)
@given(st.lists(META, max_size=6), st.lists(st.binary(max_size=64), max_size=6), st.integers(0, 256))
def test_whatever_comes_is_refused_or_fits(
    described: list[tensor_pb2.TensorMeta], raws: list[bytes], max_bytes: int
) -> None:
    try:
        unpacked = unpack(described, raws, max_bytes=max_bytes)
    except BadRequest:
        return
    assert sum(len(tensor.payload) for tensor in unpacked) <= max_bytes
    for tensor, meta in zip(unpacked, described, strict=True):
        assert len(tensor.payload) == num_bytes(meta.dtype, meta.shape)
        assert all(0 <= dim <= max_bytes for dim in tensor.shape)


def meta(name: str = "x", dtype: int = tensor_pb2.DTYPE_F32, shape: tuple[int, ...] = (2, 3)) -> tensor_pb2.TensorMeta:
    return tensor_pb2.TensorMeta(name=name, dtype=dtype, shape=shape)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("described", "raws", "words"),
    [
        ([meta()], [], "describes 1 tensors and carries 0 payloads"),
        ([], [b""], "describes 0 tensors and carries 1 payloads"),
        ([meta()], [bytes(23)], "24 bytes, but its payload has 23"),
        ([meta()], [bytes(25)], "24 bytes, but its payload has 25"),
        ([meta(dtype=0)], [bytes(24)], "unknown dtype: DTYPE_UNSPECIFIED"),
        ([meta(dtype=99)], [bytes(24)], "unknown dtype: dtype 99"),
        ([meta(shape=(-2, -3))], [bytes(24)], "negative dimension"),
        ([meta(shape=(2**62, 4, 4))], [b""], "dimension over the maximum"),
        ([meta(shape=(2**62, 0))], [b""], "dimension over the maximum"),
        ([meta(shape=(1000, 1000))], [b""], "4000000 bytes, but its payload has 0"),
        ([meta(shape=(1,) * (MAX_DIMS + 1))], [bytes(4)], "9 dimensions"),
        ([meta(name="")], [bytes(24)], "0 characters"),
        ([meta(name="n" * 257)], [bytes(24)], "257 characters"),
        ([meta(), meta()], [bytes(24), bytes(24)], "one name"),
    ],
)
def test_each_fault_has_its_sentence(described: list[tensor_pb2.TensorMeta], raws: list[bytes], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        unpack(described, raws, max_bytes=MAX_BYTES)


@pytest.mark.parametrize(("num", "max_bytes"), [(MAX_TENSORS + 1, MAX_BYTES), (2, 47)])
def test_too_much_is_too_large(num: int, max_bytes: int) -> None:
    described = [meta(name=str(number)) for number in range(num)]
    with pytest.raises(TooLarge, match="over the maximum"):
        unpack(described, [bytes(24)] * num, max_bytes=max_bytes)


def test_our_own_mistakes_do_not_leave_the_process() -> None:
    with pytest.raises(BadRequest, match="but its payload has 3"):
        payloads([TensorBytes("x", tensor_pb2.DTYPE_F32, (1,), b"abc")])
    with pytest.raises(BadRequest, match="unknown dtype"):
        metas([TensorBytes("x", 99, (1,), b"abcd")])
