"""max_pool2d and avg_pool2d, and their gradients."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samebits._accumulate import refuse_second_derivative
from samebits._chains import share
from samebits._check import require, require_tensor, size
from samebits._compile import kernel
from samebits._intrinsics import load32, load_i32, store32
from samebits._planes import Window
from samebits._split import split
from samebits._storage import stored
from samebits._vectors import LANES
from samebits._windows import window_maxima
from samebits.conv2d import Pair, pair

FLOAT = 4  # bytes; an int32 has as many
ZERO = np.float32(0.0)
Windows = tuple[Window, Window]


@lru_cache(maxsize=256)
def _places(rows: Window, columns: Window) -> Tensor:
    """Where tap t of output q lies in its plane: int32 [taps, outputs], the outputs filled up to whole vectors.

    A tap on padding is replaced by the nearest element of its row and column. The window meets that one anyway, and
    in ascending order still, so that neither the maximum nor its first place changes.
    """
    total = rows.outputs * columns.outputs
    q = np.arange(-(-total // LANES) * LANES)
    q = np.where(q < total, q, total - 1)
    taps = np.arange(rows.kernel * columns.kernel)[:, None]
    i = (q // columns.outputs)[None, :] * rows.stride - rows.padding + taps // columns.kernel
    j = (q % columns.outputs)[None, :] * columns.stride - columns.padding + taps % columns.kernel
    places = i.clip(0, rows.size - 1) * columns.size + j.clip(0, columns.size - 1)
    return torch.from_numpy(places.astype(np.int32))


@kernel("void(" + ", ".join(["intp"] * 9) + ")")
def _max_forward(
    x: int, y: int, winners: int, places: int, taps: int, plane: int, outputs: int, begin: int, end: int
) -> None:
    step = (outputs + LANES - 1) // LANES * LANES
    for p in range(begin, end):
        here, goal, won = x + p * plane * FLOAT, y + p * outputs * FLOAT, winners + p * outputs * FLOAT
        for q in range(0, outputs, LANES):
            lanes, shift = min(LANES, outputs - q), q * FLOAT
            window_maxima(here, places + shift, step, taps, goal + shift, won + shift, lanes)


@kernel("void(" + ", ".join(["intp"] * 7) + ")")
def _max_backward(grad: int, winners: int, dx: int, plane: int, outputs: int, begin: int, end: int) -> None:
    for p in range(begin, end):
        here, won, goal = grad + p * outputs * FLOAT, winners + p * outputs * FLOAT, dx + p * plane * FLOAT
        for place in range(plane):
            store32(goal, place, ZERO)
        for q in range(outputs):
            place = load_i32(won, q)
            store32(goal, place, load32(goal, place) + load32(here, q))


@kernel("void(" + ", ".join(["intp"] * 12) + ", float32, intp, intp)")
def _average_forward(
    x: int, y: int, rows: int, columns: int, kernel0: int, kernel1: int, stride0: int, stride1: int,
    padding0: int, padding1: int, out_rows: int, out_columns: int, share: float, begin: int, end: int,
) -> None:  # fmt: skip
    for p in range(begin, end):
        here, goal = x + p * rows * columns * FLOAT, y + p * out_rows * out_columns * FLOAT
        for i in range(out_rows):
            top, left = i * stride0 - padding0, -padding1
            for j in range(out_columns):
                total = ZERO
                for h in range(max(top, 0), min(top + kernel0, rows)):
                    for w in range(max(left, 0), min(left + kernel1, columns)):
                        total = total + load32(here, h * columns + w)
                store32(goal, i * out_columns + j, total * share)
                left += stride1


@kernel("void(" + ", ".join(["intp"] * 12) + ", float32, intp, intp)")
def _average_backward(
    grad: int, dx: int, rows: int, columns: int, kernel0: int, kernel1: int, stride0: int, stride1: int,
    padding0: int, padding1: int, out_rows: int, out_columns: int, share: float, begin: int, end: int,
) -> None:  # fmt: skip
    for p in range(begin, end):
        here, goal = grad + p * out_rows * out_columns * FLOAT, dx + p * rows * columns * FLOAT
        for place in range(rows * columns):
            store32(goal, place, ZERO)
        for i in range(out_rows):
            top, left = i * stride0 - padding0, -padding1
            for j in range(out_columns):
                part = load32(here, i * out_columns + j) * share
                for h in range(max(top, 0), min(top + kernel0, rows)):
                    for w in range(max(left, 0), min(left + kernel1, columns)):
                        place = h * columns + w
                        store32(goal, place, load32(goal, place) + part)
                left += stride1


def _pooled(x: Tensor, windows: Windows) -> Tensor:
    return torch.empty(*x.shape[:-2], *(window.outputs for window in windows), dtype=torch.float32)


def _planes(x: Tensor) -> int:
    return x.shape[:-2].numel()


def _numbers(windows: Windows) -> tuple[int, ...]:
    rows, columns = windows
    sizes = (rows.size, columns.size, rows.kernel, columns.kernel, rows.stride, columns.stride)
    return (*sizes, rows.padding, columns.padding, rows.outputs, columns.outputs)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, windows: Windows) -> Tensor:
        x, y, plane = x.contiguous(), _pooled(x, windows), x.shape[-2] * x.shape[-1]
        winners, places = torch.empty(y.shape, dtype=torch.int32), _places(*windows)
        outputs = y.shape[-2] * y.shape[-1]
        pointers = (x.data_ptr(), y.data_ptr(), winners.data_ptr(), places.data_ptr())
        split(_max_forward, _planes(x), plane, *pointers, len(places), plane, outputs)
        ctx.save_for_backward(winners)
        ctx.shape = x.shape
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative("max_pool2d")
        (winners,) = ctx.saved_tensors
        grad, dx = grad.contiguous(), torch.empty(ctx.shape, dtype=torch.float32)
        plane, outputs = dx.shape[-2] * dx.shape[-1], grad.shape[-2] * grad.shape[-1]
        pointers = (grad.data_ptr(), winners.data_ptr(), dx.data_ptr())
        split(_max_backward, _planes(dx), plane, *pointers, plane, outputs)
        return dx, None


class _AveragePool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, windows: Windows) -> Tensor:
        x, y = x.contiguous(), _pooled(x, windows)
        ctx.shape, ctx.windows = x.shape, windows
        numbers = (*_numbers(windows), share(windows[0].kernel * windows[1].kernel))
        split(_average_forward, _planes(x), x.shape[-2] * x.shape[-1], x.data_ptr(), y.data_ptr(), *numbers)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative("avg_pool2d")
        grad, dx, windows = grad.contiguous(), torch.empty(ctx.shape, dtype=torch.float32), ctx.windows
        numbers = (*_numbers(windows), share(windows[0].kernel * windows[1].kernel))
        split(_average_backward, _planes(dx), dx.shape[-2] * dx.shape[-1], grad.data_ptr(), dx.data_ptr(), *numbers)
        return dx, None


def _windows(operator: str, x: Tensor, kernel_size: Pair, stride: Pair | None, padding: Pair) -> Windows:
    require_tensor(operator, "x", x)
    require(x.dim() == 4, operator, f"x must be [B, C, H, W], not {size(x)}")
    kernels = pair(operator, "kernel_size", kernel_size, 1)
    strides = kernels if stride is None else pair(operator, "stride", stride, 1)
    paddings = pair(operator, "padding", padding, 0)
    for length, pad in zip(kernels, paddings, strict=True):
        require(2 * pad <= length, operator, f"padding {padding} is more than half of kernel_size {kernel_size}")
    rows, columns = (Window(x.shape[2 + i], kernels[i], strides[i], paddings[i], 1) for i in range(2))
    fits = min(rows.size, columns.size, rows.outputs, columns.outputs) > 0
    require(fits, operator, f"kernel_size {kernel_size} does not fit the padded x {size(x)}")
    require(rows.size * columns.size < 2**31, operator, f"the planes of x {size(x)} are too large")
    return rows, columns


@stored("x")
def max_pool2d(x: Tensor, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Tensor:
    """The maximum of each window of float32 x [B, C, H, W]; stride is kernel_size by default.

    Rows of the window ascend, then columns; padding is absent. m is the first element; then x is taken if x > m or x
    is NaN, so that the first of equals wins and NaN stays.
    Gradient: from +0, each element adds the gradients of the windows that it won, output rows ascending, then columns.

    TypeError: not a float32 tensor, or numbers that are no ints; ValueError: shapes or numbers that do not fit;
    RuntimeError: not in the CPU's memory, or a second derivative.
    """
    windows = _windows("max_pool2d", x, kernel_size, stride, padding)
    result: Tensor = _MaxPool.apply(x, windows)  # type: ignore[no-untyped-call]  # torch's own
    return result


@stored("x")
def avg_pool2d(x: Tensor, kernel_size: Pair, stride: Pair | None = None, padding: Pair = 0) -> Tensor:
    """The mean of each window of float32 x [B, C, H, W]; stride is kernel_size by default.

    Ascending sum over the window's rows, then columns, from +0; then * binary32(1 / (kernel rows * kernel columns)).
    Padding is absent from the sum, but counts, as it does in torch by default (count_include_pad).
    Gradient: from +0, each element adds grad * that share of the windows that it is in, output rows ascending, then
    columns.

    TypeError: not a float32 tensor, or numbers that are no ints; ValueError: shapes or numbers that do not fit;
    RuntimeError: not in the CPU's memory, or a second derivative.
    """
    windows = _windows("avg_pool2d", x, kernel_size, stride, padding)
    result: Tensor = _AveragePool.apply(x, windows)  # type: ignore[no-untyped-call]  # torch's own
    return result
