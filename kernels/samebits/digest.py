"""Canonical bytes of tensors, and a digest over named tensors."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from samebits._check import require_tensor
from samebits._compile import kernel
from samebits._intrinsics import load32, store32
from samebits._maps import ONE_IN
from samebits._split import split

# The integer type of the same width, and the bits of the one NaN that is ever hashed, sent or compared.
_CANONICAL_NAN = {
    torch.float32: (torch.int32, 0x7FC00000),
    torch.bfloat16: (torch.int16, 0x7FC0),
    torch.float16: (torch.int16, 0x7E00),
    torch.float64: (torch.int64, 0x7FF8000000000000),
}
NAN = np.float32("nan")
_EXACT = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _require_known(operator: str, name: str, value: object) -> None:
    dtype = value.dtype if isinstance(value, Tensor) else torch.float32
    if dtype not in _CANONICAL_NAN and dtype not in _EXACT:
        raise TypeError(f"{operator}: {name} has dtype {dtype}, which has no canonical bytes")
    require_tensor(operator, name, value, dtype)


@torch.no_grad()
def canonical_(t: Tensor) -> Tensor:
    """Make every NaN of t the canonical one (0x7fc00000, bf16 0x7fc0), in place; all else stays, -0 too. Returns t."""
    _require_known("canonical_", "t", t)
    if t.dtype in _CANONICAL_NAN:
        words, nan = _CANONICAL_NAN[t.dtype]
        t.view(words).masked_fill_(torch.isnan(t), nan)
    return t


@kernel(ONE_IN)
def _copy_canonical(x: int, y: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        value = load32(x, i)
        store32(y, i, value if value == value else NAN)


def copy_canonical_(out: Tensor, t: Tensor) -> Tensor:
    """The elements of t into out, every NaN as canonical_ makes it, in one pass over binary32. Returns out.

    out is contiguous, of t's dtype and of as many elements, in any shape; t may be strided. They must not overlap.

    TypeError: no canonical bytes, or dtypes that differ; ValueError: other numbers of elements, or an out that is not
    contiguous; RuntimeError: not in the CPU's memory.
    """
    for name, value in (("out", out), ("t", t)):
        _require_known("copy_canonical_", name, value)
    if out.dtype != t.dtype:
        raise TypeError(f"copy_canonical_: out is {out.dtype}, t is {t.dtype}")
    if out.numel() != t.numel() or not out.is_contiguous():
        raise ValueError(f"copy_canonical_: out {list(out.shape)} is not contiguous with as many elements as t")
    if t.dtype != torch.float32:
        with torch.no_grad():
            canonical_(out.view(t.shape).copy_(t))
        return out
    source = t.contiguous()
    split(_copy_canonical, t.numel(), 1, source.data_ptr(), out.data_ptr())
    # Autograd must know that it was written, as it does of torch's own operators.
    torch.autograd.graph.increment_version(out)
    return out


def _content(tensor: Tensor) -> memoryview:
    """The canonical bytes, C order, little-endian; the tensor itself stays as it is."""
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.dtype in _CANONICAL_NAN and bool(torch.isnan(flat).any()):
        flat = canonical_(flat.clone())
    return flat.view(torch.uint8).numpy().data


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, over every tensor's name, dtype, shape and canonical bytes, in the mapping's order.

    Hashed are, little-endian: for each tensor, the length of its name (4 bytes), the name in UTF-8, the length of its
    dtype (4 bytes), the dtype ("float32"), the number of axes (4 bytes), each size (8 bytes), then the elements.

    TypeError: not dense tensors of floats, integers or bools; RuntimeError: not in the CPU's memory.
    """
    hasher = hashlib.sha256()
    for name, tensor in tensors.items():
        _require_known("digest", repr(name), tensor)
        for text in (name.encode(), str(tensor.dtype).removeprefix("torch.").encode()):
            hasher.update(struct.pack("<I", len(text)) + text)
        hasher.update(struct.pack(f"<I{tensor.dim()}Q", tensor.dim(), *tensor.shape))
        hasher.update(_content(tensor))
    return hasher.hexdigest()
