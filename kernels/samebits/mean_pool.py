"""mean_pool: the mean over positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from samebits._accumulate import refuse_second_derivative
from samebits._chains import FLOAT, share
from samebits._check import require, require_tensor, size
from samebits._compile import kernel
from samebits._intrinsics import load32, store32
from samebits._split import split
from samebits._storage import stored

ZERO = np.float32(0.0)


@kernel("void(intp, intp, intp, intp, float32, intp, intp)")
def _forward(x: int, y: int, positions: int, n: int, share: float, begin: int, end: int) -> None:
    for i in range(begin, end):
        goal, lines = y + i * n * FLOAT, x + i * positions * n * FLOAT
        for k in range(n):
            store32(goal, k, ZERO)
        for t in range(positions):
            line = lines + t * n * FLOAT
            for k in range(n):
                store32(goal, k, load32(goal, k) + load32(line, k))
        for k in range(n):
            store32(goal, k, load32(goal, k) * share)


@kernel("void(intp, intp, intp, intp, float32, intp, intp)")
def _backward(grad: int, dx: int, positions: int, n: int, share: float, begin: int, end: int) -> None:
    for i in range(begin, end):
        line, goals = grad + i * n * FLOAT, dx + i * positions * n * FLOAT
        for t in range(positions):
            goal = goals + t * n * FLOAT
            for k in range(n):
                store32(goal, k, load32(line, k) * share)


class _MeanPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x, (batch, positions, n) = x.contiguous(), x.shape
        ctx.shape = x.shape
        y = torch.empty(batch, n, dtype=torch.float32)
        sizes = (positions, n, share(positions))
        split(_forward, batch, positions * n, x.data_ptr(), y.data_ptr(), *sizes)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        refuse_second_derivative("mean_pool")
        batch, positions, n = ctx.shape
        grad, dx = grad.contiguous(), torch.empty(ctx.shape, dtype=torch.float32)
        sizes = (positions, n, share(positions))
        split(_backward, batch, positions * n, grad.data_ptr(), dx.data_ptr(), *sizes)
        return dx


@stored("x")
def mean_pool(x: Tensor) -> Tensor:
    """The mean of x [B, T, F] over T, [B, F]: ascending sum from +0, then * binary32(1/T). NaN if T is 0.

    Gradient: grad * binary32(1/T) at every position.
    TypeError: not a float32 tensor; ValueError: not three axes; RuntimeError: not in the CPU's memory.
    """
    require_tensor("mean_pool", "x", x)
    require(x.dim() == 3, "mean_pool", f"x must be [B, T, F], not {size(x)}")
    result: Tensor = _MeanPool.apply(x)  # type: ignore[no-untyped-call]  # torch's own
    return result
