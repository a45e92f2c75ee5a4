"""relu, gelu and silu: operators that treat every element alone.

They take and return binary32 tensors on the CPU, of any shape; results are contiguous. A wrong type raises TypeError,
a wrong device RuntimeError. They are differentiable once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from samebits._close import STEP, Close, of_one, of_two
from samebits._compile import inlined, kernel, routine
from samebits._elementary import erf32, exp32, sigmoid32
from samebits._intrinsics import fma32, load32, store32
from samebits._maps import ONE_IN, TWO_IN, Map, apply
from samebits._storage import stored

ZERO, HALF, MINUS_HALF, ONE = np.float32(0.0), np.float32(0.5), np.float32(-0.5), np.float32(1.0)
ROOT_HALF = np.float32(0.7071067811865476)
NORMAL_DENSITY = np.float32(0.3989422804014327)  # 1 / sqrt(2 pi)


@inlined()
def passes(x: float) -> Any:
    """Whether relu lets x through: x > 0, or x is NaN."""
    return (x > ZERO) | (x != x)


@inlined(binary64=True)
def normal_cdf(x: Any) -> Any:
    """0.5 * (1 + erf(x * binary32(sqrt(1/2))))."""
    return HALF * (ONE + erf32(x * ROOT_HALF))


@kernel(ONE_IN)
def _relu(x: int, y: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        value = load32(x, i)
        store32(y, i, value if passes(value) else ZERO)


@kernel(TWO_IN)
def _relu_backward(grad: int, y: int, dx: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        g = load32(grad, i)
        store32(dx, i, g if passes(load32(y, i)) else ZERO)


@routine(binary64=True)
def exact_gelu(x: int, y: int, begin: int, end: int) -> None:
    """y = gelu(x), without `_close`."""
    for i in range(begin, end):
        value = load32(x, i)
        store32(y, i, value * normal_cdf(value))


@routine(binary64=True)
def exact_gelu_backward(grad: int, x: int, dx: int, begin: int, end: int) -> None:
    """dx = its gradient, likewise. Two loops, since one would not vectorise."""
    for i in range(begin, end):
        store32(dx, i, normal_cdf(load32(x, i)))
    for i in range(begin, end):
        value = load32(x, i)
        density = exp32((value * value) * MINUS_HALF) * NORMAL_DENSITY
        store32(dx, i, load32(grad, i) * fma32(value, density, load32(dx, i)))


@routine(binary64=True)
def exact_silu(x: int, y: int, begin: int, end: int) -> None:
    """y = silu(x), likewise."""
    for i in range(begin, end):
        value = load32(x, i)
        store32(y, i, value * sigmoid32(value))


@routine(binary64=True)
def exact_silu_backward(grad: int, x: int, dx: int, begin: int, end: int) -> None:
    """dx = its gradient, likewise."""
    for i in range(begin, end):
        value = load32(x, i)
        s = sigmoid32(value)
        store32(dx, i, load32(grad, i) * (s * fma32(value, ONE - s, ONE)))


def _close_cdf(code: Close, x: Any) -> tuple[Any, Any]:
    """normal_cdf. An erf that is subnormal may be wrong by its last place: 0.5 comes out all the same."""
    erf, doubt = code.error_function(code.builder.fmul(x, code.singles(ROOT_HALF)))
    return code.builder.fmul(code.singles(HALF), code.builder.fadd(code.singles(ONE), erf)), doubt


def _close_gelu(code: Close, x: Any) -> tuple[Any, Any]:
    cdf, doubt = _close_cdf(code, x)
    return code.builder.fmul(x, cdf), doubt


def _close_gelu_backward(code: Close, grad: Any, x: Any) -> tuple[Any, Any]:
    b = code.builder
    cdf, doubt = _close_cdf(code, x)
    exponential, doubtful = code.exponential(b.fmul(b.fmul(x, x), code.singles(MINUS_HALF)))
    slope = code.fma(x, b.fmul(exponential, code.singles(NORMAL_DENSITY)), cdf)
    return b.fmul(grad, slope), b.or_(doubt, doubtful)


def _close_silu(code: Close, x: Any) -> tuple[Any, Any]:
    s, doubt = code.logistic(x)
    return code.builder.fmul(x, s), doubt


def _close_silu_backward(code: Close, grad: Any, x: Any) -> tuple[Any, Any]:
    b, one = code.builder, code.singles(ONE)
    s, doubt = code.logistic(x)
    return b.fmul(grad, b.fmul(s, code.fma(x, b.fsub(one, s), one))), doubt


close_gelu, close_silu = of_one(_close_gelu), of_one(_close_silu)
close_gelu_backward, close_silu_backward = of_two(_close_gelu_backward), of_two(_close_silu_backward)


@kernel(ONE_IN, binary64=True)
def _gelu(x: int, y: int, begin: int, end: int) -> None:
    whole = end - (end - begin) % STEP
    for i in range(begin, whole, STEP):
        if close_gelu(x, y, i):
            exact_gelu(x, y, i, i + STEP)
    exact_gelu(x, y, whole, end)


@kernel(TWO_IN, binary64=True)
def _gelu_backward(grad: int, x: int, dx: int, begin: int, end: int) -> None:
    whole = end - (end - begin) % STEP
    for i in range(begin, whole, STEP):
        if close_gelu_backward(grad, x, dx, i):
            exact_gelu_backward(grad, x, dx, i, i + STEP)
    exact_gelu_backward(grad, x, dx, whole, end)


@kernel(ONE_IN, binary64=True)
def _silu(x: int, y: int, begin: int, end: int) -> None:
    whole = end - (end - begin) % STEP
    for i in range(begin, whole, STEP):
        if close_silu(x, y, i):
            exact_silu(x, y, i, i + STEP)
    exact_silu(x, y, whole, end)


@kernel(TWO_IN, binary64=True)
def _silu_backward(grad: int, x: int, dx: int, begin: int, end: int) -> None:
    whole = end - (end - begin) % STEP
    for i in range(begin, whole, STEP):
        if close_silu_backward(grad, x, dx, i):
            exact_silu_backward(grad, x, dx, i, i + STEP)
    exact_silu_backward(grad, x, dx, whole, end)


RELU = Map("relu", _relu, _relu_backward, keeps_result=True)
GELU = Map("gelu", _gelu, _gelu_backward)
SILU = Map("silu", _silu, _silu_backward)


@stored("x")
def relu(x: Tensor) -> Tensor:
    """x where x > 0 or x is NaN, else +0. Gradient: grad where x > 0 or x is NaN, else +0."""
    return apply(RELU, x)


@stored("x")
def gelu(x: Tensor) -> Tensor:
    """x * c, the Gaussian error linear unit in its erf form.

    c = 0.5 * (1 + erf(x * binary32(sqrt(1/2)))): multiply, erf, add, multiply.
    Gradient: grad * fma(x, p, c), where p = exp((x * x) * -0.5) * binary32(1/sqrt(2 pi)).
    """
    return apply(GELU, x)


@stored("x")
def silu(x: Tensor) -> Tensor:
    """x * s, the sigmoid-weighted linear unit: s = sigmoid(x), then one product. NaN at -inf.

    Gradient: grad * (s * fma(x, 1 - s, 1)).
    """
    return apply(SILU, x)
