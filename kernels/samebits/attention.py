"""Attention by heads: causal, masked, with grouped queries."""

from __future__ import annotations

import math
from array import array
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from samebits import _attention, _masked
from samebits._accumulate import refuse_second_derivative
from samebits._attention import OPERANDS, SQUARE_AT
from samebits._check import require, require_tensor, size
from samebits._compile import Kernel
from samebits._gemm import gemm, panel_product
from samebits._split import differentiable
from samebits._storage import stored
from samebits._threads import WORTH_SHARING, run, scratch, shares

OF_KEYS = ("k", "v", "grad_k", "grad_v")
WORTH_A_SHARE = WORTH_SHARING >> 2  # multiply-adds of one of the products; exp takes as long as all of them


class Problem(NamedTuple):
    """Sizes of one attention; operands are [batch, heads or groups, rows or keys, width]."""

    batch: int
    heads: int
    groups: int
    rows: int
    keys: int
    width: int
    causal: bool
    mask: Tensor | None
    """1.0 where a row takes part of a key, else 0.0, seen as [batch, heads, rows, keys]."""

    def forward(self, p: Tensor | None, **operands: Tensor) -> None:
        """Fill `out` from q, k and v. Without p the probabilities are dropped."""
        self._run(_attention.forward if self.mask is None else _masked.forward, p, operands)

    def backward(self, p: Tensor, **operands: Tensor) -> None:
        """Fill grad_q, grad_k and grad_v from grad, q, k, v and p."""
        self._run(_attention.backward if self.mask is None else _masked.backward, p, operands)

    def _run(self, kernel: Kernel, p: Tensor | None, operands: dict[str, Tensor]) -> None:
        address, step = (0, 0) if p is None else (p.data_ptr(), self.rows * self.keys)
        sizes = (self.heads, self.rows, self.keys, self.width, int(self.causal))
        table = array("q", (*sizes, address, step, gemm.address(), panel_product.address()))
        if self.mask is not None:
            operands["mask"] = self.mask
        shared = self.heads // self.groups
        for name in OPERANDS:
            operand = operands.get(name)
            heads = shared if name in OF_KEYS else 1
            table.extend((0,) * 4 + (1,) if operand is None else (operand.data_ptr(), *operand.stride()[:3], heads))
        grain = 1 + WORTH_A_SHARE // (1 + shared * self.rows * self.keys * self.width)
        num_floats, pointer = SQUARE_AT + self.rows * self.keys, table.buffer_info()[0]
        scale = np.float32(1.0 / math.sqrt(self.width))

        ranges = shares(self.batch * self.groups, grain)
        run(
            [
                (kernel, (pointer, scale, scratch(num_floats, i), begin * shared, end * shared))
                for i, (begin, end) in enumerate(ranges)
            ]
        )

    def probabilities(self) -> Tensor:
        """Room for them."""
        return torch.empty((self.batch, self.heads, self.rows, self.keys), dtype=torch.float32)


def problem_of(operator: str, q: Tensor, k: Tensor, causal: bool, mask: Tensor | None) -> Problem:
    """The sizes of one attention, with its mask, checked, as the kernels want it."""
    (batch, heads, rows, width), groups, keys = q.shape, k.shape[1], k.shape[2]
    if mask is None:
        return Problem(batch, heads, groups, rows, keys, width, causal, None)
    require_tensor(operator, "mask", mask, torch.bool)
    wanted = (batch, heads, rows, keys)
    fits = mask.dim() == 4 and all(have in (1, want) for have, want in zip(mask.shape, wanted, strict=True))
    require(fits, operator, f"mask {size(mask)} does not fit {list(wanted)}, with 1 for what all share")
    if mask.shape[3] != keys:
        mask = mask.expand(*mask.shape[:3], keys)
    if causal:
        mask = mask & torch.empty((rows, keys), dtype=torch.bool).fill_(True).tril_()
    numbers = torch.empty(mask.shape, dtype=torch.float32).copy_(mask)
    return Problem(batch, heads, groups, rows, keys, width, False, numbers.expand(wanted))


def along_rows(x: Tensor) -> Tensor:
    """x with elements of a row side by side, copied if need be."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> Tensor:
        ctx.problem, probabilities = problem, problem.probabilities()
        out = torch.empty(q.shape, dtype=torch.float32)
        problem.forward(probabilities, q=q, k=k, v=v, out=out)
        ctx.save_for_backward(q, k, v, probabilities)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("attention")
        q, k, v, probabilities = ctx.saved_tensors
        made = [torch.empty(x.shape, dtype=torch.float32) for x in (q, k, v)]
        names = dict(zip(("grad_q", "grad_k", "grad_v"), made, strict=True))
        ctx.problem.backward(probabilities, q=q, k=k, v=v, grad=along_rows(grad), **names)
        return *made, None


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        require_tensor("attention", name, tensor)
    fits = q.dim() == k.dim() == 4 and k.shape == v.shape and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3]
    if not fits or q.shape[3] == 0 or q.shape[1] % max(1, k.shape[1]) or (q.shape[1] > 0) != (k.shape[1] > 0):
        raise ValueError(
            f"attention: q {size(q)}, k {size(k)}, v {size(v)} do not fit [B, H, T, D], [B, G, S, D] twice, "
            "H a multiple of G"
        )


@stored("q", "k", "v")
def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """softmax(q @ k.T / sqrt(D)) @ v for float32 q [B, H, T, D], k and v [B, G, S, D]; the result is [B, H, T, D].

    H is a multiple of G: head h of q meets head h // (H / G) of k and v (grouped queries). With causal=True row i sees
    keys j <= i, also where T and S differ, as torch's is_causal has it. mask is a bool tensor of four axes, each of the
    size in [B, H, T, S] or 1: row i sees key j where it is True. What is not seen is absent from every chain. For
    each head:

        s[i, j] = chain over d of fma(q[i, d], k[j, d], acc), from +0; x = s * scale, scale = binary32(1 / sqrt(D))
        e[i, j] = exp(x[i, j] - max over j of x[i, j]); t[i] = ascending sum over j of e[i, j]; p = e / t
        out[i] = chain over ascending j of fma(p[i, j], v[j], acc), from +0
    Backward, g being grad_output:
        dp[i, j] = chain over d of fma(g[i, d], v[j, d], acc); D[i] = chain over j of fma(p[i, j], dp[i, j], acc)
        ds = (p * (dp - D)) * scale
        grad_q[i] = chain over j of fma(ds[i, j], k[j]); grad_k[j] = chain over (h, i) of fma(ds[i, j], q[i]);
        grad_v[j] = chain over (h, i) of fma(p[i, j], g[i]); all from +0.
    (h, i): one chain through the heads of the group, ascending, and within each head through its rows, ascending.

    A row without keys gives +0, and a key that no row sees gets +0. Keeps p [B, H, T, S] for backward.
    TypeError: not float32 tensors, or a mask that is not bool; ValueError: shapes that do not fit; RuntimeError: not in
    the CPU's memory.
    """
    _check(q, k, v)
    q, k, v = along_rows(q), along_rows(k), along_rows(v)
    problem = problem_of("attention", q, k, causal, mask)
    if differentiable(q, k, v):
        result: Tensor = _Attention.apply(q, k, v, problem)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return result
    out = torch.empty(q.shape, dtype=torch.float32)
    problem.forward(None, q=q, k=k, v=v, out=out)
    return out
