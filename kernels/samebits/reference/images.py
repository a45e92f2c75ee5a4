"""conv2d, pooling and batch_norm, one chain step at a time; vectorised over independent outputs only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from samebits.reference.arrays import Floats, fma, sum_rows
from samebits.reference.scalar import F32

Pair = tuple[int, int]


def output_size(size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Pair:
    """Rows and columns of a convolution's result."""
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    h, w = ((n + 2 * p - r) // s + 1 for n, p, r, s in zip(size, padding, reach, stride, strict=True))
    return h, w


def meetings(
    size: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Iterator[tuple[Pair, Pair, Pair]]:
    """(place of the output, tap of the kernel, place of the input) for every tap that is not padding, ascending."""
    for i, j in np.ndindex(output_size(size, kernel, stride, padding, dilation)):
        for u, v in np.ndindex(kernel):
            h, w = i * stride[0] - padding[0] + u * dilation[0], j * stride[1] - padding[1] + v * dilation[1]
            if 0 <= h < size[0] and 0 <= w < size[1]:
                yield (i, j), (u, v), (h, w)


def conv2d(
    x: Floats, weight: Floats, bias: Floats | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Floats:
    """x [B, C, H, W], weight [O, C/groups, kh, kw]: chains over (channel, row, column), then + bias."""
    geometry = (x.shape[2:], weight.shape[2:], stride, padding, dilation)
    out = np.zeros((len(x), len(weight), *output_size(*geometry)), F32)
    channels, outputs = weight.shape[1], len(weight) // groups
    for o in range(len(weight)):
        for c in range(channels):
            for (i, j), (u, v), (h, w) in meetings(*geometry):
                source = x[:, o // outputs * channels + c, h, w]
                out[:, o, i, j] = fma(source, weight[o, c, u, v], out[:, o, i, j])
    with np.errstate(all="ignore"):
        return out if bias is None else out + bias[:, None, None]


def conv2d_backward(
    x: Floats, weight: Floats, g: Floats, start_weight: Floats, start_bias: Floats,
    stride: Pair, padding: Pair, dilation: Pair, groups: int,
) -> tuple[Floats, Floats, Floats]:  # fmt: skip
    """The gradients of x (over output channel, kernel row, column), weight and bias (over image, row, column)."""
    dx, dw, db = np.zeros(x.shape, F32), start_weight.copy(), start_bias.copy()
    found = list(meetings(x.shape[2:], weight.shape[2:], stride, padding, dilation))
    channels, outputs = weight.shape[1], len(weight) // groups
    for o, c in np.ndindex(weight.shape[:2]):
        source = o // outputs * channels + c
        for (i, j), (u, v), (h, w) in sorted(found, key=lambda meeting: meeting[1]):
            dx[:, source, h, w] = fma(g[:, o, i, j], weight[o, c, u, v], dx[:, source, h, w])
        for n in range(len(x)):
            for (i, j), (u, v), (h, w) in found:
                dw[o, c, u, v] = fma(g[n, o, i, j], x[n, source, h, w], dw[o, c, u, v])
    for n, _, i, j in np.ndindex(g.shape[0], 1, *g.shape[2:]):
        with np.errstate(all="ignore"):
            db = db + g[n, :, i, j]
    return dx, dw, db


def windows(size: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Iterator[tuple[Pair, list[Pair]]]:
    """(place of the output, elements of its window), both ascending; padding is absent."""
    taken: dict[Pair, list[Pair]] = {}
    for place, _, element in meetings(size, kernel, stride, padding, (1, 1)):
        taken.setdefault(place, []).append(element)
    yield from taken.items()


def max_pool2d(x: Floats, kernel: Pair, stride: Pair, padding: Pair) -> tuple[Floats, dict[tuple[Any, ...], Pair]]:
    """The maximum of each window of x [B, C, H, W], and the element that won it: x > m or x is NaN, from the first."""
    out = np.empty((*x.shape[:2], *output_size(x.shape[2:], kernel, stride, padding, (1, 1))), F32)
    winners: dict[tuple[Any, ...], Pair] = {}
    for n, c in np.ndindex(x.shape[:2]):
        for place, elements in windows(x.shape[2:], kernel, stride, padding):
            best = elements[0]
            for element in elements:
                value = x[n, c][element]
                best = element if value > x[n, c][best] or np.isnan(value) else best
            out[n, c][place], winners[n, c, *place] = x[n, c][best], best
    return out, winners


def max_pool2d_backward(g: Floats, winners: dict[tuple[Any, ...], Pair], shape: tuple[int, ...]) -> Floats:
    """From +0, g of the windows that an element won, ascending."""
    dx = np.zeros(shape, F32)
    for n, c, i, j in np.ndindex(g.shape):
        with np.errstate(all="ignore"):
            dx[n, c][winners[n, c, i, j]] += g[n, c, i, j]
    return dx


def avg_pool2d(x: Floats, kernel: Pair, stride: Pair, padding: Pair) -> Floats:
    """The ascending sum of each window, * binary32(1 / all its taps, those on padding too)."""
    out = np.zeros((*x.shape[:2], *output_size(x.shape[2:], kernel, stride, padding, (1, 1))), F32)
    for place, elements in windows(x.shape[2:], kernel, stride, padding):
        with np.errstate(all="ignore"):
            for element in elements:
                out[:, :, *place] = out[:, :, *place] + x[:, :, *element]
            out[:, :, *place] = out[:, :, *place] * F32(1.0 / (kernel[0] * kernel[1]))
    return out


def avg_pool2d_backward(g: Floats, shape: tuple[int, ...], kernel: Pair, stride: Pair, padding: Pair) -> Floats:
    """From +0, g * binary32(1 / all taps) of the windows that an element is in, ascending."""
    dx = np.zeros(shape, F32)
    for place, elements in windows((shape[2], shape[3]), kernel, stride, padding):
        for element in elements:
            with np.errstate(all="ignore"):
                dx[:, :, *element] = dx[:, :, *element] + g[:, :, *place] * F32(1.0 / (kernel[0] * kernel[1]))
    return dx


def batch_statistics(x: Floats, eps: float) -> tuple[Floats, Floats, Floats]:
    """Of x [B, C, H, W]: mean, 1 / sqrt(variance + eps) and the chain of squares, over ascending image, row, column."""
    values = x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])
    c = F32(1.0 / len(values))
    with np.errstate(all="ignore"):
        mean, squares = sum_rows(values) * c, np.zeros(x.shape[1], F32)
        for d in values - mean:
            squares = fma(d, d, squares)
        return mean, (F32(1.0) / np.sqrt(squares * c + F32(eps))).astype(F32), squares


def batch_norm(x: Floats, mean: Floats, scale: Floats, weight: Floats, bias: Floats) -> Floats:
    """fma((x - mean) * scale, weight, bias) in each channel of x [B, C, H, W]."""
    channel = (slice(None), None, None)
    with np.errstate(all="ignore"):
        return fma((x - mean[channel]) * scale[channel], weight[channel], bias[channel])


def batch_norm_backward(
    g: Floats, x: Floats, mean: Floats, scale: Floats, weight: Floats, start_weight: Floats, start_bias: Floats,
    training: bool,
) -> tuple[Floats, Floats, Floats]:  # fmt: skip
    """The gradients of x, weight and bias; the latter two continue."""
    grads, xs = (v.transpose(0, 2, 3, 1).reshape(-1, x.shape[1]) for v in (g, x))
    c, second, dw = F32(1.0 / max(len(xs), 1)), np.zeros_like(weight), start_weight
    with np.errstate(all="ignore"):
        h, u = (xs - mean) * scale, grads * weight
        for k in range(len(xs)):
            dw, second = fma(grads[k], h[k], dw), fma(u[k], h[k], second)
        dx = fma(-h, (second * c)[None], u - sum_rows(u) * c) * scale if training else u * scale
    shape = (x.shape[0], *x.shape[2:], x.shape[1])
    return dx.reshape(shape).transpose(0, 3, 1, 2), dw, sum_rows(grads, start_bias)
