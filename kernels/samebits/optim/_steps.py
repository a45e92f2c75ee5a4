"""The compiled pass of each optimizer over one parameter: weight, gradient and state are read and written once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from samebits._compile import inlined, kernel
from samebits._intrinsics import fma32, load32, store32

ZERO = np.float32(0.0)


@inlined()
def decayed(g: float, weight: float, decay: float) -> Any:
    """fma(decay, weight, g), but g itself without decay: 0 * weight would turn -0 into +0, and infinities into NaN."""
    return g if decay == ZERO else fma32(decay, weight, g)


@kernel("void(intp, intp, float32, float32, intp, intp)")
def sgd(p: int, g: int, decay: float, minus_lr: float, begin: int, end: int) -> None:
    for i in range(begin, end):
        weight = load32(p, i)
        store32(p, i, fma32(minus_lr, decayed(load32(g, i), weight, decay), weight))


@kernel("void(intp, intp, intp, float32, float32, float32, intp, intp)")
def sgd_momentum(
    p: int, g: int, buffer: int, momentum: float, decay: float, minus_lr: float, begin: int, end: int
) -> None:
    for i in range(begin, end):
        weight = load32(p, i)
        moved = fma32(momentum, load32(buffer, i), decayed(load32(g, i), weight, decay))
        store32(buffer, i, moved)
        store32(p, i, fma32(minus_lr, moved, weight))


@kernel("void(intp, intp, intp, float32, float32, intp, intp)")
def sgd_first(p: int, g: int, buffer: int, decay: float, minus_lr: float, begin: int, end: int) -> None:
    for i in range(begin, end):
        weight = load32(p, i)
        moved = decayed(load32(g, i), weight, decay)
        store32(buffer, i, moved)
        store32(p, i, fma32(minus_lr, moved, weight))


@kernel("void(intp, intp, intp, intp, " + ", ".join(["float32"] * 8) + ", intp, intp)")
def adamw(
    p: int, g: int, m: int, v: int, kept: float, beta1: float, rest1: float, beta2: float, rest2: float,
    root: float, eps: float, minus_size: float, begin: int, end: int,
) -> None:  # fmt: skip
    for i in range(begin, end):
        grad = load32(g, i)
        first = fma32(grad, rest1, load32(m, i) * beta1)
        second = load32(v, i) * beta2 + (grad * grad) * rest2
        store32(m, i, first)
        store32(v, i, second)
        d = math.sqrt(second) / root + eps
        store32(p, i, load32(p, i) * kept + (first / d) * minus_size)


@kernel("void(intp, intp, intp, intp, " + ", ".join(["float32"] * 8) + ", intp, intp)")
def adam(
    p: int, g: int, m: int, v: int, decay: float, beta1: float, rest1: float, beta2: float, rest2: float,
    root: float, eps: float, minus_size: float, begin: int, end: int,
) -> None:  # fmt: skip
    for i in range(begin, end):
        weight = load32(p, i)
        grad = decayed(load32(g, i), weight, decay)
        first = fma32(grad, rest1, load32(m, i) * beta1)
        second = load32(v, i) * beta2 + (grad * grad) * rest2
        store32(m, i, first)
        store32(v, i, second)
        d = math.sqrt(second) / root + eps
        store32(p, i, weight + (first / d) * minus_size)
