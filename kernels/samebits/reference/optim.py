"""SGD and AdamW, one element at a time."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from samebits.reference.scalar import F32, fma

Scalar = np.float32


def power(base: float, exponent: int) -> float:
    """base**exponent, squaring and multiplying from the exponent's highest bit down."""
    result = base if exponent else 1.0
    for place in reversed(range(max(exponent.bit_length() - 1, 0))):
        result *= result
        if exponent >> place & 1:
            result *= base
    return result


def sgd(p: Scalar, g: Scalar, buffer: Scalar | None, lr: float, momentum: float, decay: float) -> tuple[Scalar, Scalar]:
    """The new weight and the new buffer; no buffer yet: None."""
    h = fma(F32(decay), p, g) if F32(decay) else g
    if buffer is not None:
        h = fma(F32(momentum), buffer, h)
    return fma(F32(-lr), h, p), h


class Adam(NamedTuple):
    """One element's state."""

    p: Scalar
    m: Scalar
    v: Scalar


def adamw(old: Adam, g: Scalar, step: int, lr: float, betas: tuple[float, float], eps: float, decay: float) -> Adam:
    """The state after step number `step`, which counts from 1."""
    b1, b2 = betas
    p = old.p * F32(1.0 - lr * decay)
    m = fma(g, F32(1.0 - b1), old.m * F32(b1))
    v = old.v * F32(b2)
    v = v + (g * g) * F32(1.0 - b2)
    d = np.sqrt(v) / F32(math.sqrt(1.0 - power(b2, step))) + F32(eps)
    p = p + (m / d) * F32(-lr / (1.0 - power(b1, step)))
    return Adam(p, m, v)
