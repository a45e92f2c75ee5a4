"""Elementary functions, correctly rounded to binary32, as scalar code that inlines into vectorised loops.

Each takes and returns binary32; inside it is binary64 `+ - * / fma` and integer arithmetic only, rounded to binary32
once. Where binary64 leaves a result within half an ulp of its own from a binary32 midpoint, `_rounded_to_odd` keeps
that second rounding harmless. Equality with the true value is checked, not argued: over all 2**32 inputs of each
function (tests/kernels/test_kernels_exhaustive.py; the table stands in kernels/README.md). NaN gives NaN.

The constants are made by kernels/make_coefficients.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from samebits import _coefficients as made
from samebits._compile import f32, f64, inlined, intrinsic, routine
from samebits._intrinsics import F64, bits64, fma64, from_bits64


def _polynomial(coefficients: Sequence[float]) -> Callable[[float], float]:
    """p(x) by Estrin's scheme: neighbours are joined by fma, level by level, which keeps the vector units busy."""

    @intrinsic
    def evaluate(context: Any, x: Any) -> Any:
        def generate(ctx: Any, b: Any, sig: Any, args: Any) -> Any:
            terms, power = [ir.Constant(F64, c) for c in coefficients], args[0]
            while len(terms) > 1:
                odd = terms[-1:] if len(terms) % 2 else []
                terms = [b.fma(high, power, low) for low, high in zip(terms[::2], terms[1::2], strict=False)] + odd
                power = b.fmul(power, power)
            return terms[0]

        return types.float64(types.float64), generate

    return evaluate


_exp_tail, _log_tail = _polynomial(made.EXP), _polynomial(made.LOG)
_erf_over, _erf_under = _polynomial(made.ERF_OVER), _polynomial(made.ERF_UNDER)
_tanh_over, _tanh_under = _polynomial(made.TANH_OVER), _polynomial(made.TANH_UNDER)
_sigmoid_middle = _polynomial(made.SIGMOID)
_sin_tail, _cos_tail = _polynomial(made.SIN), _polynomial(made.COS)

_INF, _NAN, _HUGE = math.inf, math.nan, 1e300
_SHIFT = 6755399441055744.0  # 1.5 * 2**52: adding it rounds to an integer, which then stands in the low bits
_SHIFT_BITS = int(np.array([_SHIFT]).view(np.int64)[0])
_ROOT_HALF_BITS = int(np.array([0.7071067811865476]).view(np.int64)[0])
_LOG2_E, _TWO_OVER_PI = made.LOG2_E, made.TWO_OVER_PI
_LN2, _LN2_LOW = made.LN2
_LN2_SHORT, _LN2_REST = made.LN2_SHORT
_HALF_PI, _HALF_PI_LOW, _HALF_PI_LOWER = made.HALF_PI
_ROWS, _FIRST_EXPONENT = np.array(made.TWO_OVER_PI_ROWS), made.FIRST_EXPONENT
_single: Any = np.float32
REDUCED = _single(1048576.0)  # sine and cosine reduce smaller arguments by three parts of pi/2
_EXP_LOW, _EXP_HIGH = _single(-150.0), _single(130.0)  # beyond these, as beyond the next, the result is constant
_SIGMOID_NEAR = made.SIGMOID_NEAR
_ERF_ONE, _TANH_ONE = _single(3.92), _single(9.02)


@inlined(binary64=True)
def _rounded_to_odd(head: float, tail: float) -> float:
    """head + tail, |head| >= |tail|; if inexact, the neighbour with an odd last bit, safe to be rounded again."""
    s = head + tail
    left = tail - (s - head)
    b = bits64(s)
    toward = 1 if (left > 0.0) == (s > 0.0) else -1
    step = 0 if b & 1 else toward
    return from_bits64(b + step) if (left > 0.0) | (left < 0.0) else s


@inlined(binary64=True)
def _exp64(y: float) -> Any:
    """e**y nearly to the last bit of binary64, for -1000 < y < 700: 2**n * (1 + r + r*r*p(r)) with |r| <= ln(2)/2."""
    shifted = fma64(y, _LOG2_E, _SHIFT)
    n = shifted - _SHIFT
    r = fma64(n, -_LN2_LOW, fma64(n, -_LN2, y))
    scale = from_bits64((bits64(shifted) - _SHIFT_BITS + 1023) << 52)
    return fma64(scale, fma64(r * r, _exp_tail(r), r), scale)


@inlined(binary64=True)
def exp32(x: float) -> float:
    """e**x."""
    x = _EXP_LOW if x < _EXP_LOW else x
    return f32(_exp64(f64(_EXP_HIGH if x > _EXP_HIGH else x)))


@inlined(binary64=True)
def log32(x: float) -> float:
    """The natural logarithm; -inf at 0, NaN below. n*ln(2) + log(1+f), the latter by the series of atanh(f/(2+f))."""
    y = f64(x)
    b = bits64(y)
    k = (b - _ROOT_HALF_BITS) >> 52
    n = from_bits64(k + _SHIFT_BITS) - _SHIFT
    f = from_bits64(b - (k << 52)) - 1.0
    s = f / (f + 2.0)
    z = s * s
    half = 0.5 * f * f  # exact: f has 24 bits
    series = fma64(s, fma64(z, _log_tail(z), half), n * _LN2_REST)
    head = f - half
    rest = (f - head) - half
    whole = n * _LN2_SHORT  # exact
    top = whole + head
    result = _rounded_to_odd(top, ((whole - top) + head) + (rest + series))
    result = y if y > _HUGE else result
    result = -_INF if y == 0.0 else result
    result = _NAN if y < 0.0 else result
    return f32(result if y == y else y)


