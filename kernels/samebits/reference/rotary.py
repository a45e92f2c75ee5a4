"""rotary and its backward, element by element; angles by mpmath, each alone."""

from __future__ import annotations

import mpmath
import numpy as np

from samebits.reference.arrays import Floats
from samebits.reference.scalar import F32


def angle(base: float, width: int, position: int, i: int) -> tuple[np.float32, np.float32]:
    """cos and sin of position * base**(-2i/width), each rounded to binary32 once."""
    with mpmath.workprec(400):
        turn = position * mpmath.mpf(base) ** (mpmath.mpf(-2 * i) / width)
        values = mpmath.cos(turn), mpmath.sin(turn)
    with mpmath.workprec(24):
        return F32(float(+values[0])), F32(float(+values[1]))


def rotary(x: Floats, positions: list[int], base: float, *, interleaved: bool, back: bool = False) -> Floats:
    """x [..., T, D], its row t turned by the angles of positions[t], or turned back."""
    out, width = np.empty(x.shape, F32), x.shape[-1]
    half = width // 2
    for t, position in enumerate(positions):
        for i in range(half):
            c, s = angle(base, width, position, i)
            s = -s if back else s
            one, two = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
            a, b = x[..., t, one], x[..., t, two]
            with np.errstate(all="ignore"):
                out[..., t, one], out[..., t, two] = a * c - b * s, b * c + a * s
    return out
