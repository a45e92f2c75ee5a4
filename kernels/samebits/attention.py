"""Attention by heads, and multi-head attention composed of it and linear."""

from __future__ import annotations

import math
from array import array
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from samebits import _attention
from samebits._accumulate import refuse_second_derivative
from samebits._attention import OPERAND_FIELDS, OPERANDS, SQUARE_AT
from samebits._check import require, require_tensor, size
from samebits._compile import Kernel
from samebits._gemm import gemm, panel_product
from samebits._split import differentiable
from samebits._storage import stored
from samebits._threads import run, scratch, shares
from samebits.matmul import linear

WORTH_A_SHARE = 1 << 19  # multiply-adds: with fewer heads in a share, waking a thread costs more than it saves


class _Problem(NamedTuple):
    """Sizes of one attention; operands are [batch, heads, rows or keys, width]."""

    batch: int
    heads: int
    rows: int
    keys: int
    width: int
    causal: bool

    def run(self, kernel: Kernel, probabilities: Tensor | None, **operands: Tensor) -> None:
        """Call a kernel of `_attention` over all heads. Without probabilities each head's are dropped."""
        address, step = (0, 0) if probabilities is None else (probabilities.data_ptr(), self.rows * self.keys)
        addresses = gemm.address(), panel_product.address()
        table = array("q", (self.heads, *self[2:], address, step, *addresses))
        for name in OPERANDS:
            operand = operands.get(name)
            table.extend((0,) * OPERAND_FIELDS if operand is None else (operand.data_ptr(), *operand.stride()[:3]))
        grain = 1 + WORTH_A_SHARE // (1 + self.rows * self.keys * self.width)
        num_floats, pointer = SQUARE_AT + self.rows * self.keys, table.buffer_info()[0]
        scale = np.float32(1.0 / math.sqrt(self.width))

        def job(begin: int, end: int) -> None:
            kernel(pointer, scale, scratch(num_floats), begin, end)

        run([partial(job, begin, end) for begin, end in shares(self.batch * self.heads, grain)])

    def probabilities(self) -> Tensor:
        """Room for them."""
        return torch.empty((self.batch, self.heads, self.rows, self.keys), dtype=torch.float32)


def _problem(q: Tensor, k: Tensor, causal: bool) -> _Problem:
    batch, heads, rows, width = q.shape
    return _Problem(batch, heads, rows, k.shape[2], width, causal)


