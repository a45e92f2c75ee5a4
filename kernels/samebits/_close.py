"""Elementary functions of whole vectors, close to the true value, and a test that tells where close is not enough.

Each is binary64 arithmetic like `_elementary`, with no division and fewer terms. Its result v, before it is rounded to
binary32, differs from the true value by less than 2**-37 of it. A result is *in doubt* if v lies within 2**16 of its
own last places from a midpoint between two binary32; v has 53 bits, so that distance is at least 2**-37 of v. Else
there is no midpoint between v and the true value, and both round to the same binary32. Where any lane is in doubt
(one vector of 16 in 250 or so) the caller computes all of them by `_elementary`. Results that may be subnormal, whose
midpoints lie elsewhere, are declared in doubt from the argument.

The bounds, of the whole result: approximation (as make_coefficients.py's interpolation has it, by mpmath) + rounding.

    exp      2**-39.7 + 2**-49      degree 8; and one product n*ln(2) with |n| < 128
    erf      2**-37.07 + 2**-46     x * p, degree 20 in x*x moved to [-1, 1]; coefficients sum to 1.13, p >= 0.25
    sigmoid  2**-39.7 + 2**-39.8 + 2**-49   that exp, and the reciprocal of 1 + e: its seed errs by 2**-6.6, then
                                            a cubic and a quadratic step leave 2**-39.8

All of it is IEEE-754 arithmetic without a choice, the same on every processor; so the exhaustive test of each function
(tests/kernels/test_kernels_exhaustive.py) proves the bound on one processor for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

from llvmlite import ir
from numba import types

from samebits import _coefficients as made
from samebits._compile import intrinsic
from samebits._intrinsics import F64, I32, I64
from samebits._vectors import LANES, VECTOR, Vectors

WIDE, LONGS, INTEGERS = (ir.VectorType(kind, LANES) for kind in (F64, I64, I32))
SHIFT = 6755399441055744.0  # 1.5 * 2**52: adding it rounds to an integer, which then stands in the low bits
MIDPOINT, WINDOW, LOW_BITS = 1 << 28, 1 << 16, (1 << 29) - 1  # of what a binary64 has beyond a binary32
FARTHEST = 87.0  # e**-87 is normal in binary32
ERF_ONE = 3.92
SMALLEST_NORMAL_DOUBLED = 1 << 24  # the bits of 2**-126, shifted by one


class Close(Vectors):
    """Emits the functions at the builder's position. Masks have a lane's bit where its result is in doubt."""

    def singles(self, value: Any) -> Any:
        """The number in every lane, as binary32."""
        return ir.Constant(VECTOR, [float(value)] * LANES)

    def doubles(self, value: float) -> Any:
        """The number in every lane, as binary64."""
        return ir.Constant(WIDE, [value] * LANES)

    def fma64(self, a: Any, b: Any, c: Any) -> Any:
        """a * b + c in binary64, rounded once, in every lane."""
        return self.builder.call(self._declared(f"llvm.fma.v{LANES}f64", WIDE, [WIDE] * 3), [a, b, c])

    def size(self, x: Any) -> Any:
        """|x| of binary32 lanes."""
        return self.builder.call(self._declared(f"llvm.fabs.v{LANES}f32", VECTOR, [VECTOR]), [x])

    def polynomial(self, coefficients: Sequence[float], x: Any, ways: int) -> Any:
        """p(x), lowest degree first: by Horner's rule in x**ways, side by side, for ways = 1, 2 or 4."""
        if ways == 1:
            value = self.doubles(coefficients[-1])
            for coefficient in coefficients[-2::-1]:
                value = self.fma64(value, x, self.doubles(coefficient))
            return value
        square = self.builder.fmul(x, x)
        even, odd = (self.polynomial(coefficients[first::2], square, ways // 2) for first in (0, 1))
        return self.fma64(odd, x, even)

    def rounded(self, value: Any) -> tuple[Any, Any]:
        """Binary64 lanes rounded to binary32, and which of them are in doubt."""
        b = self.builder
        moved = b.add(b.bitcast(value, LONGS), ir.Constant(LONGS, [MIDPOINT + WINDOW] * LANES))
        kept = b.and_(moved, ir.Constant(LONGS, [LOW_BITS - (2 * WINDOW - 1)] * LANES))
        return b.fptrunc(value, VECTOR), b.icmp_signed("==", kept, ir.Constant(LONGS, [0] * LANES))

    def exp64(self, y: Any) -> Any:
        """e**y in binary64, for |y| <= FARTHEST."""
        b, shift = self.builder, self.doubles(SHIFT)
        shifted = self.fma64(y, self.doubles(made.LOG2_E), shift)
        rest = self.fma64(b.fsub(shifted, shift), self.doubles(-made.LN2[0]), y)
        power = b.shl(b.bitcast(shifted, LONGS), ir.Constant(LONGS, [52] * LANES))
        return b.bitcast(b.add(b.bitcast(self.polynomial(made.NEAR_EXP, rest, 2), LONGS), power), WIDE)

    def exponential(self, x: Any) -> tuple[Any, Any]:
        """e**x; in doubt beyond +-FARTHEST, where the result may be subnormal or infinite, and for NaN."""
        b = self.builder
        result, doubt = self.rounded(self.exp64(b.fpext(x, WIDE)))
        return result, b.or_(doubt, b.fcmp_unordered(">", self.size(x), self.singles(FARTHEST)))

    def error_function(self, x: Any) -> tuple[Any, Any]:
        """erf(x). Subnormal results may be wrong and not in doubt: see `subnormal`."""
        b = self.builder
        for bound, beyond in ((-ERF_ONE, "<"), (ERF_ONE, ">")):
            x = b.select(b.fcmp_ordered(beyond, x, self.singles(bound)), self.singles(bound), x)
        y = b.fpext(x, WIDE)
        t = self.fma64(b.fmul(y, y), self.doubles(made.NEAR_ERF_SCALE), self.doubles(-1.0))
        return self.rounded(b.fmul(y, self.polynomial(made.NEAR_ERF, t, 2)))

    def subnormal(self, x: Any) -> Any:
        """Whether x is subnormal; not so for 0."""
        b = self.builder
        doubled = b.shl(b.bitcast(x, INTEGERS), ir.Constant(INTEGERS, [1] * LANES))
        one, bound = (ir.Constant(INTEGERS, [value] * LANES) for value in (1, SMALLEST_NORMAL_DOUBLED - 1))
        return b.icmp_unsigned("<", b.sub(doubled, one), bound)

    def logistic(self, x: Any) -> tuple[Any, Any]:
        """1 / (1 + e**-x); in doubt beyond +-FARTHEST, and for NaN."""
        b, one = self.builder, self.doubles(1.0)
        size = self.size(x)
        e = self.exp64(b.fneg(b.fpext(size, WIDE)))
        minus = b.fsub(self.doubles(-1.0), e)
        inverse = self.polynomial(made.NEAR_RECIPROCAL, e, 1)
        left = self.fma64(minus, inverse, one)
        inverse = self.fma64(inverse, self.fma64(left, left, left), inverse)
        inverse = self.fma64(inverse, self.fma64(minus, inverse, one), inverse)
        below = b.fcmp_ordered("<", x, self.zero)
        result, doubt = self.rounded(b.fmul(inverse, b.select(below, e, one)))
        return result, b.or_(doubt, b.fcmp_unordered(">", size, self.singles(FARTHEST)))


GROUP = 2  # vectors computed side by side, which keeps the processor's units busy
STEP = GROUP * LANES
Compute = Callable[..., tuple[Any, Any]]  # (code, vectors...) -> the result, and which lanes are in doubt


def _emit(builder: Any, compute: Compute, pointers: Sequence[Any], index: Any) -> Any:
    code, whole = Close(builder), ir.IntType(LANES)
    *inputs, output = [code.pointer(pointer) for pointer in pointers]
    offsets = [builder.add(index, I64(i * LANES)) for i in range(GROUP)]
    loaded = [[code.load(code.at(pointer, offset)) for pointer in inputs] for offset in offsets]
    results, doubts = zip(*[compute(code, *vectors) for vectors in loaded], strict=True)
    for offset, result in zip(offsets, results, strict=True):
        code.store(result, code.at(output, offset))
    return builder.icmp_signed("!=", builder.bitcast(reduce(builder.or_, doubts), whole), ir.Constant(whole, 0))


def of_one(compute: Compute) -> Any:
    """compute over STEP elements, (x, y, i): y[i:] = f(x[i:]); returns whether any of them is in doubt."""

    @intrinsic
    def lanes(context: Any, x: Any, y: Any, i: Any) -> Any:
        def generate(ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return _emit(builder, compute, arguments[:2], arguments[2])

        return types.boolean(*[types.intp] * 3), generate

    return lanes


def of_two(compute: Compute) -> Any:
    """The same of two inputs, (grad, x, dx, i)."""

    @intrinsic
    def lanes(context: Any, grad: Any, x: Any, dx: Any, i: Any) -> Any:
        def generate(ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return _emit(builder, compute, arguments[:3], arguments[3])

        return types.boolean(*[types.intp] * 4), generate

    return lanes


@intrinsic
def close_exp_below(context: Any, x: Any, m: Any, y: Any, i: Any) -> Any:
    """The same for exp(x - m) of a number m, (x, m, y, i)."""

    def generate(ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, m, y, i = arguments
        return _emit(builder, lambda code, row: code.exponential(builder.fsub(row, code.spread(m))), [x, y], i)

    return types.boolean(types.intp, types.float32, types.intp, types.intp), generate


def _erf(code: Close, x: Any) -> tuple[Any, Any]:
    result, doubt = code.error_function(x)
    return result, code.builder.or_(doubt, code.subnormal(x))


close_exp, close_erf, close_sigmoid = of_one(Close.exponential), of_one(_erf), of_one(Close.logistic)
