"""embedding: rows of a table by their indices, and the table's gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samebits._accumulate import gradient_of, refuse_second_derivative
from samebits._chains import FLOAT
from samebits._check import require, require_tensor, size
from samebits._compile import kernel
from samebits._intrinsics import load32, load_i64, store32
from samebits._split import differentiable, split
from samebits._storage import stored

NO_PADDING = -1
INDEX_TYPES = (torch.int64, torch.int32)


@kernel("intp(intp, intp, intp)")
def _first_outside(indices: int, count: int, rows: int) -> int:
    """The first position whose index is no row; `count` if there is none."""
    for i in range(count):
        if (load_i64(indices, i) < 0) | (load_i64(indices, i) >= rows):
            return i
    return count


@kernel("void(intp, intp, intp, intp, intp, intp)")
def _forward(indices: int, weight: int, y: int, n: int, begin: int, end: int) -> None:
    for i in range(begin, end):
        line, goal = weight + load_i64(indices, i) * n * FLOAT, y + i * n * FLOAT
        for k in range(n):
            store32(goal, k, load32(line, k))


@kernel("void(intp, intp, intp, intp, intp, intp, intp, intp)")
def _backward(
    indices: int, grad: int, dw: int, count: int, n: int, padding: int, begin: int, end: int
) -> None:  # fmt: skip
    """Threads share out the columns, since rows of the table meet their positions in no order known before."""
    for i in range(count):
        row = load_i64(indices, i)
        if row != padding:
            line, goal = grad + i * n * FLOAT, dw + row * n * FLOAT
            for k in range(begin, end):
                store32(goal, k, load32(goal, k) + load32(line, k))


def _looked_up(indices: Tensor, weight: Tensor) -> Tensor:
    n, table = weight.shape[1], weight.contiguous()
    y = torch.empty((*indices.shape, n), dtype=torch.float32)
    split(_forward, indices.numel(), n, indices.data_ptr(), table.data_ptr(), y.data_ptr(), n)
    return y


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, indices: Tensor, weight: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.shape, ctx.padding = weight.shape, padding
        return _looked_up(indices, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, None]:
        refuse_second_derivative("embedding")
        (indices,) = ctx.saved_tensors
        to_weight = gradient_of(ctx, 1, ctx.shape, "embedding")
        if to_weight is None:
            return None, None, None
        grad, count, n = grad.contiguous(), indices.numel(), ctx.shape[1]
        pointers = (indices.data_ptr(), grad.data_ptr(), to_weight.buffer.data_ptr())
        split(_backward, n, count, *pointers, count, n, ctx.padding)
        return None, to_weight.returned, None


def _checked_padding(padding_idx: int | None, rows: int) -> int:
    if padding_idx is None:
        return NO_PADDING
    fits = -rows <= padding_idx < rows
    require(fits, "embedding", f"padding_idx must be within the {rows} rows of weight, not {padding_idx}")
    return padding_idx % rows


@stored("weight")
def embedding(indices: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """weight[indices] for indices [...] (int64 or int32) and float32 weight [V, F]; the result is [..., F].

    Backward: grad_weight[v] = ascending sum over the flat positions i with indices[i] == v of grad[i], continuing what
    stands in .grad when weight is a leaf, else from +0; positions that hold padding_idx are absent. A negative
    padding_idx counts from the end, as in torch; a negative index is refused.

    TypeError: other dtypes; ValueError: shapes or padding_idx that do not fit; IndexError: an index that is no row;
    RuntimeError: not in the CPU's memory.
    """
    kind = indices.dtype if isinstance(indices, Tensor) and indices.dtype in INDEX_TYPES else torch.int64
    require_tensor("embedding", "indices", indices, kind)
    require_tensor("embedding", "weight", weight)
    require(weight.dim() == 2, "embedding", f"weight must be [V, F], not {size(weight)}")
    rows, padding = weight.shape[0], _checked_padding(padding_idx, weight.shape[0])
    indices = indices.to(torch.int64).contiguous()
    outside = _first_outside(indices.data_ptr(), indices.numel(), rows)
    if outside < indices.numel():
        wrong = int(indices.view(-1)[outside])
        raise IndexError(f"embedding: index {wrong} at flat position {outside} is not in 0..{rows - 1}")
    if not differentiable(weight):
        return _looked_up(indices, weight)
    result: Tensor = _Embedding.apply(indices, weight, padding)  # type: ignore[no-untyped-call]  # torch's own
    return result