@inlined(binary64=True)
def erf32(x: float) -> float:
    """The error function: x * p(x*x) / q(x*x); +-1 from 3.92 on."""
    x = -_ERF_ONE if x < -_ERF_ONE else x
    y = f64(_ERF_ONE if x > _ERF_ONE else x)
    z = y * y
    return f32(y * _erf_over(z) / _erf_under(z))


@inlined(binary64=True)
def tanh32(x: float) -> float:
    """The hyperbolic tangent: x * p(x*x) / q(x*x); +-1 from 9.02 on."""
    x = -_TANH_ONE if x < -_TANH_ONE else x
    y = f64(_TANH_ONE if x > _TANH_ONE else x)
    z = y * y
    return f32(y * _tanh_over(z) / _tanh_under(z))


@inlined(binary64=True)
def sigmoid32(x: float) -> float:
    """1 / (1 + e**-x): with q = e**-|x| / (1 + e**-|x|) it is 1 - q or q; near 0 it is 1/2 + x * p(x*x).

    Sums are rounded to odd: around 0 lie many results that differ from a midpoint by far less than a binary64's last
    place.
    """
    x = _EXP_LOW if x < _EXP_LOW else x
    y = f64(_EXP_HIGH if x > _EXP_HIGH else x)
    e = _exp64(-abs(y))
    q = e / (1.0 + e)
    near, positive = abs(y) < _SIGMOID_NEAR, y > 0.0
    head = 0.5 if near else 1.0
    tail = y * _sigmoid_middle(y * y) if near else -q
    return f32(_rounded_to_odd(head, tail) if near | positive else q)


@inlined(binary64=True)
def rsqrt32(x: float) -> float:
    """1 / sqrt(x) with one rounding to binary32; +-inf at +-0, NaN below."""
    return f32(1.0 / math.sqrt(f64(x)))


@inlined(binary64=True)
def _reduced(y: float) -> tuple[float, float, int]:
    """y - n*pi/2 as head and tail, and n, for |y| < REDUCED (Cody and Waite). The first product cancels exactly."""
    shifted = fma64(y, _TWO_OVER_PI, _SHIFT)
    n = shifted - _SHIFT
    r = fma64(-n, _HALF_PI, y)
    p = n * _HALF_PI_LOW
    head = r - p
    v = head - r
    tail = (r - (head - v)) - (p + v)
    return head, tail - fma64(n, _HALF_PI_LOWER, fma64(n, _HALF_PI_LOW, -p)), bits64(shifted)


@inlined(binary64=True)
def _sum(a: float, b: float) -> tuple[float, float]:
    """a + b and what its rounding lost, exactly."""
    s = a + b
    v = s - a
    return s, (a - (s - v)) + (b - v)


@inlined(binary64=True)
def _reduced_large(y: float) -> tuple[float, float, int]:
    """The same for finite |y| >= REDUCED (Payne and Hanek): the 24-bit integer m times a table of 2**e * 2/pi mod 4."""
    b = bits64(y)
    e = ((b >> 52) & 2047) - 1023 - 23
    m, row = from_bits64(b - (e << 52)), e - _FIRST_EXPONENT
    p, q = m * _ROWS[row, 0], m * _ROWS[row, 1]
    shifted = (p + q) + _SHIFT
    first, lost = _sum(p - (shifted - _SHIFT), q)
    turn, rest = _sum(first, m * _ROWS[row, 2])
    rest = rest + (lost + m * _ROWS[row, 3])
    head = turn * _HALF_PI
    return head, fma64(turn, _HALF_PI, -head) + fma64(turn, _HALF_PI_LOW, rest * _HALF_PI), bits64(shifted)


@inlined(binary64=True)
def _wave(head: float, tail: float, quadrant: int) -> float:
    """sin(head + tail + quadrant*pi/2) for |head| <= pi/4 and a tail below its last bit."""
    z = head * head
    z_low = fma64(head, head, -z)
    half = 0.5 * z
    cos_head = 1.0 - half
    cos_low = (1.0 - cos_head) - half
    sin_rest = fma64(z * head, _sin_tail(z), fma64(-half, tail, tail))
    cos_rest = fma64(z * z, _cos_tail(z), fma64(-head, tail, fma64(-0.5, z_low, cos_low)))
    even = (quadrant & 1) == 0
    y = _rounded_to_odd(head if even else cos_head, sin_rest if even else cos_rest)
    return -y if quadrant & 2 else y


@inlined(binary64=True)
def sin32_reduced(x: float) -> float:
    """sin(x) for |x| < REDUCED; vectorises."""
    head, tail, quadrant = _reduced(f64(x))
    y = _wave(head, tail, quadrant)
    return f32(x if x == 0.0 else y)


@inlined(binary64=True)
def cos32_reduced(x: float) -> float:
    """cos(x) for |x| < REDUCED; vectorises."""
    head, tail, quadrant = _reduced(f64(x))
    return f32(_wave(head, tail, quadrant + 1))


@routine(binary64=True)
def sin32_large(x: float) -> float:
    """sin(x) for |x| >= REDUCED; NaN for infinities."""
    y = f64(x)
    if not abs(y) < _HUGE:
        return f32(_NAN)
    head, tail, quadrant = _reduced_large(y)
    return f32(_wave(head, tail, quadrant))


@routine(binary64=True)
def cos32_large(x: float) -> float:
    """cos(x) for |x| >= REDUCED; NaN for infinities."""
    y = f64(x)
    if not abs(y) < _HUGE:
        return f32(_NAN)
    head, tail, quadrant = _reduced_large(y)
    return f32(_wave(head, tail, quadrant + 1))
