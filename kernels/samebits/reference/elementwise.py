"""relu, gelu, silu, add and the gradients of the elementary functions, one element at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from samebits.reference import elementary as exact
from samebits.reference.arrays import Floats
from samebits.reference.scalar import F32, HALF, ONE, ZERO, fma

ROOT_HALF = F32(0.7071067811865476)
NORMAL_DENSITY = F32(0.3989422804014327)
TWO_OVER_ROOT_PI = F32(1.1283791670955126)
Scalar = np.float32


def each(f: Callable[..., Scalar], *arrays: Floats) -> Floats:
    """f of every element, or of the elements at one place of several arrays."""
    out = np.empty(arrays[0].shape, F32)
    with np.errstate(all="ignore"):
        for index in np.ndindex(out.shape):
            out[index] = f(*(array[index] for array in arrays))
    return out


def relu(x: Scalar) -> Scalar:
    """x if x > 0 or NaN, else +0."""
    return x if x > 0 or np.isnan(x) else ZERO


def relu_backward(grad: Scalar, x: Scalar) -> Scalar:
    """grad if x > 0 or NaN, else +0."""
    return grad if x > 0 or np.isnan(x) else ZERO


def normal_cdf(x: Scalar) -> Scalar:
    """0.5 * (1 + erf(x * sqrt(1/2)))."""
    return HALF * (ONE + exact.erf(x * ROOT_HALF))


def gelu(x: Scalar) -> Scalar:
    """x times the normal distribution's value."""
    return x * normal_cdf(x)


def gelu_backward(grad: Scalar, x: Scalar) -> Scalar:
    """grad * fma(x, density, distribution)."""
    density = exact.exp((x * x) * -HALF) * NORMAL_DENSITY
    return grad * fma(x, density, normal_cdf(x))


def add(a: Scalar, b: Scalar) -> Scalar:
    """a + b."""
    return a + b


def silu(x: Scalar) -> Scalar:
    """x times its sigmoid."""
    return x * exact.sigmoid(x)


def silu_backward(grad: Scalar, x: Scalar) -> Scalar:
    """grad * (s * fma(x, 1 - s, 1))."""
    s = exact.sigmoid(x)
    return grad * (s * fma(x, ONE - s, ONE))


def sigmoid_backward(grad: Scalar, x: Scalar) -> Scalar:
    """grad * (y - y**2), the square and the difference fused."""
    y = exact.sigmoid(x)
    return grad * fma(-y, y, y)


def sqrt_backward(grad: Scalar, x: Scalar) -> Scalar:
    """grad / (2 y)."""
    y = exact.sqrt(x)
    return grad / (y + y)


def exp_backward(grad: Scalar, x: Scalar) -> Scalar:
    """grad * exp(x)."""
    return grad * exact.exp(x)


def log_backward(grad: Scalar, x: Scalar) -> Scalar:
    """grad / x."""
    return grad / x


def erf_backward(grad: Scalar, x: Scalar) -> Scalar:
    """grad * (exp(-(x * x)) * 2/sqrt(pi))."""
    return grad * (exact.exp(-(x * x)) * TWO_OVER_ROOT_PI)


def tanh_backward(grad: Scalar, x: Scalar) -> Scalar:
    """grad * (1 - tanh(x)**2), the square and the difference fused."""
    y = exact.tanh(x)
    return grad * fma(-y, y, ONE)


def rsqrt_backward(grad: Scalar, x: Scalar) -> Scalar:
    """grad * (y**3 * -0.5)."""
    y = exact.rsqrt(x)
    return grad * (((y * y) * y) * -HALF)


def sin_backward(grad: Scalar, x: Scalar) -> Scalar:
    """grad * cos(x)."""
    return grad * exact.cos(x)


def cos_backward(grad: Scalar, x: Scalar) -> Scalar:
    """grad * -sin(x)."""
    return grad * -exact.sin(x)
