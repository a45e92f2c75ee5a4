"""Between bytes and torch: the wire's dtypes, and states' tensors. Bytes are little-endian, as on every host we run."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np
import samebits
import torch
from torch import Tensor

from pnode.v1 import tensor_pb2
from pnode.vnode.state import StateTensor
from pnode.vnode.tensors import TensorBytes

DTYPES: dict[int, torch.dtype] = {
    tensor_pb2.DTYPE_F32: torch.float32,
    tensor_pb2.DTYPE_BF16: torch.bfloat16,
    tensor_pb2.DTYPE_I64: torch.int64,
    tensor_pb2.DTYPE_I32: torch.int32,
    tensor_pb2.DTYPE_U8: torch.uint8,
    tensor_pb2.DTYPE_BOOL: torch.bool,
}
_NUMBERS = {dtype: number for number, dtype in DTYPES.items()}


def to_torch(tensor: TensorBytes) -> Tensor:
    """A tensor of its own memory on the CPU. The bytes' size must have been checked."""
    memory = torch.from_numpy(np.frombuffer(tensor.payload, dtype=np.uint8).copy())
    return memory.view(DTYPES[tensor.dtype]).view(tensor.shape)


def as_torch(tensor: TensorBytes) -> Tensor:
    """A tensor over the very bytes, one at least, which must not be written. Their number must have been checked."""
    return torch.frombuffer(tensor.payload, dtype=DTYPES[tensor.dtype]).view(tensor.shape)


# torch warns, once in a process, that a tensor over memory that is read only had better not be written.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)


def to_bytes(name: str, tensor: Tensor) -> TensorBytes:
    """The bytes of a tensor: a view of its memory where it lies in C order on the CPU."""
    return TensorBytes(name, _NUMBERS[tensor.dtype], tuple(tensor.shape), content(tensor))


class Outgoing(NamedTuple):
    """What TensorBytes say, of a tensor that is copied once, to where it is read. Every NaN leaves canonical."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    tensor: Tensor

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Outgoing:
        """The tensor itself: it must stay as it is until it is copied."""
        return cls(name, _NUMBERS[tensor.dtype], tuple(tensor.shape), tensor)

    def copy_to(self, place: memoryview) -> None:
        """Write the elements, in C order, to where there is room for just that."""
        if place.nbytes:
            out = torch.frombuffer(place, dtype=self.tensor.dtype)
            samebits.copy_canonical_(out, self.tensor.cpu() if self.tensor.is_cuda else self.tensor)


def content(tensor: Tensor) -> memoryview:
    """The tensor's elements as bytes in C order."""
    if tensor.requires_grad or tensor.is_cuda or not tensor.is_contiguous():
        # What is asked first is cheaper than these are where they change nothing.
        tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.float32 and tensor.numel():
        return tensor.numpy().data.cast("B")  # by fewer steps; numpy has no bfloat16
    return tensor.view(-1).view(torch.uint8).numpy().data


def from_state(tensor: StateTensor) -> Tensor:
    """An f32 tensor of its own memory."""
    return torch.from_numpy(np.frombuffer(tensor.content, dtype="<f4").copy().reshape(tensor.shape))


def canonical(tensor: Tensor) -> Tensor:
    """The same values, every NaN the canonical one. A tensor without a NaN is handed back as it is."""
    # A sum of anything with a NaN is one, and costs a tenth of looking at each element. It may be a NaN without that,
    # where infinities of both signs meet, so then all are looked at.
    if not tensor.is_floating_point() or not math.isnan(tensor.sum()) or not bool(torch.isnan(tensor).any()):
        return tensor
    return samebits.canonical_(tensor.detach().cpu().clone())
