"""The elementary functions as the contract defines them: the binary32 nearest to the true value.

The C library's binary64 value decides where it lies more than 8 of its last places from a midpoint between two
binary32; else mpmath does. So an oracle with errors below 8 ulps is enough, on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np

from samebits.reference.scalar import F32, ZERO

PRECISION_BITS = 300  # of mpmath: far beyond the closest approach of any binary32 argument to a midpoint
DOUBT = 8
NAN, INF = F32(math.nan), F32(math.inf)
CONTEXT: Any = mp.MPContext()
CONTEXT.prec = PRECISION_BITS


def nearest32(value: Any) -> np.float32:
    """The binary32 nearest to an mpmath number, ties to even."""
    if value == 0:
        return ZERO
    size = abs(value)
    place = max(CONTEXT.frexp(size)[1] - 24, -149)
    scaled = CONTEXT.ldexp(size, -place)
    whole = int(CONTEXT.floor(scaled))
    rest = scaled - whole
    if rest > 0.5 or (rest == 0.5 and whole & 1):
        whole += 1
    if whole >= 2 ** (128 - place):
        return F32(math.copysign(math.inf, value))
    return F32(math.copysign(math.ldexp(whole, place), value))


def correct(x: np.float32, guess: Callable[[float], float], exact: Callable[[Any], Any]) -> np.float32:
    """f(x) rounded correctly, for finite x with a finite result; exact is asked only in doubt."""
    close = guess(float(x))
    low, high = (F32(close + side * DOUBT * math.ulp(close)) for side in (-1.0, 1.0))
    if low == high != 0.0:
        return low
    result = nearest32(exact(CONTEXT.mpf(float(x))))
    return F32(math.copysign(result, close))


def exp(x: np.float32) -> np.float32:
    """e**x."""
    if not -110.0 < x < 90.0:  # NaN, or far beyond where the result is 0 or infinite
        return NAN if np.isnan(x) else INF if x > 0 else ZERO
    with np.errstate(over="ignore"):
        return correct(x, math.exp, CONTEXT.exp)


def log(x: np.float32) -> np.float32:
    """The natural logarithm."""
    if x == 0.0:
        return -INF
    if not x > 0.0:
        return NAN
    if x in (INF, F32(1.0)):
        return INF if x == INF else ZERO
    return correct(x, math.log, CONTEXT.log)


def erf(x: np.float32) -> np.float32:
    """The error function."""
    if x == 0.0 or np.isnan(x):
        return x
    return correct(x, math.erf, CONTEXT.erf)


def tanh(x: np.float32) -> np.float32:
    """The hyperbolic tangent."""
    if x == 0.0 or np.isnan(x):
        return x
    return correct(x, math.tanh, CONTEXT.tanh)


def sigmoid(x: np.float32) -> np.float32:
    """1 / (1 + e**-x)."""
    if not -110.0 < x < 90.0:  # NaN, or far beyond where the result is 0 or 1
        return NAN if np.isnan(x) else F32(1.0) if x > 0 else ZERO
    return correct(x, lambda y: 1.0 / (1.0 + math.exp(-y)), lambda y: 1 / (1 + CONTEXT.exp(-y)))


def sqrt(x: np.float32) -> np.float32:
    """The square root, which IEEE 754 rounds correctly."""
    with np.errstate(invalid="ignore"):
        return F32(np.sqrt(x))


def rsqrt(x: np.float32) -> np.float32:
    """1 / sqrt(x)."""
    if x == 0.0:
        return F32(math.copysign(math.inf, x))
    if not x > 0.0:
        return NAN
    return ZERO if x == INF else correct(x, lambda y: 1.0 / math.sqrt(y), lambda y: 1 / CONTEXT.sqrt(y))


def sin(x: np.float32) -> np.float32:
    """The sine."""
    if x == 0.0:
        return x
    return correct(x, math.sin, CONTEXT.sin) if np.isfinite(x) else NAN


def cos(x: np.float32) -> np.float32:
    """The cosine."""
    return correct(x, math.cos, CONTEXT.cos) if np.isfinite(x) else NAN
