"""softmax and log_softmax over one axis; an axis that is not the last is moved there in a copy."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from samebits._accumulate import refuse_second_derivative
from samebits._chains import FLOAT, PANEL_FLOATS, clear, row_maximum, row_products, row_sums
from samebits._check import require, require_tensor
from samebits._close import STEP, close_exp_below
from samebits._compile import Kernel, kernel, routine
from samebits._elementary import exp32, log32
from samebits._intrinsics import fma32, load32, store32
from samebits._split import differentiable, split_rows
from samebits._storage import stored
from samebits._vectors import LANES

SCRATCH_FLOATS = 2 * PANEL_FLOATS + LANES


@routine(binary64=True)
def exact_exponentials(x: int, m: float, y: int, begin: int, end: int) -> None:
    """y = exp(x - m), without `_close`."""
    for k in range(begin, end):
        store32(y, k, exp32(load32(x, k) - m))


@routine(binary64=True)
def exponentials(x: int, m: float, y: int, n: int) -> None:
    """y = exp(x - m) for one row."""
    whole = n - n % STEP
    for k in range(0, whole, STEP):
        if close_exp_below(x, m, y, k):
            exact_exponentials(x, m, y, k, k + STEP)
    exact_exponentials(x, m, y, whole, n)


@routine(binary64=True)
def summed_exponentials(x: int, y: int, num_rows: int, n: int, scratch: int, sums: int) -> None:
    """y = exp(x - max(x)) for each row, and each row's sum."""
    for i in range(num_rows):
        line = x + i * n * FLOAT
        exponentials(line, row_maximum(line, n), y + i * n * FLOAT, n)
    clear(sums, LANES)
    row_sums(y, n, num_rows, n, scratch, sums)


@kernel("void(intp, intp, intp, intp, intp, intp)", binary64=True)
def _softmax(x: int, y: int, n: int, scratch: int, begin: int, end: int) -> None:
    sums = scratch + 2 * PANEL_FLOATS * FLOAT
    for first in range(begin, end, LANES):
        num_rows, line, goal = min(LANES, end - first), x + first * n * FLOAT, y + first * n * FLOAT
        summed_exponentials(line, goal, num_rows, n, scratch, sums)
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


@kernel("void(intp, intp, intp, intp, intp, intp)", binary64=True)
def _log_softmax(x: int, y: int, n: int, scratch: int, begin: int, end: int) -> None:
    sums = scratch + 2 * PANEL_FLOATS * FLOAT
    for first in range(begin, end, LANES):
        num_rows, line, goal = min(LANES, end - first), x + first * n * FLOAT, y + first * n * FLOAT
        summed_exponentials(line, goal, num_rows, n, scratch, sums)
        for i in range(num_rows):
            m, log_sum = row_maximum(line + i * n * FLOAT, n), log32(load32(sums, i))
            for k in range(i * n, i * n + n):
                store32(goal, k, (load32(line, k) - m) - log_sum)


@kernel("void(intp, intp, intp, intp, intp, intp, intp)", binary64=True)
def _log_softmax_backward(grad: int, y: int, dx: int, n: int, scratch: int, begin: int, end: int) -> None:
    sums = scratch + 2 * PANEL_FLOATS * FLOAT
    for first in range(begin, end, LANES):
        num_rows, offset = min(LANES, end - first), first * n * FLOAT
        clear(sums, LANES)
        row_sums(grad + offset, n, num_rows, n, scratch, sums)
        for i in range(num_rows):
            d = load32(sums, i)
            for k in range((first + i) * n, (first + i + 1) * n):
                store32(dx, k, fma32(-exp32(load32(y, k)), d, load32(grad, k)))


class _Operator(NamedTuple):
    name: str
    forward: Kernel
    backward: Kernel


SOFTMAX = _Operator("softmax", _softmax, _softmax_backward)
LOG_SOFTMAX = _Operator("log_softmax", _log_softmax, _log_softmax_backward)


def _forward(operator: _Operator, x: Tensor) -> Tensor:
    y, n = torch.empty_like(x), x.shape[-1]
    rows = x.numel() // n if n else 0
    split_rows(operator.forward, rows, n, SCRATCH_FLOATS, x.data_ptr(), y.data_ptr(), n)
    return y


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, operator: _Operator) -> Tensor:
        y = _forward(operator, x.contiguous())
        ctx.operator = operator
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative(ctx.operator.name)
        (y,) = ctx.saved_tensors
        grad, dx, n = grad.contiguous(), torch.empty_like(y), y.shape[-1]
        rows, pointers = y.numel() // n if n else 0, (grad.data_ptr(), y.data_ptr(), dx.data_ptr())
        split_rows(ctx.operator.backward, rows, n, SCRATCH_FLOATS, *pointers, n)
        return dx, None


def _apply(operator: _Operator, x: Tensor, dim: int) -> Tensor:
    require_tensor(operator.name, "x", x)
    require(x.dim() >= 1, operator.name, "x must have at least one axis")
    if not isinstance(dim, int) or isinstance(dim, bool):
        raise TypeError(f"{operator.name}: dim must be an int, not {type(dim).__name__}")
    if not -x.dim() <= dim < x.dim():
        raise IndexError(f"{operator.name}: dim {dim} is out of range for {x.dim()} axes")
    moved = x if dim in (-1, x.dim() - 1) else x.movedim(dim, -1)
    if differentiable(x):
        result: Tensor = _Softmax.apply(moved, operator)  # type: ignore[no-untyped-call]  # torch's own
    else:
        result = _forward(operator, moved.contiguous())
    return result if moved is x else result.movedim(-1, dim)


@stored("x")
def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """e / s over one axis of float32 x: m = max, e = exp(x - m), s = ascending sum of e from +0.

    The maximum takes x if x > m or x is NaN. A row of -inf, like one with +inf or NaN, gives NaN.
    Gradient: d = chain of fma(y, grad) from +0; y * (grad - d).

    TypeError: x is no float32 tensor; ValueError: it has no axes; IndexError: it lacks this one; RuntimeError: not in
    the CPU's memory.
    """
    return _apply(SOFTMAX, x, dim)


@stored("x")
def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """(x - m) - log(s) over one axis of float32 x, with m and s as in `softmax`.

    Gradient: d = ascending sum of grad from +0; fma(-exp(y), d, grad).
    Errors: those of `softmax`.
    """
    return _apply(LOG_SOFTMAX, x, dim)
