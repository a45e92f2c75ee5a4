"""Makes samebits/_coefficients.py: the binary64 constants of the elementary functions, from mpmath at 400 bits.

Run: python kernels/make_coefficients.py > kernels/samebits/_coefficients.py

Polynomials interpolate at Chebyshev points (within a bit of the best possible), lowest degree first; rationals P/Q
likewise, linearised, with Q[0] = 1. Nothing here has to be trusted: the functions are checked over every binary32.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import mpmath as mp

PRECISION_BITS = 400
SIGMOID_NEAR = 1.0  # below this, sigmoid is 1/2 and a polynomial
ERF_SQUARES = 15.38  # z = x * x lies below this where erf(x) is not yet +-1
EXPONENTS = range(-8, 105)  # of the last place of a binary32 argument from 1 up to the largest


def chebyshev_points(count: int, low: object, high: object) -> list[mp.mpf]:
    """The roots of a Chebyshev polynomial, moved onto [low, high]."""
    middle, radius = (mp.mpf(high) + mp.mpf(low)) / 2, (mp.mpf(high) - mp.mpf(low)) / 2
    return [middle + radius * mp.cos(mp.pi * (2 * i + 1) / (2 * count)) for i in range(count)]


def rational(
    f: Callable[[mp.mpf], mp.mpf], over: int, under: int, low: object, high: object
) -> tuple[list[mp.mpf], list[mp.mpf]]:
    """P (degree over) and Q (degree under) with P - f Q = 0 at the Chebyshev points of [low, high]."""
    size = over + under + 1
    rows, right = mp.matrix(size, size), mp.matrix(size, 1)
    for i, x in enumerate(chebyshev_points(size, low, high)):
        right[i] = f(x)
        for j in range(over + 1):
            rows[i, j] = x**j
        for j in range(1, under + 1):
            rows[i, over + j] = -right[i] * x**j
    solved = mp.lu_solve(rows, right)
    return [solved[j] for j in range(over + 1)], [mp.mpf(1)] + [solved[over + j] for j in range(1, under + 1)]


def polynomial(f: Callable[[mp.mpf], mp.mpf], degree: int, low: object, high: object) -> list[mp.mpf]:
    """The interpolating polynomial of f, lowest degree first."""
    return rational(f, degree, 0, low, high)[0]


def centred(f: Callable[[mp.mpf], mp.mpf], degree: int, high: object) -> list[mp.mpf]:
    """The interpolating polynomial of f on [0, high] as one of t in [-1, 1], f((t + 1) * high / 2), lowest first."""
    return polynomial(lambda t: f((t + 1) * mp.mpf(high) / 2), degree, -1, 1)


def parts(value: mp.mpf, *widths: int) -> list[float]:
    """The value as a sum of doubles; part i keeps widths[i] bits, so that small integers multiply it exactly."""
    out = []
    for width in widths:
        mantissa, exponent = mp.frexp(value)
        scale = mp.mpf(2) ** (exponent - width)
        out.append(float(mp.nint(value / scale) * scale) if mantissa else 0.0)
        value -= mp.mpf(out[-1])
    return out


def nudged(values: list[mp.mpf], ulps: int) -> list[float]:
    """The values as doubles, the first one moved by so many of its last places."""
    doubles = [float(value) for value in values]
    return [doubles[0] + ulps * math.ulp(doubles[0]), *doubles[1:]]


def two_over_pi_rows() -> list[list[float]]:
    """2**e * 2/pi modulo 4, in four fixed-point pieces, for every exponent e: Payne and Hanek's reduction as a table.

    Three pieces are multiples of 2**-26, 2**-54 and 2**-82, whose products with 24-bit integers are exact; one is a
    plain double.
    """
    rows = []
    for exponent in EXPONENTS:
        left, row = (mp.mpf(2) ** exponent * 2 / mp.pi) % 4, []
        for place in (26, 54, 82):
            row.append(float(mp.floor(left * mp.mpf(2) ** place) / mp.mpf(2) ** place))
            left -= mp.mpf(row[-1])
        rows.append([*row, float(left)])
    return rows


def erf_ratio(z: mp.mpf) -> mp.mpf:
    """erf(x) / x of z = x * x."""
    return mp.erf(mp.sqrt(z)) / mp.sqrt(z)


def constants() -> dict[str, object]:
    """Every name and value of the generated module."""
    half_ln2, quarter_pi = mp.log(2) / 2 * 1.0001, mp.pi / 4 * 1.0001
    root = (mp.sqrt(2) - 1) / (mp.sqrt(2) + 1) * 1.0001
    erf_over, erf_under = rational(erf_ratio, 11, 12, 0, ERF_SQUARES)
    tanh_over, tanh_under = rational(lambda z: mp.tanh(mp.sqrt(z)) / mp.sqrt(z), 8, 9, 0, 81.5)
    return {
        "LOG2_E": float(1 / mp.log(2)),
        "LN2": parts(mp.log(2), 53, 53),
        "LN2_SHORT": parts(mp.log(2), 42, 53),
        "EXP": polynomial(lambda r: (mp.exp(r) - 1 - r) / r**2, 9, -half_ln2, half_ln2),
        "LOG": polynomial(lambda z: 2 * (mp.atanh(mp.sqrt(z)) / mp.sqrt(z) - 1) / z, 9, 0, root**2),
        # One ulp up: without it +-0x1.81d5acp-13 alone, of all binary32, would round to the wrong side.
        "ERF_OVER": nudged(erf_over, 1),
        "ERF_UNDER": erf_under,
        "TANH_OVER": tanh_over,
        "TANH_UNDER": tanh_under,
        "SIGMOID_NEAR": SIGMOID_NEAR,
        "SIGMOID": polynomial(lambda z: mp.tanh(mp.sqrt(z) / 2) / mp.sqrt(z) / 2, 10, 0, SIGMOID_NEAR**2),
        "NEAR_EXP": polynomial(mp.exp, 8, -half_ln2, half_ln2),
        "NEAR_ERF": centred(erf_ratio, 20, ERF_SQUARES),
        "NEAR_ERF_SCALE": 2 / ERF_SQUARES,
        "NEAR_RECIPROCAL": polynomial(lambda e: 1 / (1 + e), 2, 0, 1),
        "TWO_OVER_PI": float(2 / mp.pi),
        "HALF_PI": parts(mp.pi / 2, 53, 53, 53),
        "SIN": polynomial(lambda z: (mp.sin(mp.sqrt(z)) / mp.sqrt(z) - 1) / z, 6, 0, quarter_pi**2),
        "COS": polynomial(lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2, 6, 0, quarter_pi**2),
        "TWO_OVER_PI_ROWS": two_over_pi_rows(),
    }


def written(value: object) -> str:
    """A number or a list of them as Python source; repr of a double is exact."""
    if isinstance(value, list):
        return f"({', '.join(written(item) for item in value)})"
    return repr(float(value))  # type: ignore[arg-type]  # mpf and float alike


def assigned(name: str, value: object) -> str:
    """One assignment; a list stands one item a line."""
    if not isinstance(value, list):
        return f"{name} = {written(value)}"
    return f"{name} = (\n" + "".join(f"    {written(item)},\n" for item in value) + ")"


def main() -> None:
    """Write the module to standard output."""
    mp.mp.prec = PRECISION_BITS
    lines = [
        '"""Constants of the elementary functions, as kernels/make_coefficients.py makes them. Do not edit."""',
        "",
        "# fmt: off",
        f"FIRST_EXPONENT = {EXPONENTS[0]}",
        *(assigned(name, value) for name, value in constants().items()),
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
