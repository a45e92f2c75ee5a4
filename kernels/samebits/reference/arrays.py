"""Binary32 arrays: the correctly rounded fused multiply-add of every element, and chains with their order in sight.

Vectorised over independent outputs only; the loop over k stays a loop. Held equal to `scalar.fma` by a test.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from samebits.reference.scalar import F32

Floats = NDArray[np.float32]


def fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c, each element rounded once to binary32; operands broadcast.

    The product is exact in binary64. The sum is rounded to odd there: of its two binary64 neighbours the one with an
    odd last bit, which keeps the second rounding, to binary32, from being misled by the first.
    """
    with np.errstate(all="ignore"):
        product = np.multiply(a, b, dtype=np.float64)
        addend = np.asarray(c, dtype=np.float64)
        total = product + addend
        part = total - product
        error = (product - (total - part)) + (addend - part)  # exact: total + error = product + addend
        even = (total.view(np.int64) & 1) == 0
        inexact = np.isfinite(total) & (error != 0)
        odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
        return np.where(inexact & even, odd, total).astype(F32)


def product(a: Floats, b: Floats, start: Floats | None = None) -> Floats:
    """out[i, j] = chain over ascending k of acc = fma(a[i, k], b[k, j], acc), from +0 or from start[i, j]."""
    acc = np.zeros((a.shape[0], b.shape[1]), F32) if start is None else start.copy()
    for k in range(a.shape[1]):
        acc = fma(a[:, k, None], b[None, k, :], acc)
    return acc


def sum_rows(x: Floats, start: Floats | None = None) -> Floats:
    """out[j] = ascending sum over rows i of acc = acc + x[i, j], from +0 or from start[j]."""
    acc = np.zeros(x.shape[1], F32) if start is None else start.copy()
    for row in x:
        with np.errstate(all="ignore"):
            acc = acc + row
    return acc
