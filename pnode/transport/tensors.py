"""Tensors of a message: metadata in one field, raw bytes in another, checked against each other before use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pnode.errors import BadRequest, TooLarge
from pnode.transport.codec import Buffer
from pnode.v1 import tensor_pb2
from pnode.vnode.tensors import ITEM_BYTES, TensorBytes, dtype_name, num_bytes

MAX_TENSORS = 1024
MAX_DIMS = 8
MAX_NAME_CHARS = 256
_ENUMS = {int(value): value for value in tensor_pb2.DType.values()}


def metas(tensors: Iterable[TensorBytes]) -> list[tensor_pb2.TensorMeta]:
    """The metadata of tensors, for a message's field of them."""
    return [tensor_pb2.TensorMeta(name=each.name, dtype=_enum(each.dtype), shape=each.shape) for each in tensors]


def payloads(tensors: Iterable[TensorBytes]) -> list[Buffer]:
    """The contents of tensors, to go beside a message. Raises BadRequest where they do not fit their metadata."""
    contents: list[Buffer] = []
    for each in tensors:
        _check_size(each.name, each.dtype, each.shape, memoryview(each.payload).nbytes)
        contents.append(each.payload)
    return contents


def unpack(
    described: Sequence[tensor_pb2.TensorMeta], payloads: Sequence[Buffer], *, max_bytes: int
) -> list[TensorBytes]:
    """The tensors of a message, in order; for several fields of metadata pass their concatenation.

    Raises TooLarge for more than `max_bytes` in all, or too many tensors or dimensions; BadRequest for a count, size
    or dtype that is not right, a negative dimension, or a name that is empty or comes twice.
    """
    _check_count(len(described), len(payloads), sum(map(len, payloads)), max_bytes)
    tensors = [_tensor(meta, payload, max_bytes) for meta, payload in zip(described, payloads, strict=True)]
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors):
        raise BadRequest("two tensors of the message have one name")
    return tensors


def _check_count(num_metas: int, num_payloads: int, num_payload_bytes: int, max_bytes: int) -> None:
    if num_metas > MAX_TENSORS:
        raise TooLarge(f"{num_metas} tensors are over the maximum of {MAX_TENSORS}")
    if num_metas != num_payloads:
        raise BadRequest(f"the message describes {num_metas} tensors and carries {num_payloads} payloads")
    if num_payload_bytes > max_bytes:
        raise TooLarge(f"{num_payload_bytes} bytes of tensors are over the maximum of {max_bytes} bytes")


def _tensor(meta: tensor_pb2.TensorMeta, payload: Buffer, max_bytes: int) -> TensorBytes:
    if not 1 <= len(meta.name) <= MAX_NAME_CHARS:
        raise BadRequest(f"a tensor's name has {len(meta.name)} characters: 1 to {MAX_NAME_CHARS} are allowed")
    if len(meta.shape) > MAX_DIMS:
        raise TooLarge(f"tensor {meta.name!r} has {len(meta.shape)} dimensions: over the maximum of {MAX_DIMS}")
    shape = tuple(meta.shape)
    for dim in shape:
        if dim < 0:
            raise BadRequest(f"tensor {meta.name!r} has a negative dimension: {list(shape)}")
        # Beside a zero, any dimension would fit the payload, and overflow where strides are computed.
        if dim > max_bytes:
            raise TooLarge(f"tensor {meta.name!r} has a dimension over the maximum of {max_bytes}: {list(shape)}")
    _check_size(meta.name, meta.dtype, shape, len(payload))
    return TensorBytes(meta.name, int(meta.dtype), shape, payload)


def _check_size(name: str, dtype: int, shape: tuple[int, ...], payload_bytes: int) -> None:
    if dtype not in ITEM_BYTES:
        raise BadRequest(f"tensor {name!r} has an unknown dtype: {dtype_name(dtype)}")
    expected = num_bytes(dtype, shape)
    if payload_bytes != expected:
        what = f"{dtype_name(dtype)} {list(shape)}"
        raise BadRequest(f"tensor {name!r} is {what}, {expected} bytes, but its payload has {payload_bytes}")


def _enum(dtype: int) -> tensor_pb2.DType.ValueType:
    found = _ENUMS.get(dtype)
    if found is None:
        raise BadRequest(f"unknown dtype: {dtype_name(dtype)}")
    return found
