"""relu, gelu and silu: operators that treat every element alone.

They take and return binary32 tensors on the CPU, of any shape; results are contiguous. A wrong type raises TypeError,
a wrong device RuntimeError. They are differentiable once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from samebits._compile import inlined, kernel
from samebits._elementary import erf32, exp32, sigmoid32
from samebits._intrinsics import fma32, load32, store32
from samebits._maps import ONE_IN, TWO_IN, Map, apply
from samebits._storage import stored

ZERO, HALF, MINUS_HALF, ONE = np.float32(0.0), np.float32(0.5), np.float32(-0.5), np.float32(1.0)
ROOT_HALF = np.float32(0.7071067811865476)
NORMAL_DENSITY = np.float32(0.3989422804014327)  # 1 / sqrt(2 pi)


BLOCK = 1024  # elements that stay in the first-level cache


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


@kernel(ONE_IN, binary64=True)
def _gelu(x: int, y: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        value = load32(x, i)
        store32(y, i, value * normal_cdf(value))


@kernel("void(intp, intp, intp, intp, intp)", binary64=True)
def _gelu_slope(x: int, y: int, derivative: int, begin: int, end: int) -> None:
    """The result and the derivative, which share erf. Three loops over a block, since one would not vectorise."""
    for first in range(begin, end, BLOCK):
        last = min(first + BLOCK, end)
        for i in range(first, last):
            store32(derivative, i, normal_cdf(load32(x, i)))
        for i in range(first, last):
            value = load32(x, i)
            store32(y, i, value * load32(derivative, i))
        for i in range(first, last):
            value = load32(x, i)
            density = exp32((value * value) * MINUS_HALF) * NORMAL_DENSITY
            store32(derivative, i, fma32(value, density, load32(derivative, i)))


@kernel(TWO_IN)
def _times(grad: int, derivative: int, dx: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        store32(dx, i, load32(grad, i) * load32(derivative, i))


@kernel(ONE_IN, binary64=True)
def _silu(x: int, y: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        value = load32(x, i)
        store32(y, i, value * sigmoid32(value))


@kernel(TWO_IN, binary64=True)
def _silu_backward(grad: int, x: int, dx: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        value = load32(x, i)
        s = sigmoid32(value)
        store32(dx, i, load32(grad, i) * (s * fma32(value, ONE - s, ONE)))


RELU = Map("relu", _relu, _relu_backward, keeps_result=True)
GELU = Map("gelu", _gelu, _times, slope=_gelu_slope)
SILU = Map("silu", _silu, _silu_backward)


@stored("x")
def relu(x: Tensor) -> Tensor:
    """x where x > 0 or x is NaN, else +0. Gradient: grad where x > 0 or x is NaN, else +0."""
    return apply(RELU, x)


@stored("x")
def gelu(x: Tensor) -> Tensor:
    """x * c, the Gaussian error linear unit in its erf form.

    c = 0.5 * (1 + erf(x * binary32(sqrt(1/2)))): multiply, erf, add, multiply.
    Gradient: grad * fma(x, p, c), where p = exp((x * x) * -0.5) * binary32(1/sqrt(2 pi)). Keeps that fma for backward.
    """
    return apply(GELU, x)


@stored("x")
def silu(x: Tensor) -> Tensor:
    """x * s, the sigmoid-weighted linear unit: s = sigmoid(x), then one product. NaN at -inf.

    Gradient: grad * (s * fma(x, 1 - s, 1)).
    """
    return apply(SILU, x)
