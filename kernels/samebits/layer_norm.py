"""layer_norm over the last axis, and its three gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samebits._accumulate import Gradient, gradient_of, refuse_second_derivative
from samebits._chains import COLUMNS, FLOAT, PANEL_FLOATS, clear, lane_squares, lane_sums, lane_weighted, share
from samebits._check import require, require_tensor, size
from samebits._compile import inlined, kernel
from samebits._gemm import pack_columns
from samebits._intrinsics import fma32, load32, store32
from samebits._product import add_rows
from samebits._split import split, split_rows
from samebits._storage import stored
from samebits._vectors import LANES

ONE = np.float32(1.0)


@inlined()
def _normal(x: int, k: int, mean: Any, scale: Any) -> Any:
    return (load32(x, k) - mean) * scale


@kernel("void(intp, intp, intp, intp, intp, intp, intp, float32, float32, intp, intp, intp)")
def _forward(
    x: int, weight: int, bias: int, y: int, means: int, scales: int, n: int, share: float, eps: float,
    scratch: int, begin: int, end: int,
) -> None:  # fmt: skip
    panel, chains = scratch, scratch + n * LANES * FLOAT
    centres = chains + LANES * FLOAT
    for first in range(begin, end, LANES):
        num_rows, offset = min(LANES, end - first), first * n * FLOAT
        pack_columns(x + offset, n, num_rows, 1, n, panel)
        clear(chains, LANES)
        lane_sums(n, panel, chains)
        for i in range(LANES):
            store32(centres, i, load32(chains, i) * share)
        clear(chains, LANES)
        lane_squares(n, panel, centres, chains)
        for i in range(num_rows):
            mean, scale = load32(centres, i), ONE / math.sqrt(load32(chains, i) * share + eps)
            store32(means, first + i, mean)
            store32(scales, first + i, scale)
            line, goal = x + offset + i * n * FLOAT, y + offset + i * n * FLOAT
            for k in range(n):
                store32(goal, k, fma32(_normal(line, k, mean, scale), load32(weight, k), load32(bias, k)))


@kernel("void(intp, intp, intp, intp, intp, intp, intp, float32, intp, intp, intp)")
def _backward_rows(
    grad: int, x: int, weight: int, means: int, scales: int, dx: int, n: int, share: float,
    scratch: int, begin: int, end: int,
) -> None:  # fmt: skip
    grads, xs, chains = scratch, scratch + PANEL_FLOATS * FLOAT, scratch + 2 * PANEL_FLOATS * FLOAT
    mean_lanes, scale_lanes = chains + 2 * LANES * FLOAT, chains + 3 * LANES * FLOAT
    for first in range(begin, end, LANES):
        num_rows, offset = min(LANES, end - first), first * n * FLOAT
        for i in range(LANES):
            row = first + min(i, num_rows - 1)
            store32(mean_lanes, i, load32(means, row))
            store32(scale_lanes, i, load32(scales, row))
        clear(chains, 2 * LANES)
        for k in range(0, n, COLUMNS):
            width, shift = min(COLUMNS, n - k), offset + k * FLOAT
            pack_columns(grad + shift, n, num_rows, 1, width, grads)
            pack_columns(x + shift, n, num_rows, 1, width, xs)
            lane_weighted(width, grads, xs, weight + k * FLOAT, mean_lanes, scale_lanes, chains)
        for i in range(num_rows):
            mean, scale = load32(mean_lanes, i), load32(scale_lanes, i)
            first_mean, second_mean = load32(chains, i) * share, load32(chains, LANES + i) * share
            shift = offset + i * n * FLOAT
            for k in range(n):
                u = load32(grad + shift, k) * load32(weight, k)
                normal = _normal(x + shift, k, mean, scale)
                store32(dx + shift, k, fma32(-normal, second_mean, u - first_mean) * scale)


@kernel("void(intp, intp, intp, intp, intp, intp, intp, intp, intp)")
def _backward_weight(
    grad: int, x: int, means: int, scales: int, dw: int, rows: int, n: int, begin: int, end: int
) -> None:
    """Four rows at a time, so that the chains are loaded and stored less often."""
    row = n * FLOAT
    for i in range(0, rows - 3, 4):
        m0, m1, m2, m3 = load32(means, i), load32(means, i + 1), load32(means, i + 2), load32(means, i + 3)
        s0, s1, s2, s3 = load32(scales, i), load32(scales, i + 1), load32(scales, i + 2), load32(scales, i + 3)
        g, v = grad + i * row, x + i * row
        for k in range(begin, end):
            chain = fma32(load32(g, k), _normal(v, k, m0, s0), load32(dw, k))
            chain = fma32(load32(g + row, k), _normal(v + row, k, m1, s1), chain)
            chain = fma32(load32(g + 2 * row, k), _normal(v + 2 * row, k, m2, s2), chain)
            store32(dw, k, fma32(load32(g + 3 * row, k), _normal(v + 3 * row, k, m3, s3), chain))
    for i in range(rows - rows % 4, rows):
        mean, scale, g, v = load32(means, i), load32(scales, i), grad + i * row, x + i * row
        for k in range(begin, end):
            store32(dw, k, fma32(load32(g, k), _normal(v, k, mean, scale), load32(dw, k)))


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        x, weight, bias, n = x.contiguous(), weight.contiguous(), bias.contiguous(), x.shape[-1]
        rows = x.numel() // n if n else 0
        y, statistics = torch.empty_like(x), torch.empty(2, rows, dtype=torch.float32)
        means = statistics.data_ptr()
        pointers = (x.data_ptr(), weight.data_ptr(), bias.data_ptr(), y.data_ptr(), means, means + rows * FLOAT)
        numbers = (n, share(n), np.float32(eps))
        split_rows(_forward, rows, n, (n + 2) * LANES, *pointers, *numbers)
        ctx.save_for_backward(x, weight, statistics)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("layer_norm")
        x, weight, statistics = ctx.saved_tensors
        grad, n, rows = grad.contiguous(), x.shape[-1], statistics.shape[1]
        dx = _input_gradient(grad, x, weight, statistics) if ctx.needs_input_grad[0] else None
        to_weight, to_bias = (gradient_of(ctx, position, weight, "layer_norm") for position in (1, 2))
        if to_weight:
            continue_weight(to_weight, grad, x, statistics)
        if to_bias:
            add_rows(grad.view(rows, n), to_bias.buffer)
        return dx, to_weight and to_weight.returned, to_bias and to_bias.returned, None


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, statistics: Tensor) -> Tensor:
    n, rows, dx = x.shape[-1], statistics.shape[1], torch.empty_like(x)
    means = statistics.data_ptr()
    pointers = (grad.data_ptr(), x.data_ptr(), weight.data_ptr(), means, means + rows * FLOAT, dx.data_ptr())
    split_rows(_backward_rows, rows, n, 2 * PANEL_FLOATS + 4 * LANES, *pointers, n, share(n))
    return dx


def continue_weight(to_weight: Gradient, grad: Tensor, x: Tensor, statistics: Tensor) -> None:
    """Continue grad_weight = chain of fma(grad, h) over ascending rows; statistics are the rows' means and scales."""
    n, rows, means = x.shape[-1], statistics.shape[1], statistics.data_ptr()
    pointers = (grad.data_ptr(), x.data_ptr(), means, means + rows * FLOAT, to_weight.buffer.data_ptr())
    split(_backward_weight, n, rows, *pointers, rows, n)


