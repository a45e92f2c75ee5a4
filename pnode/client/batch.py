"""Rows of training data as bytes: inputs and targets of a batch, cut into microbatches by slicing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pnode.v1 import tensor_pb2
from pnode.vnode.tensors import TensorBytes

_DTYPES: dict[np.dtype[np.generic], int] = {
    np.dtype("<f4"): tensor_pb2.DTYPE_F32,
    np.dtype("<i8"): tensor_pb2.DTYPE_I64,
    np.dtype("<i4"): tensor_pb2.DTYPE_I32,
    np.dtype("u1"): tensor_pb2.DTYPE_U8,
    np.dtype("?"): tensor_pb2.DTYPE_BOOL,
}
_NUMPY = {number: dtype for dtype, number in _DTYPES.items()}


def from_array(name: str, array: npt.NDArray[np.generic]) -> TensorBytes:
    """An array as a named tensor: little-endian, C order. Raises KeyError for a dtype that the wire does not know."""
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    return TensorBytes(name, _DTYPES[little.dtype], little.shape, little.tobytes())


def bfloat16_from(name: str, array: npt.NDArray[np.float32]) -> TensorBytes:
    """A float32 array as a bf16 tensor: each element rounded to the nearest, ties to even; every NaN the canonical one.

    NumPy has no bfloat16; this is what samebits.to_bfloat16 computes.
    """
    bits = np.ascontiguousarray(array, dtype="<f4").view("<u4").astype(np.uint64)
    halves = np.where(np.isnan(array), 0x7FC0, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)
    return TensorBytes(name, tensor_pb2.DTYPE_BF16, array.shape, halves.astype("<u2").tobytes())


def to_array(tensor: TensorBytes) -> npt.NDArray[np.generic]:
    """A tensor's bytes, as a read-only view. bf16 is copied to float32, the same values, since NumPy has none."""
    if tensor.dtype == tensor_pb2.DTYPE_BF16:
        halves = np.frombuffer(tensor.payload, dtype="<u2").astype("<u4")
        return (halves << 16).view("<f4").reshape(tensor.shape)
    return np.frombuffer(tensor.payload, dtype=_NUMPY[tensor.dtype]).reshape(tensor.shape)


@dataclass(frozen=True)
class Batch:
    """Tensors with one leading axis of rows, the same for all of them."""

    inputs: tuple[TensorBytes, ...]
    targets: tuple[TensorBytes, ...] = ()

    def __post_init__(self) -> None:
        if not self.inputs or len({tensor.shape[:1] for tensor in (*self.inputs, *self.targets)}) != 1:
            raise ValueError("a batch has inputs, and one number of rows in all of its tensors")

    @property
    def num_rows(self) -> int:
        """Rows of every tensor."""
        return self.inputs[0].shape[0]

    def rows(self, start: int, stop: int) -> Batch:
        """The rows from `start` up to `stop`."""
        return Batch(_sliced(self.inputs, start, stop), _sliced(self.targets, start, stop))

    def split(self, num: int) -> list[Batch]:
        """`num` microbatches in order, of sizes that differ by one row at most, the larger ones first."""
        if not 1 <= num <= self.num_rows:
            raise ValueError(f"{self.num_rows} rows cannot be split into {num} microbatches")
        small, larger = divmod(self.num_rows, num)
        bounds = [index * small + min(index, larger) for index in range(num + 1)]
        return [self.rows(start, stop) for start, stop in itertools.pairwise(bounds)]


def _sliced(tensors: Iterable[TensorBytes], start: int, stop: int) -> tuple[TensorBytes, ...]:
    return tuple(_slice(tensor, start, stop) for tensor in tensors)


def _slice(tensor: TensorBytes, start: int, stop: int) -> TensorBytes:
    row_bytes = len(tensor.payload) // tensor.shape[0]
    payload = bytes(tensor.payload[start * row_bytes : stop * row_bytes])
    return TensorBytes(tensor.name, tensor.dtype, (stop - start, *tensor.shape[1:]), payload)
