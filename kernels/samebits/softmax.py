"""softmax over the last axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from samebits._chains import FLOAT, PANEL_FLOATS, clear, row_maximum, row_products, row_sums
from samebits._check import require, require_tensor
from samebits._compile import kernel, routine
from samebits._elementary import exp32
from samebits._intrinsics import load32, store32
from samebits._split import differentiable, split_rows
from samebits._storage import stored
from samebits._vectors import LANES

SCRATCH_FLOATS = 2 * PANEL_FLOATS + LANES


@routine(binary64=True)
def exponentials(x: int, y: int, step: int, num_rows: int, n: int) -> None:
    """y = exp(x - max(x)) for each row."""
    for i in range(num_rows):
        line, goal = x + i * step * FLOAT, y + i * step * FLOAT
        m = row_maximum(line, n)
        for k in range(n):
            store32(goal, k, exp32(load32(line, k) - m))


@kernel("void(intp, intp, intp, intp, intp, intp)", binary64=True)
def _softmax(x: int, y: int, n: int, scratch: int, begin: int, end: int) -> None:
    sums = scratch + 2 * PANEL_FLOATS * FLOAT
    for first in range(begin, end, LANES):
        num_rows, line, goal = min(LANES, end - first), x + first * n * FLOAT, y + first * n * FLOAT
        exponentials(line, goal, n, num_rows, n)
        clear(sums, LANES)
        row_sums(goal, n, num_rows, n, scratch, sums)
        for i in range(num_rows):
            s = load32(sums, i)
            for k in range(i * n, i * n + n):
                store32(goal, k, load32(goal, k) / s)


@kernel("void(intp, intp, intp, intp, intp, intp, intp)")
def _softmax_backward(grad: int, y: int, dx: int, n: int, scratch: int, begin: int, end: int) -> None:
    sums = scratch + 2 * PANEL_FLOATS * FLOAT
    for first in range(begin, end, LANES):
        num_rows, offset = min(LANES, end - first), first * n * FLOAT
        clear(sums, LANES)
        row_products(y + offset, grad + offset, n, num_rows, n, scratch, sums)
        for i in range(num_rows):
            d = load32(sums, i)
            for k in range((first + i) * n, (first + i + 1) * n):
                store32(dx, k, load32(y, k) * (load32(grad, k) - d))


def _forward(x: Tensor) -> Tensor:
    y, n = torch.empty_like(x), x.shape[-1]
    rows = x.numel() // n if n else 0
    split_rows(_softmax, rows, n, SCRATCH_FLOATS, x.data_ptr(), y.data_ptr(), n)
    return y


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = _forward(x.contiguous())
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        grad, dx, n = grad.contiguous(), torch.empty_like(y), y.shape[-1]
        rows, pointers = y.numel() // n if n else 0, (grad.data_ptr(), y.data_ptr(), dx.data_ptr())
        split_rows(_softmax_backward, rows, n, SCRATCH_FLOATS, *pointers, n)
        return dx


@stored("x")
def softmax(x: Tensor) -> Tensor:
    """e / s over the last axis of x [..., n]: m = max, e = exp(x - m), s = ascending sum of e from +0.

    The maximum takes x if x > m or x is NaN. A row of -inf, like one with +inf or NaN, gives NaN.
    Gradient: d = chain of fma(y, grad) from +0; y * (grad - d).
    """
    require_tensor("softmax", "x", x)
    require(x.dim() >= 1, "softmax", "x must have at least one axis")
    if differentiable(x):
        result: Tensor = _Softmax.apply(x)  # type: ignore[no-untyped-call]  # torch's own
        return result
    return _forward(x.contiguous())
