"""fork: the fan-out of one tensor to several consumers, whose gradients are summed in the consumers' order."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from samebits._accumulate import refuse_second_derivative
from samebits._check import require, require_tensor
from samebits._compile import kernel
from samebits._intrinsics import load32, store32
from samebits._maps import mapped
from samebits._split import split
from samebits.bfloat16 import rounded, stored_dtype, widened

ZERO: Any = np.float32(0.0)


@kernel("void(intp, intp, intp, intp)")
def _add(total: int, x: int, begin: int, end: int) -> None:
    """total[i] = total[i] + x[i]."""
    for i in range(begin, end):
        store32(total, i, load32(total, i) + load32(x, i))


@kernel("void(intp, intp, intp, intp, intp)")
def _add_first_two(x: int, y: int, total: int, begin: int, end: int) -> None:
    """total[i] = (+0 + x[i]) + y[i]: the first sum turns -0 into +0."""
    for i in range(begin, end):
        store32(total, i, (ZERO + load32(x, i)) + load32(y, i))


def _sum(grads: list[Tensor]) -> Tensor:
    """((+0 + g[0]) + g[1]) + ..., the first two in one pass."""
    if len(grads) == 1:
        total = torch.zeros(grads[0].shape, dtype=torch.float32)
    else:
        first, second, *grads = grads
        total = mapped(_add_first_two, first, second)
    for grad in grads:
        split(_add, total.numel(), 1, total.data_ptr(), grad.data_ptr())
    return total


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) for _ in range(n))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        refuse_second_derivative("fork")
        present = [grad.contiguous() for grad in grads if grad is not None]
        if not present:
            return None, None
        if present[0].dtype is torch.bfloat16:
            return rounded(_sum([widened(grad) for grad in present])), None
        return _sum(present), None


def fork(x: Tensor, n: int) -> tuple[Tensor, ...]:
    """n tensors equal to float32 or bfloat16 x, one for each consumer (a residual; several projections of one input).

    Backward: grad_x = ((+0 + g[0]) + g[1]) + ..., consumers ascending, which autograd's own summing does not promise.
    The sum is in binary32; of bfloat16 x it is rounded once. A consumer whose gradient nobody computes is absent. The
    results share x's memory: do not change them in place.

    TypeError: x is neither, or n no int; ValueError: n < 1; RuntimeError: not in the CPU's memory.
    """
    require_tensor("fork", "x", x, stored_dtype(x))
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"fork: n must be an int, not {type(n).__name__}")
    require(n >= 1, "fork", f"n must be at least 1, not {n}")
    result: tuple[Tensor, ...] = _Fork.apply(x, n)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return result
