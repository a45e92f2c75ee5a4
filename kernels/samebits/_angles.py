"""Sines and cosines of a rotary embedding's angles, correctly rounded once from exact angles.

The angle of pair i at position t is t * base**(-2i/D), a real number: base**(-2i/D) is not rounded. From one position
to the next a pair is turned by one complex product in integers of 256 bits after the point, beginning with mpmath's
values at the first position of a block. The error, a few hundred units of the last bit, can matter only where the
binary64 nearest to a value stands beside a midpoint of two binary32; there mpmath computes the value alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import mpmath
import numpy as np
from numpy.typing import NDArray

BITS = 256  # after the point
BLOCK = 256  # positions computed together
POSITIONS = 1 << 31
Floats = NDArray[np.float32]


def _turned(step: mpmath.mpf, first: int) -> Iterator[tuple[int, int]]:
    """cos and sin, times 2**BITS, of step * t for the positions t of a block."""
    cos_step, sin_step = (int(f(step) * 2**BITS) for f in (mpmath.cos, mpmath.sin))
    c, s = (int(f(step * first) * 2**BITS) for f in (mpmath.cos, mpmath.sin))
    for _ in range(BLOCK):
        yield c, s
        c, s = (c * cos_step - s * sin_step) >> BITS, (s * cos_step + c * sin_step) >> BITS


def _in_doubt(doubles: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where a binary64 lies within two units of its last bit from a midpoint of two binary32, or is tiny."""
    low = doubles.view(np.int64) & 0x1FFFFFFF
    return (abs(low - 0x10000000) <= 2) | (abs(doubles) < 2.0**-60)


def _exact(step: mpmath.mpf, position: int, column: int) -> np.float32:
    """cos (column 0) or sin (column 1), whose binary32 the binary64 does not tell."""
    value = (mpmath.cos, mpmath.sin)[column](step * position)
    with mpmath.workprec(24):  # of normal numbers; an angle's sine and cosine are 0 or far from the subnormal ones
        return np.float32(float(+value))


@lru_cache(maxsize=256)
def block(base: float, width: int, number: int) -> Floats:
    """[positions, 2, width / 2]: cosines and sines of positions BLOCK * number and on."""
    table, first = np.empty((BLOCK, 2, width // 2), np.float32), BLOCK * number
    with mpmath.workprec(BITS + 64):
        for i in range(width // 2):
            step = mpmath.mpf(base) ** (mpmath.mpf(-2 * i) / width)
            exact = np.array([(c / 2**BITS, s / 2**BITS) for c, s in _turned(step, first)], np.float64)
            table[:, :, i] = exact
            for row, column in zip(*_in_doubt(exact).nonzero(), strict=True):
                table[row, column, i] = _exact(step, first + int(row), int(column))
    table.flags.writeable = False
    return table
