"""cross_entropy of logits against classes, and row_sum, the chain that carries losses from microbatch to microbatch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from samebits._accumulate import refuse_second_derivative
from samebits._chains import FLOAT, PANEL_FLOATS, clear, row_maximum, row_sums, share
from samebits._check import require, require_tensor, size
from samebits._compile import kernel
from samebits._elementary import log32
from samebits._intrinsics import load32, load_i64, store32
from samebits._split import split, split_rows
from samebits._storage import stored
from samebits._vectors import LANES
from samebits.softmax import exponentials

ZERO: Any = np.float32(0.0)
ONE: Any = np.float32(1.0)
REDUCTIONS = ("mean", "sum", "none")


@kernel("intp(intp, intp, intp)")
def _first_outside(target: int, rows: int, classes: int) -> int:
    """The first row whose target is no class; `rows` if there is none."""
    for i in range(rows):
        if (load_i64(target, i) < 0) | (load_i64(target, i) >= classes):
            return i
    return rows


@kernel("void(intp, intp, intp, intp, intp, intp, intp, intp, intp)", binary64=True)
def _forward(
    x: int, target: int, kept: int, sums: int, losses: int, n: int, scratch: int, begin: int, end: int
) -> None:
    chains = scratch + PANEL_FLOATS * FLOAT
    for first in range(begin, end, LANES):
        num_rows, offset = min(LANES, end - first), first * n * FLOAT
        clear(chains, 2 * LANES)
        for i in range(num_rows):
            line, goal = x + offset + i * n * FLOAT, kept + offset + i * n * FLOAT
            m = row_maximum(line, n)
            exponentials(line, m, goal, n)
            store32(chains, LANES + i, load32(line, load_i64(target, first + i)) - m)
        row_sums(kept + offset, n, num_rows, n, scratch, chains)
        for i in range(num_rows):
            store32(sums, first + i, load32(chains, i))
            store32(losses, first + i, log32(load32(chains, i)) - load32(chains, LANES + i))


@kernel("void(intp, intp, intp, float32, intp, intp, intp, intp, intp, intp)")
def _backward(
    exponentials: int, sums: int, target: int, share: float, grad: int, grad_step: int, dx: int, n: int,
    begin: int, end: int,
) -> None:  # fmt: skip
    for i in range(begin, end):
        line, goal, s, g = (
            exponentials + i * n * FLOAT,
            dx + i * n * FLOAT,
            load32(sums, i),
            load32(grad, i * grad_step),
        )
        for k in range(n):
            store32(goal, k, ((load32(line, k) / s) * share) * g)
        hit = load_i64(target, i)
        store32(goal, hit, ((load32(line, hit) / s - ONE) * share) * g)


@kernel("void(intp, intp, float32, float32, intp)")
def _ascending_sum(values: int, count: int, start: float, factor: float, result: int) -> None:
    total = start
    for i in range(count):
        total = total + load32(values, i)
    store32(result, 0, total * factor)


def _summed(values: Tensor, start: float, factor: float) -> Tensor:
    result = torch.empty((), dtype=torch.float32)
    _ascending_sum(values.data_ptr(), values.shape[0], start, factor, result.data_ptr())
    return result


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor, reduction: str, count: int) -> Tensor:
        x, (rows, n) = x.contiguous(), x.shape
        exponentials = torch.empty_like(x)
        sums, losses = (torch.empty(rows, dtype=torch.float32) for _ in range(2))
        made = (exponentials.data_ptr(), sums.data_ptr(), losses.data_ptr())
        floats = PANEL_FLOATS + 2 * LANES
        split_rows(_forward, rows, n, floats, x.data_ptr(), target.data_ptr(), *made, n)
        ctx.save_for_backward(exponentials, sums, target)
        ctx.share = share(count) if reduction == "mean" else ONE
        return losses if reduction == "none" else _summed(losses, ZERO, ctx.share)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("cross_entropy")
        exponentials, sums, target = ctx.saved_tensors
        (rows, n), grad = exponentials.shape, grad.contiguous()
        dx = torch.empty_like(exponentials)
        kept = (exponentials.data_ptr(), sums.data_ptr(), target.data_ptr(), ctx.share)
        grad_step = grad.dim()  # 0 for the one gradient of a mean, 1 for one gradient a row
        split(_backward, rows, n, *kept, grad.data_ptr(), grad_step, dx.data_ptr(), n)
        return dx, None, None, None


def _check(logits: Tensor, target: Tensor, reduction: str, count: int | None) -> None:
    require_tensor("cross_entropy", "logits", logits)
    require_tensor("cross_entropy", "target", target, torch.int64)
    require(reduction in REDUCTIONS, "cross_entropy", f"reduction must be one of {REDUCTIONS}, not {reduction!r}")
    fits = logits.dim() == 2 and target.shape == logits.shape[:1]
    require(fits, "cross_entropy", f"logits {size(logits)} and target {size(target)} do not fit [B, C] and [B]")
    valid = count is None or (type(count) is int and count > 0)
    require(valid, "cross_entropy", f"count must be a positive int, not {count!r}")


@stored("logits", keeps_float32=True)
def cross_entropy(logits: Tensor, target: Tensor, reduction: str = "mean", count: int | None = None) -> Tensor:
    """The loss of logits [B, C] for target classes [B] (int64): 0-dimensional, or [B] with reduction "none".

    m = max, e = exp(x - m), s = ascending sum of e from +0; loss = log(s) - (x[target] - m). The mean is the ascending
    sum of losses from +0, * binary32(1/count); count is the number of rows of the whole step, by default B.
    With "sum" it is the sum alone.
    Gradient: ((e / s - onehot) * binary32(1/count)) * grad; with "sum" and "none" (e / s - onehot) * grad of its row.

    TypeError: wrong dtypes; ValueError: shapes, reduction or count that do not fit; RuntimeError: not in the CPU's
    memory; IndexError: a target that is no class.
    """
    _check(logits, target, reduction, count)
    target, (rows, classes) = target.contiguous(), logits.shape
    outside = _first_outside(target.data_ptr(), rows, classes)
    if outside < rows:
        raise IndexError(f"cross_entropy: target {int(target[outside])} of row {outside} is not in 0..{classes - 1}")
    whole = rows if count is None else count
    arguments = (logits, target, reduction, whole)
    result: Tensor = _CrossEntropy.apply(*arguments)  # type: ignore[no-untyped-call]  # torch's own
    return result


class _RowSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, start: Tensor) -> Tensor:
        ctx.count = values.shape[0]
        values = values.contiguous()
        return _summed(values, start.item(), ONE)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        refuse_second_derivative("row_sum")
        return grad.expand(ctx.count), grad


def row_sum(values: Tensor, start: Tensor | float) -> Tensor:
    """start + values[0] + values[1] + ... in this order, for float32 values [B]; 0-dimensional.

    Called again with its result as the start, it is the sum over both calls' values. Gradients: grad, for all.
    TypeError: not float32; ValueError: shapes that do not fit; RuntimeError: not in the CPU's memory.
    """
    begin = start if isinstance(start, Tensor) else torch.tensor(start, dtype=torch.float32)
    require_tensor("row_sum", "values", values)
    require_tensor("row_sum", "start", begin)
    require(values.dim() == 1, "row_sum", f"values must be [B], not {size(values)}")
    require(begin.dim() == 0, "row_sum", f"start must be 0-dimensional, not {size(begin)}")
    result: Tensor = _RowSum.apply(values, begin)  # type: ignore[no-untyped-call]  # torch's own
    return result
