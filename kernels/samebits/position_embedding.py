"""position_embedding: one learned row added to each position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samebits._accumulate import gradient_of, refuse_second_derivative
from samebits._chains import FLOAT
from samebits._check import require, require_tensor, size
from samebits._compile import kernel
from samebits._intrinsics import load32, store32
from samebits._product import add_rows
from samebits._split import split
from samebits._storage import stored


@kernel("void(intp, intp, intp, intp, intp, intp)")
def _forward(x: int, weight: int, y: int, n: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        line, goal = x + i * n * FLOAT, y + i * n * FLOAT
        for k in range(n):
            store32(goal, k, load32(line, k) + load32(weight, k))


class _PositionEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x, weight, n = x.contiguous(), weight.contiguous(), weight.numel()
        y = torch.empty_like(x)
        split(_forward, x.shape[0], n, x.data_ptr(), weight.data_ptr(), y.data_ptr(), n)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        refuse_second_derivative("position_embedding")
        to_weight = gradient_of(ctx, 1, grad.shape[1:], "position_embedding")
        if to_weight is None:
            return grad, None
        n = grad.shape[1] * grad.shape[2]
        add_rows(grad.reshape(grad.shape[0], n), to_weight.buffer.view(n))
        return grad, to_weight.returned


@stored("x", parameters=("weight",))
def position_embedding(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, T, F] + weight [T, F], the same for every b.

    Gradients: grad; and for weight the ascending sum over b of grad, continuing what stands in .grad of a leaf.
    TypeError: not float32 tensors; ValueError: shapes that do not fit; RuntimeError: not in the CPU's memory.
    """
    require_tensor("position_embedding", "x", x)
    require_tensor("position_embedding", "weight", weight)
    fits = x.dim() == 3 and weight.shape == x.shape[1:]
    require(fits, "position_embedding", f"x {size(x)} and weight {size(weight)} do not fit [B, T, F] and [T, F]")
    result: Tensor = _PositionEmbedding.apply(x, weight)  # type: ignore[no-untyped-call]  # torch's own
    return result
