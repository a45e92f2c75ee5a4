"""attention and its gradients, head by head and row by row, with masked terms absent from every chain."""

from __future__ import annotations

import math

import numpy as np

from samebits.reference.arrays import Floats, fma, product
from samebits.reference.elementary import exp
from samebits.reference.scalar import F32, ZERO


def scale_of(width: int) -> np.float32:
    """binary32(1 / sqrt(width)), computed in binary64."""
    return F32(1.0 / math.sqrt(width))


def _softmax_row(x: Floats) -> Floats:
    m = x[0]
    for value in x[1:]:
        m = value if value > m or np.isnan(value) else m
    with np.errstate(all="ignore"):
        e = np.array([exp(value - m) for value in x], F32)
        total = ZERO
        for value in e:
            total = F32(total + value)
        return e / total


def probabilities(q: Floats, k: Floats, causal: bool) -> list[Floats]:
    """p of one head: for each row the probabilities of the keys that are present."""
    with np.errstate(all="ignore"):
        scores = product(q, k.T) * scale_of(q.shape[1])
    counts = [i + 1 if causal else len(k) for i in range(len(q))]
    return [_softmax_row(row[:count]) if count else row[:0] for row, count in zip(scores, counts, strict=True)]


def attention(q: Floats, k: Floats, v: Floats, causal: bool) -> Floats:
    """One head: q [T, D], k and v [S, D]."""
    rows = [product(p[None, :], v[: len(p)])[0] for p in probabilities(q, k, causal)]
    return np.array(rows, F32).reshape(q.shape)


def attention_backward(q: Floats, k: Floats, v: Floats, g: Floats, causal: bool) -> tuple[Floats, Floats, Floats]:
    """The gradients of q, k and v of one head."""
    scale, p = scale_of(q.shape[1]), probabilities(q, k, causal)
    grad_q, grad_k, grad_v = (np.zeros(x.shape, F32) for x in (q, k, v))
    for i, row in enumerate(p):
        dp = product(g[i : i + 1], v[: len(row)].T)[0]
        d = product(row[None, :], dp[:, None])[0, 0]
        with np.errstate(all="ignore"):
            ds = (row * (dp - d)) * scale
        for j in range(len(row)):
            grad_q[i] = fma(ds[j], k[j], grad_q[i])
            grad_k[j] = fma(ds[j], q[i], grad_k[j])
            grad_v[j] = fma(row[j], g[i], grad_v[j])
    return grad_q, grad_k, grad_v
