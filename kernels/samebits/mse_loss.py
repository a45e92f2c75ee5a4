"""mse_loss: squared differences, their sum, or their mean over a whole step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from samebits._accumulate import refuse_second_derivative
from samebits._chains import share
from samebits._check import require, require_tensor, size
from samebits._compile import kernel
from samebits._intrinsics import load32, store32
from samebits._maps import TWO_IN, mapped
from samebits._split import split
from samebits._storage import stored
from samebits.cross_entropy import REDUCTIONS
from samebits.reductions import reduced

ONE = np.float32(1.0)


@kernel(TWO_IN)
def _squares(x: int, target: int, y: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        d = load32(x, i) - load32(target, i)
        store32(y, i, d * d)


@kernel("void(intp, intp, float32, intp, intp, intp, intp, intp)")
def _backward(x: int, target: int, share: float, grad: int, grad_step: int, dx: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        d = load32(x, i) - load32(target, i)
        store32(dx, i, ((d + d) * share) * load32(grad, i * grad_step))


class _MSELoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, reduction: str, count: int) -> Tensor:
        ctx.save_for_backward(x, target)
        ctx.whole, ctx.share = reduction != "none", share(count) if reduction == "mean" else ONE
        squares = mapped(_squares, x.contiguous(), target.contiguous())
        return reduced(squares, list(range(x.dim())), ctx.share, []) if ctx.whole else squares

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        refuse_second_derivative("mse_loss")
        x, target = (tensor.contiguous() for tensor in ctx.saved_tensors)
        grad, step = grad.contiguous(), 0 if ctx.whole else 1

        def gradient(position: int, of: Tensor, against: Tensor) -> Tensor | None:
            if not ctx.needs_input_grad[position]:
                return None
            made = torch.empty_like(of)
            pointers = (of.data_ptr(), against.data_ptr(), ctx.share, grad.data_ptr(), step, made.data_ptr())
            split(_backward, made.numel(), 1, *pointers)
            return made

        return gradient(0, x, target), gradient(1, target, x), None, None


@stored("x", "target", keeps_float32=True)
def mse_loss(x: Tensor, target: Tensor, reduction: str = "mean", count: int | None = None) -> Tensor:
    """d * d, d = x - target, for float32 tensors of one shape: 0-dimensional, or that shape with reduction "none".

    The sum is that of `samebits.sum` over all axes; the mean is the sum * binary32(1/count), count being the number of
    elements of the whole step, by default those of x.
    Gradient: ((d + d) * binary32(1/count)) * grad; with "sum" and "none" (d + d) * grad. That of target: the same with
    d = target - x.

    TypeError: not float32 tensors; ValueError: shapes, reduction or count that do not fit; RuntimeError: not in the
    CPU's memory.
    """
    require_tensor("mse_loss", "x", x)
    require_tensor("mse_loss", "target", target)
    require(x.shape == target.shape, "mse_loss", f"shapes differ: {size(x)} and {size(target)}")
    require(reduction in REDUCTIONS, "mse_loss", f"reduction must be one of {REDUCTIONS}, not {reduction!r}")
    valid = count is None or (type(count) is int and count > 0)
    require(valid, "mse_loss", f"count must be a positive int, not {count!r}")
    whole = x.numel() if count is None else count
    result: Tensor = _MSELoss.apply(x, target, reduction, whole)  # type: ignore[no-untyped-call]  # torch's own
    return result
