"""Tensors as bytes: what crosses processes and the wire, before and after anyone knows torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from pnode.v1 import tensor_pb2

# Bytes of one element. A dtype that is not here is not known.
ITEM_BYTES: dict[int, int] = {
    tensor_pb2.DTYPE_F32: 4,
    tensor_pb2.DTYPE_BF16: 2,
    tensor_pb2.DTYPE_I64: 8,
    tensor_pb2.DTYPE_I32: 4,
    tensor_pb2.DTYPE_U8: 1,
    tensor_pb2.DTYPE_BOOL: 1,
}
# Values of these have gradients; operators compute with them.
FLOATS = frozenset({tensor_pb2.DTYPE_F32, tensor_pb2.DTYPE_BF16})


class TensorBytes(NamedTuple):
    """One named tensor: the wire's dtype number, its whole shape, raw little-endian C-order bytes."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    payload: bytes | memoryview

    def copy_to(self, place: memoryview) -> None:
        """Write the payload to where there is room for just that."""
        place[:] = memoryview(self.payload).cast("B")


def num_elements(shape: Iterable[int]) -> int:
    """Product of the dimensions; 1 for a scalar. Exact: Python integers do not overflow."""
    product = 1
    for dim in shape:
        product *= dim
    return product


def num_bytes(dtype: int, shape: Iterable[int]) -> int:
    """Bytes of a tensor of a known dtype. Raises KeyError for an unknown one."""
    return ITEM_BYTES[dtype] * num_elements(shape)


def dtype_name(dtype: int) -> str:
    """`DTYPE_F32` and so on, or the bare number where the contract knows no name."""
    known = tensor_pb2.DType.DESCRIPTOR.values_by_number.get(dtype)
    return known.name if known is not None else f"dtype {dtype}"
