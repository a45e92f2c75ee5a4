"""conv2d, and its three gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from samebits._accumulate import gradient_of, refuse_second_derivative
from samebits._check import require, require_tensor, size
from samebits._conv import sweep_planes
from samebits._conv_kernel import continue_kernel
from samebits._planes import Window, backward_axes, forward_axis, sweep
from samebits._split import differentiable
from samebits._storage import stored

Pair = int | tuple[int, int]
Windows = tuple[Window, Window]


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows, groups: int) -> Tensor:
    rows, columns = windows
    x, weight, bias = x.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous()
    out = torch.empty(len(x), len(weight), rows.outputs, columns.outputs, dtype=torch.float32)
    if out.numel():
        taps, channels = rows.kernel * columns.kernel, weight.shape[1]
        strides = (channels * taps, taps, len(weight) // groups * channels * taps)
        plan = sweep(forward_axis(rows), forward_axis(columns), columns.kernel)
        sweep_planes(plan, x, weight, strides, groups, bias, out)
    return out


def _input_gradient(grad: Tensor, weight: Tensor, shape: torch.Size, windows: Windows, groups: int) -> Tensor:
    rows, columns = windows
    dx = torch.empty(shape, dtype=torch.float32)
    if dx.numel():
        taps, channels = rows.kernel * columns.kernel, weight.shape[1]
        strides = (taps, channels * taps, len(weight) // groups * channels * taps)
        for r in backward_axes(rows):
            for c in backward_axes(columns):
                sweep_planes(sweep(r, c, columns.kernel), grad, weight, strides, groups, None, dx)
    return dx


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, windows: Windows, groups: int
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight)
        ctx.windows, ctx.groups = windows, groups
        return _convolved(x, weight, bias, windows, groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("conv2d")
        x, weight = ctx.saved_tensors
        x, weight, grad, dx = x.contiguous(), weight.contiguous(), grad.contiguous(), None
        if ctx.needs_input_grad[0]:
            dx = _input_gradient(grad, weight, x.shape, ctx.windows, ctx.groups)
        to_weight = gradient_of(ctx, 1, weight, "conv2d")
        to_bias = gradient_of(ctx, 2, weight.shape[:1], "conv2d")
        if (to_weight or to_bias) and grad.numel():
            kernel = to_weight.buffer if to_weight else torch.zeros(weight.shape, dtype=torch.float32)
            continue_kernel(x, grad, kernel, to_bias and to_bias.buffer, ctx.windows, ctx.groups)
        return dx, to_weight and to_weight.returned, to_bias and to_bias.returned, None, None


def pair(operator: str, name: str, value: Pair, least: int) -> tuple[int, int]:
    """Rows' and columns' number; ValueError below `least`, TypeError unless it is an int or two of them."""
    numbers = (value, value) if type(value) is int else value
    if not (isinstance(numbers, tuple) and len(numbers) == 2 and all(type(number) is int for number in numbers)):
        raise TypeError(f"{operator}: {name} must be an int or two of them, not {value!r}")
    require(min(numbers) >= least, operator, f"{name} must be at least {least}, not {value!r}")
    return numbers


def _windows(x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Windows:
    steps, pads = pair("conv2d", "stride", stride, 1), pair("conv2d", "padding", padding, 0)
    gaps = pair("conv2d", "dilation", dilation, 1)
    rows, columns = (
        Window(x.shape[2 + i], weight.shape[2 + i], steps[i], pads[i], gaps[i]) for i in range(2)
    )  # fmt: skip
    fits = rows.kernel > 0 and columns.kernel > 0 and rows.outputs > 0 and columns.outputs > 0
    require(fits, "conv2d", f"the kernel of weight {size(weight)} does not fit the padded x {size(x)}")
    return rows, columns


@stored("x", parameters=("weight", "bias"))
def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    """The cross-correlation of float32 x [B, C, H, W] with weight [O, C/groups, kh, kw]; the result is [B, O, H', W'].

    out[b, o, i, j] = chain over ascending (channel c of the group, row u, column v of the kernel) of
    acc = fma(x[b, c, i*stride - padding + u*dilation, j*...], weight[o, c, u, v], acc), from +0; then + bias[o].
    Taps that fall on padding are absent from the chain.
    Backward, chains of fma(g, other, acc), absent taps left out: grad_x over ascending (output channel of the group,
    kernel row, kernel column), from +0; grad_weight over ascending (image, row, column) of the output; grad_bias =
    ascending sum over (image, row, column). The latter two continue what stands in .grad when weight and bias are
    leaves, so that microbatches in order equal the whole batch. The order is that of RepDL (arXiv 2510.09180).

    TypeError: not float32 tensors, or numbers that are no ints; ValueError: shapes or numbers that do not fit;
    RuntimeError: not in the CPU's memory, or a second derivative.
    """
    for name, tensor in (("x", x), ("weight", weight), *((("bias", bias),) if bias is not None else ())):
        require_tensor("conv2d", name, tensor)
    shapes = f"x {size(x)} and weight {size(weight)} do not fit [B, C, H, W] and [O, C/groups, kh, kw]"
    require(x.dim() == 4 and weight.dim() == 4, "conv2d", shapes)
    require(type(groups) is int and groups >= 1, "conv2d", f"groups must be a positive int, not {groups!r}")
    fits = x.shape[1] == weight.shape[1] * groups and len(weight) % groups == 0
    require(fits, "conv2d", f"{shapes} with groups {groups}")
    if bias is not None:
        require(bias.shape == weight.shape[:1], "conv2d", f"bias {size(bias)} does not fit weight {size(weight)}")
    windows = _windows(x, weight, stride, padding, dilation)
    if not differentiable(x, weight, bias):
        return _convolved(x, weight, bias, windows, groups)
    result: Tensor = _Conv2d.apply(x, weight, bias, windows, groups)  # type: ignore[no-untyped-call]  # torch's own
    return result
