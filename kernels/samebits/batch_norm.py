"""batch_norm over the images and places of each channel, and its three gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samebits._accumulate import gradient_of, refuse_second_derivative
from samebits._chains import COLUMNS, FLOAT, PANEL_FLOATS, clear, lane_products, lane_squares, lane_sums, share
from samebits._check import require, require_tensor, size
from samebits._compile import kernel, routine
from samebits._gemm import pack_columns
from samebits._intrinsics import fma32, load32, store32
from samebits._split import split_rows
from samebits._storage import stored
from samebits._vectors import LANES

ONE: Any = np.float32(1.0)
NAMES = ("weight", "bias", "running_mean", "running_var")


@kernel("void(intp, intp, intp, intp, intp, intp, float32, intp, intp, intp)")
def _statistics(
    x: int, means: int, squares: int, images: int, channels: int, places: int, share: float,
    scratch: int, begin: int, end: int,
) -> None:  # fmt: skip
    """The mean of channels begin..end, and the chain of squares of what is left of x after it."""
    panel, chains, centres = scratch, scratch + PANEL_FLOATS * FLOAT, scratch + (PANEL_FLOATS + LANES) * FLOAT
    for first in range(begin, end, LANES):
        lanes = min(LANES, end - first)
        for second in range(2):
            clear(chains, LANES)
            for n in range(images):
                plane = x + (n * channels + first) * places * FLOAT
                for k in range(0, places, COLUMNS):
                    width = min(COLUMNS, places - k)
                    pack_columns(plane + k * FLOAT, places, lanes, 1, width, panel)
                    if second:
                        lane_squares(width, panel, centres, chains)
                    else:
                        lane_sums(width, panel, chains)
            for i in range(LANES):
                if second and i < lanes:
                    store32(squares, first + i, load32(chains, i))
                if not second:
                    store32(centres, i, load32(chains, i) * share)
        for i in range(lanes):
            store32(means, first + i, load32(centres, i))


@kernel("void(intp, intp, intp, float32, float32)")
def _scales(variances: int, scales: int, channels: int, share: float, eps: float) -> None:
    for c in range(channels):
        store32(scales, c, ONE / math.sqrt(load32(variances, c) * share + eps))


@kernel("void(intp, intp, intp, float32, float32, float32)")
def _move(running: int, news: int, channels: int, share: float, momentum: float, kept: float) -> None:
    for c in range(channels):
        store32(running, c, fma32(momentum, load32(news, c) * share, load32(running, c) * kept))


@kernel("void(" + ", ".join(["intp"] * 11) + ")")
def _forward(
    x: int, weight: int, bias: int, y: int, statistics: int, images: int, channels: int, places: int,
    scratch: int, begin: int, end: int,
) -> None:  # fmt: skip
    for n in range(images):
        for c in range(begin, end):
            line, goal = x + (n * channels + c) * places * FLOAT, y + (n * channels + c) * places * FLOAT
            mean, scale = load32(statistics, c), load32(statistics, channels + c)
            factor, addend = load32(weight, c), load32(bias, c)
            for k in range(places):
                store32(goal, k, fma32((load32(line, k) - mean) * scale, factor, addend))


@routine()
def normalise(xs: int, statistics: int, channels: int, first: int, lanes: int, width: int) -> None:
    """h = (x - mean) * scale in place, for a panel [width, LANES]."""
    for i in range(lanes):
        mean, scale = load32(statistics, first + i), load32(statistics, channels + first + i)
        for k in range(width):
            store32(xs, k * LANES + i, (load32(xs, k * LANES + i) - mean) * scale)


@routine()
def weigh(grads: int, weight: int, first: int, lanes: int, width: int) -> None:
    """u = grad * weight in place, for a panel [width, LANES]."""
    for i in range(lanes):
        factor = load32(weight, first + i)
        for k in range(width):
            store32(grads, k * LANES + i, load32(grads, k * LANES + i) * factor)


@kernel("void(" + ", ".join(["intp"] * 13) + ")")
def _backward_sums(
    grad: int, x: int, weight: int, statistics: int, dw: int, db: int, means: int, images: int, channels: int,
    places: int, scratch: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Continue dw and db; means: the sums of u, then the chains of fma(u, h)."""
    grads, xs, chains = scratch, scratch + PANEL_FLOATS * FLOAT, scratch + 2 * PANEL_FLOATS * FLOAT
    step = LANES * FLOAT
    for first in range(begin, end, LANES):
        lanes = min(LANES, end - first)
        clear(chains, 4 * LANES)
        for i in range(lanes):
            store32(chains, i, load32(dw, first + i))
            store32(chains, LANES + i, load32(db, first + i))
        for n in range(images):
            shift = (n * channels + first) * places * FLOAT
            for k in range(0, places, COLUMNS):
                width, here = min(COLUMNS, places - k), shift + k * FLOAT
                pack_columns(grad + here, places, lanes, 1, width, grads)
                pack_columns(x + here, places, lanes, 1, width, xs)
                normalise(xs, statistics, channels, first, lanes, width)
                lane_products(width, grads, xs, chains)
                lane_sums(width, grads, chains + step)
                weigh(grads, weight, first, lanes, width)
                lane_sums(width, grads, chains + 2 * step)
                lane_products(width, grads, xs, chains + 3 * step)
        for i in range(lanes):
            store32(dw, first + i, load32(chains, i))
            store32(db, first + i, load32(chains, LANES + i))
            store32(means, first + i, load32(chains, 2 * LANES + i))
            store32(means, channels + first + i, load32(chains, 3 * LANES + i))


