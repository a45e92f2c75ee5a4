"""relu, gelu and add: operators that treat every element alone.

They take and return binary32 tensors on the CPU, of any shape; results are contiguous. A wrong type raises TypeError,
a wrong device RuntimeError, a wrong shape ValueError. They are differentiable once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from samebits._check import require, require_tensor, size
from samebits._compile import inlined, kernel
from samebits._elementary import erf32, exp32
from samebits._intrinsics import fma32, load32, store32
from samebits._maps import ONE_IN, TWO_IN, Map, apply, mapped
from samebits._split import differentiable
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


@kernel(TWO_IN)
def _add(a: int, b: int, y: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        store32(y, i, load32(a, i) + load32(b, i))


RELU = Map("relu", _relu, _relu_backward, keeps_result=True)
GELU = Map("gelu", _gelu, _times, slope=_gelu_slope)


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


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        return mapped(_add, a.contiguous(), b.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, grad


@stored("a", "b")
def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b for tensors of one shape; nothing is broadcast. Both gradients are grad."""
    require_tensor("add", "a", a)
    require_tensor("add", "b", b)
    require(a.shape == b.shape, "add", f"shapes differ: {size(a)} and {size(b)}")
    if differentiable(a, b):
        result: Tensor = _Add.apply(a, b)  # type: ignore[no-untyped-call]  # torch's own
        return result
    return mapped(_add, a.contiguous(), b.contiguous())
