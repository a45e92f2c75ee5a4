"""Sine and cosine over a block of memory: a vector loop for all, then large arguments are put right one by one."""

from __future__ import annotations

from samebits._compile import routine
from samebits._elementary import REDUCED, cos32_large, cos32_reduced, sin32_large, sin32_reduced
from samebits._intrinsics import load32, store32

BLOCK = 256  # elements: small enough for the first-level cache


@routine(binary64=True)
def sin_block(x: int, y: int, begin: int, end: int) -> None:
    """y[i] = sin(x[i])."""
    outside = 0
    for i in range(begin, end):
        value = load32(x, i)
        store32(y, i, sin32_reduced(value))
        outside += 0 if abs(value) < REDUCED else 1
    if outside > 0:
        for i in range(begin, end):
            if not abs(load32(x, i)) < REDUCED:
                store32(y, i, sin32_large(load32(x, i)))


@routine(binary64=True)
def cos_block(x: int, y: int, begin: int, end: int) -> None:
    """y[i] = cos(x[i])."""
    outside = 0
    for i in range(begin, end):
        value = load32(x, i)
        store32(y, i, cos32_reduced(value))
        outside += 0 if abs(value) < REDUCED else 1
    if outside > 0:
        for i in range(begin, end):
            if not abs(load32(x, i)) < REDUCED:
                store32(y, i, cos32_large(load32(x, i)))
