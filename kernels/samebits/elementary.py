"""Elementary functions of tensors, exp to rsqrt: the binary32 nearest to the true value, for every element.

They take and return binary32 tensors on the CPU, of any shape; results are contiguous. A wrong type raises TypeError,
a wrong device RuntimeError. They are differentiable once, by the graphs in their docstrings.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from samebits._blocks import BLOCK, cos_block, sin_block
from samebits._close import STEP, close_erf, close_exp, close_sigmoid
from samebits._compile import kernel, routine
from samebits._elementary import erf32, exp32, log32, rsqrt32, sigmoid32, tanh32
from samebits._intrinsics import fma32, load32, store32
from samebits._maps import ONE_IN, TWO_IN, Map, apply
from samebits._storage import stored

ONE, MINUS_HALF = np.float32(1.0), np.float32(-0.5)
TWO_OVER_ROOT_PI = np.float32(1.1283791670955126)


@routine(binary64=True)
def exact_exp(x: int, y: int, begin: int, end: int) -> None:
    """y = e**x, without `_close`."""
    for i in range(begin, end):
        store32(y, i, exp32(load32(x, i)))


@kernel(ONE_IN, binary64=True)
def _exp(x: int, y: int, begin: int, end: int) -> None:
    whole = end - (end - begin) % STEP
    for i in range(begin, whole, STEP):
        if close_exp(x, y, i):
            exact_exp(x, y, i, i + STEP)
    exact_exp(x, y, whole, end)


@kernel(TWO_IN)
def _exp_backward(grad: int, y: int, dx: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        store32(dx, i, load32(grad, i) * load32(y, i))


@kernel(ONE_IN, binary64=True)
def _log(x: int, y: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        store32(y, i, log32(load32(x, i)))


@kernel(TWO_IN)
def _log_backward(grad: int, x: int, dx: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        store32(dx, i, load32(grad, i) / load32(x, i))


@routine(binary64=True)
def exact_erf(x: int, y: int, begin: int, end: int) -> None:
    """y = erf(x), without `_close`."""
    for i in range(begin, end):
        store32(y, i, erf32(load32(x, i)))


@kernel(ONE_IN, binary64=True)
def _erf(x: int, y: int, begin: int, end: int) -> None:
    whole = end - (end - begin) % STEP
    for i in range(begin, whole, STEP):
        if close_erf(x, y, i):
            exact_erf(x, y, i, i + STEP)
    exact_erf(x, y, whole, end)


@kernel(TWO_IN, binary64=True)
def _erf_backward(grad: int, x: int, dx: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        value = load32(x, i)
        store32(dx, i, load32(grad, i) * (exp32(-(value * value)) * TWO_OVER_ROOT_PI))


@kernel(ONE_IN, binary64=True)
def _tanh(x: int, y: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        store32(y, i, tanh32(load32(x, i)))


@kernel(TWO_IN)
def _tanh_backward(grad: int, y: int, dx: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        value = load32(y, i)
        store32(dx, i, load32(grad, i) * fma32(-value, value, ONE))


@routine(binary64=True)
def exact_sigmoid(x: int, y: int, begin: int, end: int) -> None:
    """y = sigmoid(x), without `_close`."""
    for i in range(begin, end):
        store32(y, i, sigmoid32(load32(x, i)))


@kernel(ONE_IN, binary64=True)
def _sigmoid(x: int, y: int, begin: int, end: int) -> None:
    whole = end - (end - begin) % STEP
    for i in range(begin, whole, STEP):
        if close_sigmoid(x, y, i):
            exact_sigmoid(x, y, i, i + STEP)
    exact_sigmoid(x, y, whole, end)


@kernel(TWO_IN)
def _sigmoid_backward(grad: int, y: int, dx: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        value = load32(y, i)
        store32(dx, i, load32(grad, i) * fma32(-value, value, value))


@kernel(ONE_IN)
def _sqrt(x: int, y: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        store32(y, i, math.sqrt(load32(x, i)))


@kernel(TWO_IN)
def _sqrt_backward(grad: int, y: int, dx: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        value = load32(y, i)
        store32(dx, i, load32(grad, i) / (value + value))


@kernel(ONE_IN, binary64=True)
def _rsqrt(x: int, y: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        store32(y, i, rsqrt32(load32(x, i)))


@kernel(TWO_IN)
def _rsqrt_backward(grad: int, y: int, dx: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        value = load32(y, i)
        store32(dx, i, load32(grad, i) * (((value * value) * value) * MINUS_HALF))


@kernel(ONE_IN, binary64=True)
def _sin(x: int, y: int, begin: int, end: int) -> None:
    for first in range(begin, end, BLOCK):
        sin_block(x, y, first, min(first + BLOCK, end))


@kernel(ONE_IN, binary64=True)
def _cos(x: int, y: int, begin: int, end: int) -> None:
    for first in range(begin, end, BLOCK):
        cos_block(x, y, first, min(first + BLOCK, end))


@kernel(TWO_IN, binary64=True)
def _sin_backward(grad: int, x: int, dx: int, begin: int, end: int) -> None:
    for first in range(begin, end, BLOCK):
        last = min(first + BLOCK, end)
        cos_block(x, dx, first, last)
        for i in range(first, last):
            store32(dx, i, load32(grad, i) * load32(dx, i))


@kernel(TWO_IN, binary64=True)
def _cos_backward(grad: int, x: int, dx: int, begin: int, end: int) -> None:
    for first in range(begin, end, BLOCK):
        last = min(first + BLOCK, end)
        sin_block(x, dx, first, last)
        for i in range(first, last):
            store32(dx, i, load32(grad, i) * -load32(dx, i))


EXP = Map("exp", _exp, _exp_backward, keeps_result=True)
LOG = Map("log", _log, _log_backward)
ERF = Map("erf", _erf, _erf_backward)
TANH = Map("tanh", _tanh, _tanh_backward, keeps_result=True)
SIGMOID = Map("sigmoid", _sigmoid, _sigmoid_backward, keeps_result=True)
SQRT = Map("sqrt", _sqrt, _sqrt_backward, keeps_result=True)
RSQRT = Map("rsqrt", _rsqrt, _rsqrt_backward, keeps_result=True)
SIN = Map("sin", _sin, _sin_backward)
COS = Map("cos", _cos, _cos_backward)


@stored("x")
def exp(x: Tensor) -> Tensor:
    """e**x. Gradient: grad * y."""
    return apply(EXP, x)


@stored("x")
def log(x: Tensor) -> Tensor:
    """The natural logarithm; -inf at 0 of either sign, NaN below. Gradient: grad / x."""
    return apply(LOG, x)


@stored("x")
def erf(x: Tensor) -> Tensor:
    """The error function. Gradient: grad * (exp(-(x * x)) * binary32(2/sqrt(pi)))."""
    return apply(ERF, x)


@stored("x")
def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent. Gradient: grad * fma(-y, y, 1)."""
    return apply(TANH, x)


@stored("x")
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e**-x). Gradient: grad * fma(-y, y, y)."""
    return apply(SIGMOID, x)


@stored("x")
def sqrt(x: Tensor) -> Tensor:
    """The square root; -0 at -0, NaN below. Gradient: grad / (y + y)."""
    return apply(SQRT, x)


@stored("x")
def rsqrt(x: Tensor) -> Tensor:
    """1 / sqrt(x); +-inf at +-0, NaN below. Gradient: grad * (((y * y) * y) * -0.5)."""
    return apply(RSQRT, x)


@stored("x")
def sin(x: Tensor) -> Tensor:
    """The sine; NaN for infinities. Gradient: grad * cos(x)."""
    return apply(SIN, x)


@stored("x")
def cos(x: Tensor) -> Tensor:
    """The cosine; NaN for infinities. Gradient: grad * -sin(x)."""
    return apply(COS, x)
