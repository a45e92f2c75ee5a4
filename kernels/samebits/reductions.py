"""sum and mean over axes of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samebits._accumulate import refuse_second_derivative
from samebits._axes import add_along
from samebits._chains import share
from samebits._check import require, require_tensor
from samebits._compile import kernel
from samebits._intrinsics import load32, store32
from samebits._split import differentiable, split
from samebits._storage import stored

ONE = np.float32(1.0)
Dims = int | Sequence[int] | None


@kernel("void(intp, float32, intp, intp)")
def _scale(x: int, factor: float, begin: int, end: int) -> None:
    for i in range(begin, end):
        store32(x, i, load32(x, i) * factor)


def _axes(operator: str, dim: Dims, count: int) -> list[int]:
    """The axes named by dim, ascending; all of them for None or an empty sequence, as in torch."""
    named = [dim] if isinstance(dim, int) else list(dim or range(count))
    for axis in named:
        if not isinstance(axis, int) or isinstance(axis, bool):
            raise TypeError(f"{operator}: dim must be ints, not {type(axis).__name__}")
        if not -max(count, 1) <= axis < max(count, 1):
            raise IndexError(f"{operator}: dim {axis} is out of range for {count} axes")
    axes = sorted(axis % max(count, 1) for axis in named)
    require(len(set(axes)) == len(axes), operator, f"an axis appears twice in dim {dim}")
    return axes if count else []


def reduced(x: Tensor, axes: list[int], factor: np.float32, shape: list[int]) -> Tensor:
    """The sums over the axes times the factor, as a tensor of this shape, which is no view of another."""
    total = x.contiguous()
    for axis in reversed(axes):
        kept = [1 if i == axis else length for i, length in enumerate(total.shape)]
        before, total = total, torch.zeros(shape if axis == axes[0] else kept, dtype=torch.float32)
        add_along(before, axis, total)
    if not axes:
        total = torch.empty_like(total).copy_(total)
    if factor != ONE:
        split(_scale, total.numel(), 1, total.data_ptr(), factor)
    return total


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: list[int], factor: np.float32, shape: list[int], operator: str) -> Tensor:
        ctx.shape, ctx.axes, ctx.factor, ctx.operator = x.shape, axes, factor, operator
        return reduced(x, axes, factor, shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        refuse_second_derivative(ctx.operator)
        scaled = reduced(grad, [], ctx.factor, list(grad.shape)) if ctx.factor != ONE else grad
        kept = [1 if axis in ctx.axes else length for axis, length in enumerate(ctx.shape)]
        return scaled.reshape(kept).expand(ctx.shape), None, None, None, None


def _reduce(operator: str, x: Tensor, dim: Dims, keepdim: bool) -> Tensor:
    require_tensor(operator, "x", x)
    axes = _axes(operator, dim, x.dim())
    lengths = [(1 if axis in axes else length) for axis, length in enumerate(x.shape) if keepdim or axis not in axes]
    factor = ONE if operator == "sum" else share(torch.Size([x.shape[axis] for axis in axes]).numel())
    if differentiable(x):
        arguments = (x, axes, factor, lengths, operator)
        result: Tensor = _Reduce.apply(*arguments)  # type: ignore[no-untyped-call]  # torch's own
        return result
    return reduced(x, axes, factor, lengths)


@stored("x")
def sum(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The sum of float32 x over the axes in dim, by default all: one axis at a time, last first.

    Each sum is an ascending chain from +0. An axis without elements gives +0. Gradient: grad, for every element.
    TypeError: not a float32 tensor; IndexError: no such axis; ValueError: an axis named twice; RuntimeError: not in
    the CPU's memory.
    """
    return _reduce("sum", x, dim, keepdim)


@stored("x")
def mean(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The sum of float32 x over the axes in dim, as `sum` does it, then * binary32(1/n) once, n elements in each sum.

    The mean of nothing is NaN. Gradient: grad * binary32(1/n), for every element. Errors: those of `sum`.
    """
    return _reduce("mean", x, dim, keepdim)
