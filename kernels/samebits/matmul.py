"""matmul and linear: every output one ascending chain of fused multiply-adds, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samebits._accumulate import gradient_of, refuse_second_derivative
from samebits._autograd import apply_of
from samebits._check import require_tensor, size
from samebits._product import add_rows, multiply
from samebits._split import differentiable
from samebits._storage import stored


def _rows(x: Tensor) -> Tensor:
    """x as one matrix, all dimensions but the last as its rows."""
    return x if x.dim() == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _matrices(x: Tensor) -> Tensor:
    """x as matrices along a first axis; a single one stays as it is."""
    return x if x.dim() <= 3 else x.reshape(x.shape[:-2].numel(), x.shape[-2], x.shape[-1])


def _product(a: Tensor, b: Tensor) -> Tensor:
    if a.dim() == 2 == b.dim():  # the ways below cost more than a small product
        out = torch.empty((a.shape[0], b.shape[1]), dtype=torch.float32)
        multiply(a, b, out)
        return out
    out = torch.empty(a.shape[:-1] + b.shape[-1:], dtype=torch.float32)
    pack = _rows if b.dim() == 2 else _matrices
    multiply(pack(a), _matrices(b), pack(out))
    return out


class _MatMul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _product(a, b)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None]:
        refuse_second_derivative("matmul")
        a, b = ctx.saved_tensors
        pack = _rows if b.dim() == 2 else _matrices
        g, grad_a, grad_b = pack(grad_output), None, None
        if to_a := gradient_of(ctx, 0, a, "matmul", may_be_fresh=True):
            multiply(g, _matrices(b).mT, pack(to_a.buffer), fresh=to_a.fresh)
            grad_a = to_a.returned
        if to_b := gradient_of(ctx, 1, b, "matmul", may_be_fresh=True):
            multiply(pack(a).mT, g, _matrices(to_b.buffer), fresh=to_b.fresh)
            grad_b = to_b.returned
        return grad_a, grad_b


_apply_matmul = apply_of(_MatMul)


@stored("a", "b")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for float32 a [..., m, k] and b [..., k, n], whose batch dimensions equal those of a or are absent.

    out[i, j] = chain over ascending k of acc = fma(a[i, k], b[k, j], acc), from +0.
    Backward: grad_a[i, k] = chain over n of fma(g[i, n], b[k, n], acc); grad_b[k, j] = chain over ascending rows of
    fma(a[i, k], g[i, j], acc), where the rows of an unbatched b are those of all batches, in order. For a leaf the
    chain continues what stands in .grad.

    TypeError: not float32 tensors; ValueError: shapes that do not fit; RuntimeError: not in the CPU's memory.
    """
    require_tensor("matmul", "a", a)
    require_tensor("matmul", "b", b)
    fits = a.dim() >= 2 and b.dim() >= 2 and a.shape[-1] == b.shape[-2]
    if not fits or (b.dim() > 2 and a.shape[:-2] != b.shape[:-2]):
        raise ValueError(f"matmul: shapes {size(a)} and {size(b)} do not fit [..., m, k] @ [..., k, n]")
    if not differentiable(a, b):
        return _product(a, b)
    result: Tensor = _apply_matmul(a, b)
    return result


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    addend = None if bias is None else bias.contiguous()
    # No view may leave a Function: torch refuses to change such a result in place.
    out = torch.empty(x.shape[:-1] + weight.shape[:1], dtype=torch.float32)
    multiply(_rows(x), weight.mT, _rows(out), bias=addend)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _affine(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("linear")
        x, weight = ctx.saved_tensors
        g, grad_x, grad_weight, grad_bias = _rows(grad_output), None, None, None
        if ctx.needs_input_grad[0]:
            grad_x = torch.empty(x.shape, dtype=torch.float32)
            multiply(g, weight, _rows(grad_x))
        if to_weight := gradient_of(ctx, 1, weight, "linear", may_be_fresh=True):
            multiply(g.mT, _rows(x), to_weight.buffer, fresh=to_weight.fresh)
            grad_weight = to_weight.returned
        if to_bias := gradient_of(ctx, 2, weight.shape[:1], "linear"):
            add_rows(g, to_bias.buffer)
            grad_bias = to_bias.returned
        return grad_x, grad_weight, grad_bias


_apply_linear = apply_of(_Linear)


@stored("x", parameters=("weight", "bias"))
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias for float32 x [..., in], weight [out, in], bias [out]; the result is [..., out].

    out[r, o] = chain over ascending i of acc = fma(x[r, i], weight[o, i], acc), from +0; then + bias[o].
    Backward: grad_x[r, i] = chain over ascending o of fma(g[r, o], weight[o, i], acc), from +0;
    grad_weight[o, i] = chain over ascending rows r of fma(g[r, o], x[r, i], acc); grad_bias[o] = ascending sum over
    rows. The latter two continue what stands in .grad when weight and bias are leaves.

    TypeError: not float32 tensors; ValueError: shapes that do not fit; RuntimeError: not in the CPU's memory.
    """
    require_tensor("linear", "x", x)
    require_tensor("linear", "weight", weight)
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear: x {size(x)} and weight {size(weight)} do not fit [..., in] and [out, in]")
    if bias is not None:
        require_tensor("linear", "bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"linear: bias {size(bias)} does not fit weight {size(weight)}")
    if not differentiable(x, weight, bias):
        return _affine(x, weight, bias)
    result: Tensor = _apply_linear(x, weight, bias)
    return result