@stored("x", parameters=("weight", "bias"))
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise x [..., n] over its last axis, then scale by weight [n] and shift by bias [n].

    c = binary32(1/n); mean = (ascending sum of x from +0) * c; d = x - mean;
    variance = (chain of fma(d, d) from +0) * c; r = 1 / sqrt(variance + binary32(eps)); h = d * r;
    y = fma(h, weight, bias).
    Backward: u = grad * weight; a = (ascending sum of u) * c; b = (chain of fma(u, h)) * c;
    grad_x = fma(-h, b, u - a) * r. Over ascending rows: grad_weight = chain of fma(grad, h), grad_bias = sum of grad;
    both continue what stands in .grad when weight and bias are leaves.

    TypeError: not float32 tensors; ValueError: shapes or eps that do not fit; RuntimeError: not in the CPU's memory.
    """
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        require_tensor("layer_norm", name, tensor)
    fits = x.dim() >= 1 and weight.shape == bias.shape == x.shape[-1:]
    require(fits, "layer_norm", f"x {size(x)}, weight {size(weight)}, bias {size(bias)} do not fit [..., n], [n], [n]")
    require(math.isfinite(eps) and eps >= 0.0, "layer_norm", f"eps must be finite and not negative, not {eps}")
    result: Tensor = _LayerNorm.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]  # torch's own
    return result