@kernel("void(" + ", ".join(["intp"] * 9) + ", float32, intp, intp, intp, intp)")
def _backward_input(
    grad: int, x: int, weight: int, statistics: int, means: int, dx: int, images: int, channels: int, places: int,
    share: float, training: int, scratch: int, begin: int, end: int,
) -> None:  # fmt: skip
    for n in range(images):
        for c in range(begin, end):
            shift = (n * channels + c) * places * FLOAT
            mean, scale, factor = load32(statistics, c), load32(statistics, channels + c), load32(weight, c)
            if training:
                first, second = load32(means, c) * share, load32(means, channels + c) * share
                for k in range(places):
                    u, h = load32(grad + shift, k) * factor, (load32(x + shift, k) - mean) * scale
                    store32(dx + shift, k, fma32(-h, second, u - first) * scale)
            else:
                for k in range(places):
                    store32(dx + shift, k, (load32(grad + shift, k) * factor) * scale)


def _planes(x: Tensor) -> Tensor:
    """[images, channels, places]; a batch of vectors becomes one image whose places are the vectors."""
    return x.mT.contiguous()[None] if x.dim() == 2 else x.contiguous().flatten(2)


def _room(x: Tensor) -> Tensor:
    """Memory for a result's planes; images have it in the result's own shape, for a view would not do as a result."""
    shape = (1, x.shape[1], x.shape[0]) if x.dim() == 2 else x.shape
    return torch.empty(shape, dtype=torch.float32)


def _like(planes: Tensor, x: Tensor) -> Tensor:
    """A result's planes back in the shape of x."""
    return torch.empty(x.shape, dtype=torch.float32).copy_(planes[0].mT) if x.dim() == 2 else planes


def _from_batch(x: Tensor, running: tuple[Tensor | None, Tensor | None], momentum: float, eps: float) -> Tensor:
    """Mean and scale of each channel, [2, C]; the running statistics move on."""
    planes = _planes(x)
    (images, channels, places), count = planes.shape, planes.shape[0] * planes.shape[2]
    statistics, squares = torch.empty(2, channels, dtype=torch.float32), torch.empty(channels, dtype=torch.float32)
    means, chains = statistics.data_ptr(), squares.data_ptr()
    sizes = (images, channels, places, share(count))
    split_rows(_statistics, channels, count, PANEL_FLOATS + 2 * LANES, planes.data_ptr(), means, chains, *sizes)
    _scales(chains, means + channels * FLOAT, channels, share(count), np.float32(eps))
    moves = (np.float32(momentum), np.float32(1.0 - momentum))
    for tensor, news, factor in zip(running, (means, chains), (ONE, share(count - 1)), strict=True):
        if tensor is not None:
            _move(tensor.data_ptr(), news, channels, factor, *moves)
            torch.autograd.graph.increment_version(tensor)
    return statistics


