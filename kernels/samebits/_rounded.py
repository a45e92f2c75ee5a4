"""Functions of rationals rounded to binary64 once, by mpmath: what the host computes for schedules and tables.

mpmath is integers all the way down, so it gives the same digits everywhere; libm does not.
"""

from __future__ import annotations

import mpmath

PRECISION_BITS = 300


def cos_pi(numerator: int, denominator: int) -> float:
    """The binary64 nearest to cos(pi * numerator / denominator).

    Never a tie: the only rational values are 0, +-1/2 and +-1 (Niven), and those are binary64 numbers.
    """
    with mpmath.workprec(PRECISION_BITS):
        return float(mpmath.cospi(mpmath.mpf(numerator) / denominator))


def rational_power(numerator: int, denominator: int, exponent: float) -> float:
    """The binary64 nearest to (numerator / denominator) ** exponent, for a base that is not negative."""
    with mpmath.workprec(PRECISION_BITS):
        return float(mpmath.power(mpmath.mpf(numerator) / denominator, exponent))
