"""bfloat16 storage, one element at a time: its bits are the upper half of a binary32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from samebits.reference.scalar import F32

HALF = 0x8000


def widen(word: int) -> np.float32:
    """The binary32 that a bfloat16's 16 bits are the upper half of."""
    return np.uint32(word << 16).view(F32)


def nearest(x: np.float32) -> int:
    """The 16 bits of the bfloat16 nearest to x, ties to the one that ends in 0; 0x7fc0 for every NaN."""
    if np.isnan(x):
        return 0x7FC0
    bits = int(np.float32(x).view(np.uint32))
    kept, rest = bits >> 16, bits & 0xFFFF
    return kept + 1 if rest > HALF or (rest == HALF and kept % 2 == 1) else kept


def rounded(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """`nearest` of every element."""
    out = np.empty(x.shape, np.uint16)
    for index in np.ndindex(x.shape):
        out[index] = nearest(F32(x[index]))
    return out
