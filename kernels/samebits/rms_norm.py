"""rms_norm over the last axis, and its two gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samebits._accumulate import gradient_of, refuse_second_derivative
from samebits._chains import COLUMNS, FLOAT, PANEL_FLOATS, clear, lane_weighted, row_products, share
from samebits._check import require, require_tensor, size
from samebits._compile import kernel
from samebits._elementary import rsqrt32
from samebits._gemm import pack_columns
from samebits._intrinsics import fma32, load32, store32
from samebits._split import split_rows
from samebits._storage import stored
from samebits._vectors import LANES
from samebits.layer_norm import continue_weight

SCRATCH_FLOATS = 2 * PANEL_FLOATS + 4 * LANES


@kernel("void(intp, intp, intp, intp, intp, float32, float32, intp, intp, intp)", binary64=True)
def _forward(
    x: int, weight: int, y: int, scales: int, n: int, share: float, eps: float, scratch: int, begin: int, end: int
) -> None:
    chains = scratch + 2 * PANEL_FLOATS * FLOAT
    for first in range(begin, end, LANES):
        num_rows, offset = min(LANES, end - first), first * n * FLOAT
        clear(chains, LANES)
        row_products(x + offset, x + offset, n, num_rows, n, scratch, chains)
        for i in range(num_rows):
            scale = rsqrt32(load32(chains, i) * share + eps)
            store32(scales, first + i, scale)
            line, goal = x + offset + i * n * FLOAT, y + offset + i * n * FLOAT
            for k in range(n):
                store32(goal, k, (load32(line, k) * scale) * load32(weight, k))


@kernel("void(intp, intp, intp, intp, intp, intp, float32, intp, intp, intp)")
def _backward_rows(
    grad: int, x: int, weight: int, scales: int, dx: int, n: int, share: float, scratch: int, begin: int, end: int
) -> None:
    grads, xs, chains = scratch, scratch + PANEL_FLOATS * FLOAT, scratch + 2 * PANEL_FLOATS * FLOAT
    zeros, scale_lanes = chains + 2 * LANES * FLOAT, chains + 3 * LANES * FLOAT
    clear(zeros, LANES)  # the means that a layer norm would have: x - 0 is x, of either sign
    for first in range(begin, end, LANES):
        num_rows, offset = min(LANES, end - first), first * n * FLOAT
        for i in range(LANES):
            store32(scale_lanes, i, load32(scales, first + min(i, num_rows - 1)))
        clear(chains, 2 * LANES)
        for k in range(0, n, COLUMNS):
            width, shift = min(COLUMNS, n - k), offset + k * FLOAT
            pack_columns(grad + shift, n, num_rows, 1, width, grads)
            pack_columns(x + shift, n, num_rows, 1, width, xs)
            lane_weighted(width, grads, xs, weight + k * FLOAT, zeros, scale_lanes, chains)
        for i in range(num_rows):
            scale, mean, shift = load32(scale_lanes, i), load32(chains, LANES + i) * share, offset + i * n * FLOAT
            for k in range(n):
                u, normal = load32(grad + shift, k) * load32(weight, k), load32(x + shift, k) * scale
                store32(dx + shift, k, fma32(-normal, mean, u) * scale)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x, weight, n = x.contiguous(), weight.contiguous(), x.shape[-1]
        rows = x.numel() // n if n else 0
        y, statistics = torch.empty_like(x), torch.zeros(2, rows, dtype=torch.float32)  # no means, and scales
        pointers = (x.data_ptr(), weight.data_ptr(), y.data_ptr(), statistics.data_ptr() + rows * FLOAT)
        split_rows(_forward, rows, n, SCRATCH_FLOATS, *pointers, n, share(n), np.float32(eps))
        ctx.save_for_backward(x, weight, statistics)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        refuse_second_derivative("rms_norm")
        x, weight, statistics = ctx.saved_tensors
        grad, n, rows, dx = grad.contiguous(), x.shape[-1], statistics.shape[1], None
        if ctx.needs_input_grad[0]:
            dx = torch.empty_like(x)
            scales = statistics.data_ptr() + rows * FLOAT
            pointers = (grad.data_ptr(), x.data_ptr(), weight.data_ptr(), scales, dx.data_ptr())
            split_rows(_backward_rows, rows, n, SCRATCH_FLOATS, *pointers, n, share(n))
        to_weight = gradient_of(ctx, 1, weight, "rms_norm")
        if to_weight:
            continue_weight(to_weight, grad, x, statistics)
        return dx, to_weight and to_weight.returned, None


@stored("x", parameters=("weight",))
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide x [..., n] by the root of its mean square over the last axis, then scale by weight [n].

    c = binary32(1/n); r = rsqrt((chain of fma(x, x) from +0) * c + binary32(eps)), rounded correctly; h = x * r;
    y = h * weight.
    Backward: u = grad * weight; b = (chain of fma(u, h) from +0) * c; grad_x = fma(-h, b, u) * r. Over ascending rows
    grad_weight = chain of fma(grad, h), which continues what stands in .grad when weight is a leaf.

    TypeError: not float32 tensors; ValueError: shapes or eps that do not fit; RuntimeError: not in the CPU's memory.
    """
    require_tensor("rms_norm", "x", x)
    require_tensor("rms_norm", "weight", weight)
    fits = x.dim() >= 1 and weight.shape == x.shape[-1:]
    require(fits, "rms_norm", f"x {size(x)} and weight {size(weight)} do not fit [..., n] and [n]")
    require(math.isfinite(eps) and eps >= 0.0, "rms_norm", f"eps must be finite and not negative, not {eps}")
    result: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]  # torch's own
    return result
