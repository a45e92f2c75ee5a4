"""Both softmaxes and norms, mean_pool, position_embedding and cross_entropy, one row and one element at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from samebits.reference import elementary as exact
from samebits.reference.arrays import Floats
from samebits.reference.scalar import F32, ONE, ZERO, fma

Scalar = np.float32


def share(count: int) -> Scalar:
    """binary32(1 / count)."""
    return F32(1.0 / count)


def ascending_sum(values: Floats, start: Scalar = ZERO) -> Scalar:
    """start + values[0] + values[1] + ..."""
    total = start
    for value in values:
        total = total + value
    return total


def chain(a: Floats, b: Floats, start: Scalar = ZERO) -> Scalar:
    """fma(a[k], b[k], ...) over ascending k."""
    total = start
    for x, y in zip(a, b, strict=True):
        total = fma(x, y, total)
    return total


def maximum(values: Floats) -> Scalar:
    """x is taken if x > m or x is NaN; the first wins."""
    m: Scalar = values[0]
    for x in values:
        m = x if x > m or np.isnan(x) else m
    return m


def exponentials(row: Floats) -> tuple[Floats, Scalar, Scalar]:
    """e = exp(x - max), their sum, and the maximum."""
    m = maximum(row)
    e = np.array([exact.exp(x - m) for x in row], F32)
    return e, ascending_sum(e), m


def softmax(x: Floats) -> Floats:
    """e / s for each row of x [rows, n]."""
    out = np.empty(x.shape, F32)
    for i, row in enumerate(x):
        if row.size:
            e, s, _ = exponentials(row)
            out[i] = [value / s for value in e]
    return out


def softmax_backward(grad: Floats, x: Floats) -> Floats:
    """y * (grad - chain of y, grad)."""
    y, out = softmax(x), np.empty(x.shape, F32)
    for i in range(len(x)):
        d = chain(y[i], grad[i])
        out[i] = [p * (g - d) for p, g in zip(y[i], grad[i], strict=True)]
    return out


def log_softmax(x: Floats) -> Floats:
    """(x - max) - log(s) for each row of x [rows, n]."""
    out = np.empty(x.shape, F32)
    for i, row in enumerate(x):
        if row.size:
            _, s, m = exponentials(row)
            out[i] = [(value - m) - exact.log(s) for value in row]
    return out


def log_softmax_backward(grad: Floats, x: Floats) -> Floats:
    """fma(-exp(y), sum of grad, grad)."""
    y, out = log_softmax(x), np.empty(x.shape, F32)
    for i in range(len(x)):
        d = ascending_sum(grad[i])
        out[i] = [fma(-exact.exp(value), d, g) for value, g in zip(y[i], grad[i], strict=True)]
    return out


def rms_normalised(row: Floats, eps: Scalar) -> tuple[Floats, Scalar]:
    """x * r, and r = rsqrt(mean square + eps)."""
    r = exact.rsqrt(chain(row, row) * share(row.size) + eps)
    return np.array([x * r for x in row], F32), r


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """h * weight, h the normalised rows of x [rows, n]."""
    out = np.empty(x.shape, F32)
    for i, row in enumerate(x):
        h, _ = rms_normalised(row, F32(eps)) if row.size else (row, ONE)
        out[i] = [a * w for a, w in zip(h, weight, strict=True)]
    return out


def rms_norm_backward(grad: Floats, x: Floats, weight: Floats, eps: float, start: Floats) -> tuple[Floats, Floats]:
    """The gradients of x and weight; the latter continues, rows ascending."""
    dx, dw = np.empty(x.shape, F32), start.copy()
    if not x.shape[1]:
        return dx, dw
    for i, row in enumerate(x):
        h, r = rms_normalised(row, F32(eps))
        u = np.array([g * w for g, w in zip(grad[i], weight, strict=True)], F32)
        b = chain(u, h) * share(row.size)
        dx[i] = [fma(-v, b, p) * r for v, p in zip(h, u, strict=True)]
        dw = np.array([fma(g, v, total) for g, v, total in zip(grad[i], h, dw, strict=True)], F32)
    return dx, dw


def normalised(row: Floats, eps: Scalar) -> tuple[Floats, Scalar]:
    """(x - mean) * r, and r = 1 / sqrt(variance + eps)."""
    mean = ascending_sum(row) * share(row.size)
    d = np.array([x - mean for x in row], F32)
    r = ONE / np.sqrt(chain(d, d) * share(row.size) + eps)
    return np.array([x * r for x in d], F32), r


def layer_norm(x: Floats, weight: Floats, bias: Floats, eps: float) -> Floats:
    """fma(h, weight, bias), h the normalised rows of x [rows, n]."""
    out = np.empty(x.shape, F32)
    for i, row in enumerate(x):
        h, _ = normalised(row, F32(eps)) if row.size else (row, ONE)
        out[i] = [fma(*triple) for triple in zip(h, weight, bias, strict=True)]
    return out


def layer_norm_backward(
    grad: Floats, x: Floats, weight: Floats, eps: float, start_weight: Floats, start_bias: Floats
) -> tuple[Floats, Floats, Floats]:
    """The gradients of x, weight and bias; the latter two continue, rows ascending."""
    dx, dw, db = np.empty(x.shape, F32), start_weight.copy(), start_bias.copy()
    if not x.shape[1]:
        return dx, dw, db
    c = share(x.shape[1])
    for i, row in enumerate(x):
        h, r = normalised(row, F32(eps))
        u = np.array([g * w for g, w in zip(grad[i], weight, strict=True)], F32)
        a, b = ascending_sum(u) * c, chain(u, h) * c
        dx[i] = [fma(-v, b, p - a) * r for v, p in zip(h, u, strict=True)]
        dw = np.array([fma(g, v, total) for g, v, total in zip(grad[i], h, dw, strict=True)], F32)
        db = np.array([total + g for total, g in zip(db, grad[i], strict=True)], F32)
    return dx, dw, db


def mean_pool(x: Floats) -> Floats:
    """Ascending sums over the second axis of x [B, T, F], times binary32(1/T)."""
    batch, positions, features = x.shape
    out = np.empty((batch, features), F32)
    for b, f in np.ndindex(out.shape):
        out[b, f] = ascending_sum(x[b, :, f]) * (share(positions) if positions else F32(np.inf))
    return out


def mean_pool_backward(grad: Floats, positions: int) -> Floats:
    """grad * binary32(1/T) at every position."""
    out = np.empty((grad.shape[0], positions, grad.shape[1]), F32)
    for b, t, f in np.ndindex(out.shape):
        out[b, t, f] = grad[b, f] * share(positions)
    return out


def position_embedding(x: Floats, weight: Floats) -> Floats:
    """x [B, T, F] + weight [T, F]."""
    out = np.empty(x.shape, F32)
    for b, t, f in np.ndindex(x.shape):
        out[b, t, f] = x[b, t, f] + weight[t, f]
    return out


def position_embedding_backward(grad: Floats, start: Floats) -> Floats:
    """The gradient of weight: grad summed over ascending b, from start."""
    out = start.copy()
    for b, t, f in np.ndindex(grad.shape):
        out[t, f] = out[t, f] + grad[b, t, f]
    return out


def losses(x: Floats, target: NDArray[np.int64]) -> Floats:
    """log(s) - (x[target] - max) of each row of x [rows, classes]."""
    out = np.empty(len(x), F32)
    for i, row in enumerate(x):
        _, s, m = exponentials(row)
        out[i] = exact.log(s) - (row[target[i]] - m)
    return out


def mean_loss(x: Floats, target: NDArray[np.int64], count: int) -> Scalar:
    """The ascending sum of the losses, times binary32(1/count)."""
    return ascending_sum(losses(x, target)) * share(count)


def losses_backward(grad: Floats, x: Floats, target: NDArray[np.int64]) -> Floats:
    """(softmax - onehot) * grad of the row."""
    p, out = softmax(x), np.empty(x.shape, F32)
    for i, k in np.ndindex(x.shape):
        out[i, k] = (p[i, k] - (ONE if k == target[i] else ZERO)) * grad[i]
    return out


def mean_loss_backward(grad: Scalar, x: Floats, target: NDArray[np.int64], count: int) -> Floats:
    """((softmax - onehot) * binary32(1/count)) * grad."""
    scaled = losses_backward(np.full(len(x), share(count)), x, target)
    return np.array([value * grad for value in scaled.flat], F32).reshape(x.shape)
