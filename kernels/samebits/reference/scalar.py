"""Binary32 scalars: the correctly rounded fused multiply-add, and the constants of the reference loops."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

F32 = np.float32
ZERO, ONE, HALF = F32(0.0), F32(1.0), F32(0.5)


def power_of_two(exponent: int) -> Fraction:
    """2**exponent, exactly."""
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)


def rounded(value: Fraction) -> np.float32:
    """The binary32 nearest to an exact rational, ties to even; infinite beyond the largest; +0 for 0."""
    if value == 0:
        return ZERO
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()  # floor(log2) or one more
    if power_of_two(exponent) > size:
        exponent -= 1
    place = max(exponent - 23, -149)
    scaled = round(size / power_of_two(place))  # Fraction rounds half to even
    if place > 104 or scaled >= 1 << (128 - place):
        return F32(math.copysign(math.inf, value))
    return F32(math.copysign(math.ldexp(scaled, place), value))


def fma(a: np.float32, b: np.float32, c: np.float32) -> np.float32:
    """a * b + c with one rounding."""
    with np.errstate(all="ignore"):
        product = float(a) * float(b)  # exact: 48 bits, and binary64 has the exponents
        total = product + float(c)
        if not math.isfinite(total) or product == 0.0 or c == 0.0:
            return F32(total)  # exact, and with the sign that IEEE 754 gives a zero
        below, above = F32(math.nextafter(total, -math.inf)), F32(math.nextafter(total, math.inf))
    if below == above != 0.0:
        return below  # the true sum lies between, so it rounds alike
    exact = Fraction(product) + Fraction(float(c))
    return rounded(exact)
