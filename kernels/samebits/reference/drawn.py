"""embedding and dropout, one element at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samebits.reference import random
from samebits.reference.arrays import Floats
from samebits.reference.scalar import F32, ZERO


def embedding(indices: Sequence[int], weight: Floats) -> Floats:
    """The rows of the table."""
    out = np.empty((len(indices), weight.shape[1]), F32)
    for i, row in enumerate(indices):
        out[i] = weight[row]
    return out


def embedding_backward(indices: Sequence[int], grad: Floats, start: Floats, padding: int | None) -> Floats:
    """Ascending positions, continuing the start; padding is absent."""
    total = start.copy()
    for i, row in enumerate(indices):
        for k in range(total.shape[1]):
            if row != padding:
                total[row, k] = total[row, k] + grad[i, k]
    return total


def dropout(x: Floats, p: float, seed: int, site: int, step: int, first_sample: int) -> Floats:
    """x [N, elements] through its mask."""
    out, scale = np.empty(x.shape, F32), F32(1.0 / (1.0 - p)) if p < 1 else ZERO
    for i, e in np.ndindex(x.shape):
        drawn = random.unit(random.word(e, first_sample + i, step, seed, site))
        out[i, e] = x[i, e] * scale if drawn >= F32(p) else ZERO
    return out
