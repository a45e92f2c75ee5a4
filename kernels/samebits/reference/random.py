"""Philox4x32-10, uniform and normal numbers, one at a time, in Python integers and binary32 scalars."""

from __future__ import annotations

import math

import numpy as np

from samebits.reference import elementary as exact
from samebits.reference.scalar import F32, fma

MASK = 0xFFFFFFFF
Scalar = np.float32
Words = tuple[int, int, int, int]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Ten rounds; the key grows by the golden ratio and the square root of 3, less 1, between them."""
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1, x2, x3 = (b >> 32) ^ x1 ^ k0, b & MASK, (a >> 32) ^ x3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return x0, x1, x2, x3


def word(element: int, sample: int, step: int, seed: int, site: int) -> int:
    """The 32 bits of one element of one sample."""
    key = seed ^ site
    return philox((element // 4, sample, step, 0), (key & MASK, key >> 32))[element % 4]


def unit(bits: int) -> Scalar:
    """(2 * (w >> 9) + 1) * 2**-24."""
    return F32((2 * (bits >> 9) + 1) / 2**24)


def uniform(bits: int, low: float, high: float) -> Scalar:
    """From low to high."""
    return fma(unit(bits), F32(high - low), F32(low))


def normal(element: int, sample: int, step: int, seed: int, site: int, std: float) -> Scalar:
    """Box-Muller: the cosine for the first of a pair of elements, the sine for the second."""
    first = element - element % 2
    u, v = (unit(word(e, sample, step, seed, site)) for e in (first, first + 1))
    radius = np.sqrt(F32(-2.0) * exact.log(u))
    angle = F32(2.0 * math.pi) * v
    wave = exact.sin(angle) if element % 2 else exact.cos(angle)
    return F32(radius * wave) * F32(std)