def _from_running(running_mean: Tensor, running_var: Tensor, eps: float) -> Tensor:
    statistics = torch.empty(2, len(running_mean), dtype=torch.float32)
    statistics[0] = running_mean
    scales = statistics[1].data_ptr()
    _scales(running_var.contiguous().data_ptr(), scales, len(running_mean), ONE, np.float32(eps))
    return statistics


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, training: bool) -> Tensor:
        planes, weight, bias = _planes(x), weight.contiguous(), bias.contiguous()
        (images, channels, places), y = planes.shape, _room(x)
        pointers = (planes.data_ptr(), weight.data_ptr(), bias.data_ptr(), y.data_ptr(), statistics.data_ptr())
        split_rows(_forward, channels, images * places, 0, *pointers, images, channels, places)
        ctx.save_for_backward(x, weight, statistics)
        ctx.training = training
        return _like(y, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("batch_norm")
        x, weight, statistics = ctx.saved_tensors
        grads, planes, dx = _planes(grad), _planes(x), None
        sizes, (to_weight, to_bias) = planes.shape, (gradient_of(ctx, i, weight, "batch_norm") for i in (1, 2))
        channels, count = sizes[1], sizes[0] * sizes[2]
        dw, db = (to.buffer if to else torch.zeros(channels, dtype=torch.float32) for to in (to_weight, to_bias))
        sums = torch.empty(2, channels, dtype=torch.float32)
        pointers = (grads.data_ptr(), planes.data_ptr(), weight.data_ptr(), statistics.data_ptr())
        ends, floats = (dw.data_ptr(), db.data_ptr(), sums.data_ptr()), 2 * PANEL_FLOATS + 4 * LANES
        split_rows(_backward_sums, channels, count, floats, *pointers, *ends, *sizes)
        if ctx.needs_input_grad[0]:
            dx = _room(x)
            rest = (sums.data_ptr(), dx.data_ptr(), *sizes, share(count), int(ctx.training))
            split_rows(_backward_input, channels, count, 0, *pointers, *rest)
            dx = _like(dx, x)
        return dx, to_weight and to_weight.returned, to_bias and to_bias.returned, None, None


def _check(x: Tensor, tensors: tuple[Tensor | None, ...], training: bool, momentum: float, eps: float) -> None:
    require_tensor("batch_norm", "x", x)
    require(x.dim() in (2, 4), "batch_norm", f"x must be [B, C] or [B, C, H, W], not {size(x)}")
    for name, tensor in zip(NAMES, tensors, strict=True):
        if tensor is None and training and name.startswith("running"):
            continue
        require_tensor("batch_norm", name, tensor)
        assert tensor is not None
        require(tensor.shape == x.shape[1:2], "batch_norm", f"{name} {size(tensor)} does not fit x {size(x)}")
        fits = tensor.is_contiguous() or not (training and name.startswith("running"))
        require(fits, "batch_norm", f"{name} is changed in place and must be contiguous")
    for name, number, high in (("momentum", momentum, 1.0), ("eps", eps, math.inf)):
        valid = math.isfinite(number) and 0.0 <= number <= high
        require(valid, "batch_norm", f"{name} must be finite and lie in 0..{high:g}, not {number}")
    enough = not training or x.numel() > x.shape[1] or x.shape[1] == 0
    require(enough, "batch_norm", f"more than one value for each channel is needed to train, but x is {size(x)}")


@stored("x", parameters=("weight", "bias"))
def batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor, bias: Tensor,
    training: bool, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Normalise each channel of float32 x [B, C] or [B, C, H, W] over all else; the other tensors are [C].

    n = all values of a channel, c = binary32(1/n); sums and chains ascend over (image, row, column), from +0.
    Training: mean = (sum of x) * c; d = x - mean; s = chain of fma(d, d); r = 1 / sqrt(s * c + binary32(eps)). Then, in
    place, running_mean = fma(m, mean, running_mean * k) and
    running_var = fma(m, s * binary32(1/(n-1)), running_var * k)
    with m = binary32(momentum), k = binary32(1 - momentum); either may be None.
    Otherwise: mean = running_mean; r = 1 / sqrt(running_var + binary32(eps)).
    h = (x - mean) * r; y = fma(h, weight, bias).
    Backward: u = grad * weight; a = (sum of u) * c; b = (chain of fma(u, h)) * c; grad_x = fma(-h, b, u - a) * r in
    training, else u * r. grad_weight = chain of fma(grad, h), grad_bias = sum of grad; both continue what stands in
    .grad when weight and bias are leaves.

    The statistics are those of the whole batch that is given, so in training a result depends on who else is in the
    batch, and microbatches do not equal the batch. VNodes therefore refuse it; evaluation has no such limit.

    TypeError: not float32 tensors; ValueError: shapes or numbers that do not fit, or one value a channel in training;
    RuntimeError: not in the CPU's memory, or a second derivative.
    """
    _check(x, (weight, bias, running_mean, running_var), training, momentum, eps)
    if training:
        statistics = _from_batch(x.detach(), (running_mean, running_var), momentum, eps)
    else:
        assert running_mean is not None
        assert running_var is not None
        statistics = _from_running(running_mean, running_var, eps)
    result: Tensor = _BatchNorm.apply(  # type: ignore[no-untyped-call]  # torch's own
        x, weight, bias, statistics, training
    )
    return result
