"""SGD, Adam, AdamW and the norm of gradients, one element at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from samebits.reference.arrays import Floats
from samebits.reference.scalar import F32, ZERO, fma

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
    return _moved(old, old.p * F32(1.0 - lr * decay), g, step, lr, betas, eps)


def adam(old: Adam, g: Scalar, step: int, lr: float, betas: tuple[float, float], eps: float, decay: float) -> Adam:
    """The same with weight decay in the gradient."""
    return _moved(old, old.p, fma(F32(decay), old.p, g) if F32(decay) else g, step, lr, betas, eps)


def _moved(
    old: Adam, p: Scalar, g: Scalar, step: int, lr: float, betas: tuple[float, float], eps: float
) -> Adam:  # fmt: skip
    b1, b2 = betas
    m = fma(g, F32(1.0 - b1), old.m * F32(b1))
    v = old.v * F32(b2)
    v = v + (g * g) * F32(1.0 - b2)
    d = np.sqrt(v) / F32(math.sqrt(1.0 - power(b2, step))) + F32(eps)
    p = p + (m / d) * F32(-lr / (1.0 - power(b1, step)))
    return Adam(p, m, v)


def norm(gradients: Sequence[Floats]) -> Scalar:
    """One chain of fma a gradient, then the chains' sum in order, then its root."""
    total = ZERO
    for gradient in gradients:
        chain = ZERO
        for g in gradient.reshape(-1):
            chain = fma(g, g, chain)
        total = total + chain
    return F32(np.sqrt(total))


def clipped(gradients: Sequence[Floats], max_norm: float) -> list[Floats]:
    """Each times max_norm / (norm + 1e-6), unless that is at least 1."""
    factor = F32(max_norm) / (norm(gradients) + F32(1e-6))
    return [gradient if factor >= 1 else gradient * factor for gradient in gradients]