def _along_rows(x: Tensor) -> Tensor:
    """x with elements of a row side by side, copied if need be."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        problem = ctx.problem = _problem(q, k, causal)
        probabilities, out = problem.probabilities(), torch.empty(q.shape, dtype=torch.float32)
        problem.run(_attention.forward, probabilities, q=q, k=k, v=v, out=out)
        ctx.save_for_backward(q, k, v, probabilities)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("attention")
        q, k, v, probabilities = ctx.saved_tensors
        made = [torch.empty(x.shape, dtype=torch.float32) for x in (q, k, v)]
        names = dict(zip(("grad_q", "grad_k", "grad_v"), made, strict=True))
        ctx.problem.run(_attention.backward, probabilities, q=q, k=k, v=v, grad=_along_rows(grad), **names)
        return *made, None


@stored("q", "k", "v")
def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(q @ k.T / sqrt(D)) @ v for float32 q [B, H, T, D], k and v [B, H, S, D]; the result is [B, H, T, D].

    With causal=True (T == S) row i sees keys j <= i; masked terms are absent from every chain. For each head:

        s[i, j] = chain over d of fma(q[i, d], k[j, d], acc), from +0; x = s * scale, scale = binary32(1 / sqrt(D))
        e[i, j] = exp(x[i, j] - max over j of x[i, j]); t[i] = ascending sum over j of e[i, j]; p = e / t
        out[i] = chain over ascending j of fma(p[i, j], v[j], acc), from +0
    Backward, g being grad_output:
        dp[i, j] = chain over d of fma(g[i, d], v[j, d], acc); D[i] = chain over j of fma(p[i, j], dp[i, j], acc)
        ds = (p * (dp - D)) * scale
        grad_q[i] = chain over j of fma(ds[i, j], k[j]); grad_k[j] = chain over i of fma(ds[i, j], q[i]);
        grad_v[j] = chain over i of fma(p[i, j], g[i]); all from +0.

    A row without keys gives +0. Keeps p [B, H, T, S] for backward.
    TypeError: not float32 tensors; ValueError: shapes that do not fit; RuntimeError: not in the CPU's memory.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        require_tensor("attention", name, tensor)
    fits = q.dim() == k.dim() == 4 and k.shape == v.shape and q.shape[:2] == k.shape[:2] and q.shape[3] == k.shape[3]
    if not fits or (causal and q.shape[2] != k.shape[2]) or q.shape[3] == 0:
        raise ValueError(
            f"attention: q {size(q)}, k {size(k)}, v {size(v)} do not fit [B, H, T, D], [B, H, S, D] twice"
        )
    q, k, v = _along_rows(q), _along_rows(k), _along_rows(v)
    if differentiable(q, k, v):
        result: Tensor = _Attention.apply(q, k, v, causal)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return result
    out = torch.empty(q.shape, dtype=torch.float32)
    _problem(q, k, causal).run(_attention.forward, None, q=q, k=k, v=v, out=out)
    return out


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, T, heads * D] seen as [B, heads, T, D]."""
    return x.view(*x.shape[:2], num_heads, x.shape[-1] // num_heads).transpose(1, 2)


def _three(qkv: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as heads, seen in one tensor [B, T, 3 * heads * D]."""
    q, k, v = (_heads(part, num_heads) for part in qkv.chunk(3, dim=-1))
    return q, k, v


class _PackedAttention(torch.autograd.Function):
    """attention on q, k and v as one linear made them; their gradient comes out in one piece."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_heads: int, causal: bool) -> Tensor:
        ctx.num_heads, ctx.causal = num_heads, causal
        out, probabilities = _packed_forward(qkv, num_heads, causal, keep=True)
        ctx.save_for_backward(qkv, probabilities)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative("multihead_attention")
        qkv, probabilities = ctx.saved_tensors
        grad_qkv = torch.empty(qkv.shape, dtype=torch.float32)
        q, k, v = _three(qkv, ctx.num_heads)
        grad_q, grad_k, grad_v = _three(grad_qkv, ctx.num_heads)
        grad = _heads(_along_rows(grad), ctx.num_heads)
        problem = _problem(q, k, ctx.causal)
        made = {"grad_q": grad_q, "grad_k": grad_k, "grad_v": grad_v}
        problem.run(_attention.backward, probabilities, q=q, k=k, v=v, grad=grad, **made)
        return grad_qkv, None, None


def _packed_forward(qkv: Tensor, num_heads: int, causal: bool, *, keep: bool) -> tuple[Tensor, Tensor | None]:
    q, k, v = _three(qkv, num_heads)
    out = torch.empty((*qkv.shape[:2], qkv.shape[2] // 3), dtype=torch.float32)
    problem = _problem(q, k, causal)
    probabilities = problem.probabilities() if keep else None
    problem.run(_attention.forward, probabilities, q=q, k=k, v=v, out=_heads(out, num_heads))
    return out, probabilities


def _check_multihead(x: Tensor, tensors: dict[str, tuple[Tensor, tuple[int, ...]]], num_heads: int) -> None:
    for name, (tensor, shape) in tensors.items():
        require_tensor("multihead_attention", name, tensor)
        require(tensor.shape == shape, "multihead_attention", f"{name} must be {list(shape)}, not {size(tensor)}")
    features = x.shape[-1]
    whole = num_heads >= 1 and features >= num_heads and features % num_heads == 0
    require(whole, "multihead_attention", f"{features} features cannot be cut into {num_heads} heads")


@stored("x", parameters=("qkv_weight", "qkv_bias", "out_weight", "out_bias"))
def multihead_attention(
    x: Tensor, qkv_weight: Tensor, qkv_bias: Tensor, out_weight: Tensor, out_bias: Tensor, num_heads: int,
    causal: bool = False,
) -> Tensor:  # fmt: skip
    """Multi-head self-attention of float32 x [B, T, F]; the result is [B, T, F].

    qkv = linear(x, qkv_weight [3F, F], qkv_bias [3F]): q, k and v side by side, each with its heads side by side;
    attention by heads of F / num_heads; linear(that, out_weight [F, F], out_bias [F]). Gradients as of those three.

    TypeError: not float32 tensors; ValueError: shapes that do not fit; RuntimeError: not in the CPU's memory.
    """
    require_tensor("multihead_attention", "x", x)
    require(x.dim() == 3, "multihead_attention", f"x must be [B, T, F], not {size(x)}")
    f = x.shape[2]
    shapes = {
        "qkv_weight": (qkv_weight, (3 * f, f)), "qkv_bias": (qkv_bias, (3 * f,)),
        "out_weight": (out_weight, (f, f)), "out_bias": (out_bias, (f,)),
    }  # fmt: skip
    _check_multihead(x, shapes, num_heads)
    qkv = linear(x, qkv_weight, qkv_bias)
    if differentiable(qkv):
        made: Tensor = _PackedAttention.apply(qkv, num_heads, causal)  # type: ignore[no-untyped-call]  # torch's own
    else:
        made, _ = _packed_forward(qkv, num_heads, causal, keep=False)
    return linear(made, out_weight, out_bias)
